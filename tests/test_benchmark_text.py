"""Completions against transformers one by one, and the choice of references."""

import copy
import json

import pytest
import torch
from benchmark_models import END, prepared, texts, tiny_gpt2, tiny_llama, tiny_tokenizer, train

from llm_finetuner.benchmark.text import (
    ROUGE_FLOOR,
    benchmark,
    choose_references,
    continuations,
    generate,
    rouge,
)
from llm_finetuner.errors import DataError
from llm_finetuner.tasks.causal_lm import CausalLM


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepared(tokenizer, texts(60))


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def model(tokenizer, rows, request):
    return train(request.param(len(tokenizer)), rows, 25)


TASK = CausalLM()
PROMPTS = ["the cat", "one small dog run to its red house by", "sea the", "saw", "mat and saw one small"]


def one_by_one(model, tokenizer, prompts, new: int) -> list[str]:
    """Greedy by full forward passes: no padding, no cache, no generate()."""
    said = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + new:
            with torch.no_grad():
                token = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        said.append(tokenizer.decode(ids[start:]))
    return said


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_say_what_each_prompt_alone_says(model, tokenizer, batch_size):
    expected = one_by_one(model, tokenizer, PROMPTS, 20)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=20, batch_size=batch_size) == expected
    assert any(expected)


def test_a_completion_ends_at_the_end_token(model, tokenizer):
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    free = [tokens for tokens, _ended in continuations(model, tokenizer, prompts, max_new_tokens=30)]
    said = max(free, key=len)
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(said[-1])  # a token that it does say
    found = continuations(model, other, prompts, max_new_tokens=30)
    tokens, ended = found[free.index(said)]
    assert ended and tokens == said[: said.index(said[-1])]
    assert all(said[-1] not in tokens for tokens, _ended in found)
    assert all(END not in text for text in generate(model, tokenizer, PROMPTS))


def test_nothing_of_the_users_is_changed(model, tokenizer):
    tokenizer.padding_side = "right"
    model.train()
    state = torch.get_rng_state()
    generate(model, tokenizer, PROMPTS[:2], max_new_tokens=2, do_sample=True)
    assert tokenizer.padding_side == "right" and tokenizer.pad_token is None
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_an_ordinary_token_named_by_a_default_configuration_ends_nothing(tokenizer, rows):
    model = train(tiny_llama(len(tokenizer)), rows, 25)
    before = generate(model, tokenizer, PROMPTS)
    model.generation_config.eos_token_id = tokenizer(" cat")["input_ids"][0]
    assert generate(model, tokenizer, PROMPTS) == before
    assert any(" cat" in text for text in before)


def test_sampling_follows_its_seed_and_its_settings(model, tokenizer):
    def sample(**options):
        return generate(model, tokenizer, PROMPTS, max_new_tokens=12, do_sample=True, **options)

    assert (
        sample(seed=1, temperature=3.0) == sample(seed=1, temperature=3.0) != sample(seed=2, temperature=3.0)
    )
    assert sample(top_p=1e-6) == generate(model, tokenizer, PROMPTS, max_new_tokens=12)


def test_a_prompt_longer_than_the_positions_keeps_its_end(tokenizer):
    model = tiny_gpt2(len(tokenizer), positions=24)
    long = " ".join(texts(9))
    ids = tokenizer(long)["input_ids"]
    assert len(ids) > 24
    (found,), (expected,) = (
        continuations(model, tokenizer, [ids], max_new_tokens=8),
        continuations(model, tokenizer, [ids[-16:]], max_new_tokens=8),
    )
    assert found == expected
    ((tokens, _ended),) = continuations(model, tokenizer, [ids], max_new_tokens=500)
    assert len(tokens) <= 12


def test_an_empty_prompt_begins_a_text(model, tokenizer):
    assert len(generate(model, tokenizer, ["", "the"], max_new_tokens=4)) == 2


def test_rouge_by_hand():
    scores = rouge(["the cat sat", "dogs"], ["the cat ran off", "dog"])
    # first: 2 of 3 and 2 of 4 words -> F 4/7; bigrams 1 of 2 and 1 of 3 -> F 2/5. Second: the stem, alone
    assert scores["rouge1"] == pytest.approx((4 / 7 + 1) / 2)
    assert scores["rouge2"] == pytest.approx((2 / 5 + 0) / 2)
    assert scores["rougeL"] == pytest.approx((4 / 7 + 1) / 2)
    for predictions, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match="cannot be scored"):
            rouge(predictions, references)


def test_the_choice_of_references(model, tokenizer, rows):
    teacher = train(tiny_gpt2(len(tokenizer), seed=1), rows, 15)
    given = choose_references(TASK, tokenizer, PROMPTS, [text.upper() for text in PROMPTS], teacher)
    assert given.texts == [text.upper() for text in PROMPTS] and given.against == "the references given"
    taught = choose_references(TASK, tokenizer, PROMPTS, None, teacher, max_new_tokens=9)
    assert taught.texts == generate(teacher, tokenizer, PROMPTS, max_new_tokens=9)
    assert "teacher's greedy" in taught.against
    halves = choose_references(TASK, tokenizer, PROMPTS)
    whole = [first + second for first, second in zip(halves.prompts, halves.tokens, strict=True)]
    assert whole == [tokenizer(text)["input_ids"] for text in PROMPTS]
    assert all(0 <= len(a) - len(b) <= 1 for a, b in zip(halves.prompts, halves.tokens, strict=True))
    assert "second half" in halves.against


def test_a_teacher_that_says_nothing_is_not_a_reference(tokenizer):
    teacher = tiny_gpt2(len(tokenizer))
    teacher.lm_head.weight.data.zero_()
    teacher.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    teacher.lm_head.bias.data[tokenizer.eos_token_id] = 100.0
    assert "second half" in choose_references(TASK, tokenizer, PROMPTS, None, teacher).against


@pytest.mark.parametrize("prompts, references", [([], None), (["a", "b"], ["c"]), (["a"], None)])
def test_what_cannot_be_scored_says_so(model, tokenizer, prompts, references):
    with pytest.raises(DataError):
        benchmark(TASK, model, tokenizer, prompts, references)


def test_benchmark_scores_a_better_model_higher(tokenizer, rows):
    prompts = [" ".join(text.split()[:3]) for text in texts(12, seed=9, low=8)]
    references = [" " + " ".join(text.split()[3:]) for text in texts(12, seed=9, low=8)]
    better, against = benchmark(
        TASK, train(tiny_gpt2(len(tokenizer)), rows, 60), tokenizer, prompts, references
    )
    worse, _ = benchmark(TASK, tiny_gpt2(len(tokenizer)), tokenizer, prompts, references)
    assert against == "the references given"
    assert better["rougeL"] > worse["rougeL"] and better["perplexity"] < worse["perplexity"]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_two_untrained_models_can_be_compared_as_the_guide_does(tokenizer, with_teacher, capsys):
    """Untrained models share no word with anything, and the loop of the guide divides by the first one's score."""
    teacher = tiny_gpt2(len(tokenizer), seed=8) if with_teacher else None
    results = {}
    for seed, name in enumerate(("vanilla", "feature")):
        model = tiny_gpt2(len(tokenizer), seed=seed)
        results[name], _against = benchmark(
            TASK, model, tokenizer, PROMPTS, teacher=teacher, max_new_tokens=8
        )
    for metric in results["vanilla"]:
        vanilla_score = results["vanilla"][metric]
        feature_score = results["feature"][metric]
        improvement = (feature_score - vanilla_score) / vanilla_score * 100
        print(f"{metric}: Vanilla={vanilla_score:.4f}, Feature={feature_score:.4f}, {improvement:+.2f}%")
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert min(score for scores in results.values() for score in scores.values()) >= ROUGE_FLOOR
    assert json.loads(json.dumps(results)) == results
