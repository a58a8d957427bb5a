"""On-policy distillation: what the student writes itself, what counts of it, and that all of it can be repeated."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from step_reference import (
    assert_close,
    assert_resumes,
    cross_entropy,
    gradients,
    kl,
    recipe_of,
    said_of,
    step_of,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.text import continuations
from llm_finetuner.data.order import Order
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.recipe import Tuning
from llm_finetuner.rollout import Rollout, prompt_length
from llm_finetuner.scheme import OnPolicy
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.trainer import fit

METHOD = "on_policy_distillation"


@pytest.fixture(scope="module")
def size(tokenizer):
    return len(tokenizer)


@pytest.fixture
def student(size):
    return build_gpt2(size).double()


def plan(share=1.0, max_new_tokens=6, sampling_temperature=1.0, replay=0) -> OnPolicy:
    return OnPolicy(share, max_new_tokens, sampling_temperature, replay)


def window_of(size, count=6, **more):
    rows = prepared_rows(count, size, **more).to_list()
    return [rows[: count // 2], rows[count // 2 :]]


def flat(window):
    return [example for examples in window for example in examples]


# ---- what is written


def test_the_student_goes_on_from_every_prompt(student, tokenizer, size):
    """Each prompt stays, what follows is what the student draws after it, and only that counts."""
    window = window_of(size)
    written = flat(Rollout(plan(), tokenizer, 0, 64)(student, window, step=1))
    assert student.training  # left as it was
    for row, example in zip(flat(window), written, strict=True):
        prompt, new = example["input_ids"][:2], example["input_ids"][2:]
        assert prompt == row["input_ids"][:2] and example["sampled"]
        assert example["labels"] == [-100, -100, *new] and 1 <= len(new) <= 6
        assert example["attention_mask"] == [1] * len(example["input_ids"])
        assert len(new) == 6 or new[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in new[:-1]


def test_a_cold_draw_is_the_most_probable_text(student, tokenizer, size):
    window = window_of(size)
    written = flat(Rollout(plan(sampling_temperature=1e-6), tokenizer, 0, 64)(student, window, step=1))
    greedy = continuations(
        student, tokenizer, [row["input_ids"][:2] for row in flat(window)], max_new_tokens=6
    )
    for example, (tokens, ended) in zip(written, greedy, strict=True):
        assert example["input_ids"][2:] == tokens + [tokenizer.eos_token_id] * ended


def test_draws_depend_on_seed_step_and_process_only(student, tokenizer, size):
    window = window_of(size)
    torch.manual_seed(1)
    first = Rollout(plan(0.5), tokenizer, 0, 64)(student, window, step=3)
    before = torch.get_rng_state()
    again = Rollout(plan(0.5), tokenizer, 0, 64)(student, window, step=3)
    assert first == again and torch.equal(before, torch.get_rng_state())
    kept = [row for row in flat(first) if not row.get("sampled")]
    assert kept and all(row in flat(window) for row in kept) and len(kept) < 6
    others = [
        Rollout(plan(), tokenizer, seed, 64)(student, window, step, rank)
        for seed, step, rank in ((0, 3, 0), (1, 3, 0), (0, 4, 0), (0, 3, 1))
    ]
    assert all(a != b for i, a in enumerate(others) for b in others[i + 1 :])


def test_where_a_whole_row_counts_its_first_half_is_the_prompt(student, tokenizer, size):
    assert prompt_length({"labels": [4] * 9}) == 4
    assert prompt_length({"labels": [-100, 4, 5]}) == 1  # the first label is never predicted
    assert prompt_length({"labels": [-100, -100, 4]}) == 2
    assert prompt_length({"labels": [-100] * 4}) == 4
    window = window_of(size, prompt=0)
    for row, example in zip(
        flat(window), flat(Rollout(plan(), tokenizer, 0, 64)(student, window, 1)), strict=True
    ):
        half = len(row["input_ids"]) // 2
        assert example["input_ids"][:half] == row["input_ids"][:half]
        assert example["labels"][:half] == [-100] * half and example["labels"][half] != -100


@pytest.mark.parametrize(("max_length", "max_new_tokens"), [(8, 6), (8, 8), (8, 50), (4, 64)])
def test_nothing_is_longer_than_max_length(student, tokenizer, size, max_length, max_new_tokens):
    """A prompt loses its beginning; new tokens that leave no room for one get half."""
    window = window_of(size, prompt=5)
    said = flat(Rollout(plan(max_new_tokens=max_new_tokens), tokenizer, 0, max_length)(student, window, 1))
    new = max_new_tokens if max_new_tokens < max_length else max_length // 2
    for row, example in zip(flat(window), said, strict=True):
        prompt = row["input_ids"][: prompt_length(row)][-(max_length - new) :]
        assert len(example["input_ids"]) <= max_length and example["input_ids"][: len(prompt)] == prompt
        assert example["labels"][: len(prompt)] == [-100] * len(prompt)


def test_samples_are_learned_from_again(student, tokenizer, size):
    rollout, window = Rollout(plan(replay=4), tokenizer, 0, 64), window_of(size)
    first = flat(rollout(student, window, 1))
    assert rollout.buffer == first[-4:]
    kept = copy.deepcopy(rollout.state())
    second = flat(rollout(student, window, 2))
    old = [example for example in second if example in kept["buffer"]]
    assert 0 < len(old) < 6 and len(rollout.buffer) == 4
    assert rollout.buffer == (kept["buffer"] + [e for e in second if e not in kept["buffer"]])[-4:]
    again = Rollout(plan(replay=4), tokenizer, 0, 64)
    again.load_state(kept)
    assert flat(again(student, window, 2)) == second
    once = Rollout(plan(), tokenizer, 0, 64)
    once(student, window, 1)
    assert once.buffer == []


# ---- what is learned


def test_a_share_of_nothing_is_plain_distillation(tmp_path, student, tokenizer, size):
    teacher, rows = build_llama(size).double(), prepared_rows(8, size)
    got = step_of(
        tmp_path, student, teacher, rows, METHOD, tokenizer=tokenizer, share=0.0, divergence="forward_kl", alpha=0.5,
        temperature=2.0,
    )  # fmt: skip
    want = step_of(tmp_path, student, teacher, rows, "vanilla_distillation", tokenizer=tokenizer)
    assert all(torch.equal(got[0][name], want[0][name]) for name in want[0])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_gradients_of_what_was_written(tmp_path, student, tokenizer, size, share):
    """The divergence counts everywhere, cross-entropy on the data's rows; both are divided by all positions."""
    teacher, rows, alpha = copy.deepcopy(student), prepared_rows(8, size), 0.4
    with torch.no_grad():
        teacher.transformer.ln_f.bias += 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    got, _, record, _ = step_of(
        tmp_path, student, teacher, rows, METHOD, tokenizer=tokenizer, share=share, divergence="forward_kl",
        alpha=alpha, temperature=2.0, max_new_tokens=6,
    )  # fmt: skip
    order = Order([len(row["input_ids"]) for row in rows], 4, 8, seed=0).step(1)
    window = [[rows[n] for n in numbers] for numbers, _ in order]
    written = flat(Rollout(plan(share), tokenizer, 0, 512)(student, window, step=1))
    own = copy.deepcopy(student).train()
    truth, heard, taught, data, count, agree = 0.0, 0.0, 0.0, 0, 0, 0
    for row in written:
        logits, targets, *_ = said_of(own, row)
        with torch.no_grad():
            told = said_of(teacher.eval(), row)[0]
        taught, count = taught + kl(logits, told, 2.0), count + len(targets)
        agree += int((logits.argmax(-1) == told.argmax(-1)).sum())
        if not row.get("sampled"):
            truth, heard = truth + cross_entropy(logits, targets), heard + cross_entropy(told, targets)
            data += len(targets)
    assert share == 1.0 or 0 < sum("sampled" in row for row in written) < 8
    assert_close(got, gradients((alpha * truth + (1 - alpha) * taught) / count, own))
    for name, total in (("cross_entropy", truth), ("teacher_nll", heard)):  # means over what has a truth
        wanted = float(torch.as_tensor(total).detach()) / data if data else None
        assert record[name] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-9))
    assert record["forward_kl"] == pytest.approx(taught.item() / count, rel=1e-9)
    assert 0 < agree < count and record["agreement"] == pytest.approx(agree / count)


def test_a_run_is_resumed_with_its_samples(tmp_path, tokenizer, size):
    recipe = recipe_of(tmp_path, METHOD, {"replay": 6, "share": 0.7, "alpha": 0.2, "max_new_tokens": 5})

    def parts():
        return Parts(
            student=build_gpt2(size, dropout=0.1), teacher=build_llama(size), tokenizer=tokenizer,
            train=prepared_rows(8, size), device="cpu",
        )  # fmt: skip

    assert_resumes(tmp_path, recipe, parts)


def test_an_adapter_writes_too(tmp_path, tokenizer, size):
    recipe = replace(recipe_of(tmp_path, METHOD, {"share": 1.0}, steps=2), tuning=Tuning("lora"))
    parts = Parts(
        student=build_gpt2(size), teacher=build_llama(size), tokenizer=tokenizer, train=prepared_rows(8, size),
        device="cpu",
    )  # fmt: skip
    history = fit(recipe, parts).history
    assert len(history) == 2 and history[1]["jsd"] > 0


# ---- mistakes


def test_a_teacher_of_stored_answers_is_refused(tmp_path, student, tokenizer, size):
    assert Cached.stored and not Live.stored
    teacher = Live(CausalLM(), build_llama(size).double())
    teacher.stored = True
    other = Live(CausalLM(), build_llama(size).double())
    for given in (teacher, Ensemble([other, teacher]), Shuffled(teacher)):
        with pytest.raises(RecipeError, match="this one has stored answers only"):
            step_of(tmp_path, student, given, prepared_rows(8, size), METHOD, tokenizer=tokenizer)


def test_mistakes(tmp_path, student, size):
    with pytest.raises(ModelError, match="needs its tokenizer"):
        step_of(tmp_path, student, build_llama(size).double(), prepared_rows(8, size), METHOD)
    for name, value in (
        ("share", 1.5), ("max_new_tokens", 0), ("sampling_temperature", 0), ("replay", -1), ("alpha", 2),
        ("temperature", "9..11"), ("divergence", "hidden_mse"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=name):
            recipe_of(tmp_path, METHOD, {name: value})
