"""Targets that T5 and BART write, against one by one without cache or padding; ROUGE of them at each door."""

import copy
import json
import shutil

import pytest
import torch
from label_tokenizers import t5 as build_tokenizer
from test_seq2seq import build_bart, build_t5
from tokenizers.processors import TemplateProcessing
from transformers import MBartConfig, MBartForConditionalGeneration

from llm_finetuner import recipe_file
from llm_finetuner.benchmark import targets
from llm_finetuner.benchmark.text import FROM_TEACHER, choose_references, decode, rouge
from llm_finetuner.cli.app import main
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Data
from llm_finetuner.tasks.seq2seq import Seq2Seq

WORDS = "the cat dog sees play".split()
TEXTS = [" ".join(WORDS[(i + j) % 5] for j in range(1 + i % 4)) for i in range(24)]
LONGEST = 10  # tokens: twice the longest target, which evaluations end at
PLAN = {"batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def t5(tokenizer, **sizes):
    return build_t5(vocabulary=len(tokenizer), **{"decoder": 3, **sizes})


def bart(tokenizer):
    """With positions that end, a decoder that starts from the end of a text, and a bias beside its head."""
    model = build_bart(start=1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.nn.init.normal_(model.model.shared.weight, std=0.3)
    return model


def mbart(tokenizer):
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (
        ("layers", 2), ("attention_heads", 2), ("ffn_dim", 32)
    )}  # fmt: skip
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, init_std=0.3, max_position_embeddings=32, decoder_start_token_id=1,
        pad_token_id=0, eos_token_id=1, dropout=0.0, **sizes,
    )  # fmt: skip
    return MBartForConditionalGeneration(config)


MODELS = {"t5": t5, "bart": bart, "mbart": mbart}


def sources(tokenizer) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in TEXTS[:7]]


@torch.no_grad()
def one_by_one(model, tokenizer, source, new, first=()):
    """Greedy by full forward passes: no padding, no cache, no generate()."""
    said = [model.config.decoder_start_token_id, *first]
    pad = model.config.pad_token_id
    while len(said) <= new:
        ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([said])}
        logits = model.eval()(**ids, use_cache=False).logits[0, -1]
        if pad != tokenizer.eos_token_id:
            logits[pad] = -torch.inf  # nobody writes padding
        said.append(int(logits.argmax()))
        if said[-1] == tokenizer.eos_token_id:
            return said[1:-1], True
    return said[1:], False


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_say_what_each_source_alone_says(tokenizer, kind, batch_size):
    model, asked = MODELS[kind](tokenizer).double(), sources(tokenizer)
    expected = [one_by_one(model, tokenizer, source, 9) for source in asked]
    assert targets.write(model, tokenizer, asked, max_new_tokens=9, batch_size=batch_size) == expected
    assert len({tuple(tokens) for tokens, _ in expected}) > 2


def test_a_target_ends_at_its_end_and_the_rest_of_the_batch_goes_on(tokenizer):
    model, asked = t5(tokenizer).double(), sources(tokenizer)
    free = targets.write(model, tokenizer, asked, max_new_tokens=9)
    other = copy.deepcopy(tokenizer)
    last = free[0][0][-1]
    other.eos_token = tokenizer.convert_ids_to_tokens(last)  # a token that it does say
    found = targets.write(model, other, asked, max_new_tokens=9)
    for (tokens, ended), (before, _) in zip(found, free, strict=True):
        cut = before.index(last) if last in before else len(before)
        assert (tokens, ended) == (before[:cut], last in before)
    assert any(ended for _, ended in found)


def test_a_target_has_no_more_tokens_than_the_decoder_has_positions(tokenizer):
    model = bart(tokenizer)
    model.final_logits_bias[0, tokenizer.eos_token_id] = -100.0  # it never ends
    assert [len(tokens) for tokens, _ in targets.write(model, tokenizer, [[5, 1]], max_new_tokens=500)] == [
        32
    ]


def test_the_first_token_is_the_language_where_one_is_named(tokenizer):
    model, asked, language = mbart(tokenizer).double(), sources(tokenizer), 7
    model.generation_config.forced_bos_token_id = language
    found = targets.write(model, tokenizer, asked, max_new_tokens=6)
    assert found == [one_by_one(model, tokenizer, source, 6, [language]) for source in asked]
    model.generation_config.forced_bos_token_id = None
    spoken = copy.deepcopy(tokenizer)  # which puts it before every target, as mBART-50's does
    word = tokenizer.convert_ids_to_tokens(language)
    spoken.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{word} $A </s>", special_tokens=[(word, language), ("</s>", 1)]
    )
    assert targets.write(model, spoken, asked, max_new_tokens=6) == found


def test_what_the_model_is_configured_for_is_put_aside_and_back(tokenizer):
    model, asked = t5(tokenizer).double(), sources(tokenizer)
    plain = targets.write(model, tokenizer, asked, max_new_tokens=9)
    model.generation_config.update(num_beams=3, no_repeat_ngram_size=1, min_length=9, repetition_penalty=5.0)
    own = model.generation_config
    model.train()
    assert targets.write(model, tokenizer, asked, max_new_tokens=9) == plain
    assert model.generation_config is own and own.num_beams == 3 and model.training
    with pytest.raises(IndexError):
        targets.write(model, tokenizer, [[10**6]], max_new_tokens=2)
    assert model.generation_config is own


def test_padding_and_columns_that_name_no_token_are_never_written(tokenizer):
    model = t5(tokenizer, tied=False)
    wide = torch.nn.Linear(16, len(tokenizer) + 8, bias=True)
    wide.bias.data[len(tokenizer) :] = 100.0
    wide.bias.data[model.config.pad_token_id] = 200.0
    model.lm_head = wide
    ((tokens, _),) = targets.write(model, tokenizer, [[5, 1]], max_new_tokens=4)
    assert tokens and all(0 < token < len(tokenizer) for token in tokens)


# ---- the doors


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tokenizer):
    """A teacher that has learned to turn texts round, a smaller model, and the data."""
    desk = tmp_path_factory.mktemp("desk")
    rows = [{"article": text, "summary": " ".join(reversed(text.split()))} for text in TEXTS]
    (desk / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, model in (("first", t5(tokenizer, width=32)), ("small", t5(tokenizer, seed=1))):
        model.save_pretrained(desk / name)
        tokenizer.save_pretrained(desk / name)
    teacher = LLMFineTuner(str(desk / "first"), desk / "teacher", task="seq2seq_lm", device="cpu")
    teacher.load_model("full")
    rows = teacher.load_dataset_from_source(desk / "rows.jsonl")
    teacher.train(teacher.prepare_dataset(rows, max_length=LONGEST)[0], num_epochs=12, **PLAN)
    return desk


def tuner_of(desk, name="teacher", output="out"):
    tuner = LLMFineTuner(str(desk / name), desk / output, task="seq2seq_lm", device="cpu")
    tuner.load_model("full")
    rows = tuner.load_dataset_from_source(desk / "rows.jsonl")
    tuner.prepare_dataset(rows, max_length=LONGEST)  # which it remembers
    return tuner, rows


def test_an_evaluation_scores_what_is_written_for_the_rows(desk):
    tuner, rows = tuner_of(desk)
    found, written = tuner.evaluate(rows), tuner.predict(rows["article"])
    expected = rouge(written, rows["summary"])
    assert {name: found[name] for name in expected} == expected and found["rouge_rows"] == 24
    assert found["rougeL"] > 0.5 and found["perplexity"] > 1
    some = tuner.evaluate(rows, sample=5)
    picked = [i * 24 // 5 for i in range(5)]
    assert some["rouge_rows"] == 5
    assert (
        some["rouge1"] == rouge([written[i] for i in picked], [rows["summary"][i] for i in picked])["rouge1"]
    )
    none = tuner.evaluate(rows, sample=0)
    assert "rouge1" not in none and none["loss"] == found["loss"]


def test_padding_in_rows_is_not_read(desk):
    tuner, rows = tuner_of(desk)
    prepared, _ = tuner.prepare_dataset(rows, max_length=LONGEST)

    def pad(row):
        return {"input_ids": [*row["input_ids"], 0, 0], "attention_mask": [*row["attention_mask"], 0, 0]}

    found, padded = tuner.evaluate(prepared), tuner.evaluate(prepared.map(pad))
    assert padded["rougeL"] == found["rougeL"] > 0.5


def test_without_a_tokenizer_an_evaluation_has_no_texts(desk, tokenizer):
    tuner, rows = tuner_of(desk)
    prepared, _ = tuner.prepare_dataset(rows, max_length=LONGEST)
    bare = LLMFineTuner(tuner.model, desk / "bare", task="seq2seq_lm", device="cpu")
    bare.load_model("full")
    assert "rouge1" not in bare.evaluate(prepared) and "rouge1" in tuner.evaluate(prepared)


def test_a_prefix_is_learned_and_put_before_what_is_asked(desk, tokenizer):
    tuner, rows = tuner_of(desk)
    plain, _ = tuner.prepare_dataset(rows, max_length=LONGEST)
    asked = ["play: " + text for text in TEXTS]
    told = tuner.predict(asked)
    prepared, _ = tuner.prepare_dataset(rows, max_length=LONGEST, prefix="play: ")
    assert prepared[0]["input_ids"] == tokenizer(asked[0])["input_ids"] != plain[0]["input_ids"]
    assert tuner.predict(TEXTS) == told != LLMFineTuner.predict(tuner_of(desk)[0], TEXTS)


def test_completions_are_held_against_references_or_the_teachers_own(desk):
    tuner, rows = tuner_of(desk, "small")
    with pytest.raises(DataError, match="nothing to hold the targets against"):
        tuner.benchmark(TEXTS)
    with pytest.raises(RecipeError, match="does not continue texts"):
        tuner.generate(TEXTS)
    given = tuner.benchmark(TEXTS, rows["summary"])
    assert tuner.benchmarked_against == "the references given"
    quality = tuner.evaluate(rows, sample=0)
    assert given["perplexity"] == pytest.approx(quality["perplexity"], rel=1e-6)
    good = tuner_of(desk)[0]
    assert good.benchmark(TEXTS, rows["summary"])["rougeL"] > given["rougeL"]
    tuner.load_teacher_model(str(desk / "teacher"))
    told = tuner.benchmark(TEXTS)
    assert tuner.benchmarked_against == FROM_TEACHER
    assert told.keys() == given.keys() and told["mean_tokens"] >= 1


def test_a_teachers_targets_are_references_as_they_would_be_learned(desk, tokenizer):
    teacher, _ = tuner_of(desk)
    data = Data(max_length=LONGEST, prefix="play: ")
    chosen = choose_references(Seq2Seq(), tokenizer, TEXTS[:5], None, teacher.model, data=data)
    assert chosen.prompts == [tokenizer(f"play: {text}")["input_ids"] for text in TEXTS[:5]]
    assert chosen.tokens == [tokenizer(text)["input_ids"] for text in chosen.texts]  # with the end
    said = targets.write(teacher.model, tokenizer, chosen.prompts, max_new_tokens=LONGEST)
    assert [decode(tokenizer, tokens) for tokens, _ in said] == chosen.texts
    assert chosen.max_new_tokens == min(LONGEST, 2 * max(map(len, chosen.tokens)))


def test_a_verdict_scores_all_models_on_the_same_sources(desk):
    tuner = LLMFineTuner(str(desk / "small"), desk / "student", task="seq2seq_lm", device="cpu")
    tuner.load_model("vanilla_distillation")
    tuner.load_teacher_model(str(desk / "teacher"))
    tuner.setup_vanilla_distillation(temperature=2.0, alpha=0.0)
    rows = tuner.load_dataset_from_source(desk / "rows.jsonl")
    tuner.train(tuner.prepare_dataset(rows, max_length=LONGEST)[0], num_epochs=1, **PLAN)
    verdict = tuner.compare(rows, baseline=True)
    assert verdict["references"] == "the targets of 24 rows"
    by_role = {line["role"]: line for line in verdict["models"]}
    assert len(by_role) == 5 and all(line["rougeL"] is not None for line in by_role.values())
    for role, model in (("teacher", tuner_of(desk)[0]), ("distilled", tuner)):
        assert by_role[role]["rouge2"] == rouge(model.predict(TEXTS), rows["summary"])["rouge2"]
    sample = verdict["samples"][0]
    assert (sample["prompt"], sample["reference"]) == ("_the", "_the") and TEXTS[0] == "the"
    page = (desk / "student" / "report.md").read_text()
    assert "ROUGE-L" in page


def test_the_command_line_knows_what_a_run_or_a_model_writes(desk, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    wanted = [" ".join(reversed(text.split())) for text in TEXTS]
    (tmp_path / "references.txt").write_text("\n".join(wanted))
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--references", str(tmp_path / "references.txt")]

    def figures(model, *more):
        assert main(["benchmark", str(model), *files, *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    run = figures(desk / "teacher")
    assert run["rougeL"] == rouge(tuner_of(desk)[0].predict(TEXTS), wanted)["rougeL"] > 0.5
    told = tmp_path / "told"
    shutil.copytree(desk / "teacher", told)
    recipe_file.save(recipe_file.load(told / "recipe.yaml", ["data.prefix='play: '"]), told / "recipe.yaml")
    assert figures(told) == figures(desk / "teacher", "--prefix", "play: ") != run
    assert figures(told, "--prefix", "") == run
    assert figures(desk / "first")["rougeL"] < run["rougeL"]


def test_a_run_is_compared_from_its_folder(desk, capsys):
    assert main(["compare", str(desk / "teacher"), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    tuned = next(line for line in verdict["models"] if line["role"] == "tuned")
    tuner, rows = tuner_of(desk)
    assert verdict["references"] == "the targets of 24 rows"
    assert tuned["rougeL"] == rouge(tuner.predict(TEXTS), rows["summary"])["rougeL"]


def test_the_preview_shows_the_prefix(desk, capsys):
    words = ["--task", "seq2seq_lm", "--student", str(desk / "small"), "--data", str(desk / "rows.jsonl")]
    assert main(["preview", *words, "--prefix", "play: ", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0][0][0].startswith("_play : _the ")
