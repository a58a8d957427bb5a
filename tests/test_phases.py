"""One student through several trainings: what a later one finds, keeps and leaves, and runs that are resumed."""

import copy
import math

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llm_finetuner.errors import CheckpointError, OrderError, TrainingError
from llm_finetuner.finetuner import LLMFineTuner

QUICK = {"num_epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def rows(tokenizer):
    return prepared_rows(16, len(tokenizer))


@pytest.fixture
def held_out(tokenizer):
    return prepared_rows(8, len(tokenizer), seed=9)


@pytest.fixture
def live(tmp_path, tokenizer):
    """A student and a teacher given as objects."""
    finetuner = LLMFineTuner(build_gpt2(len(tokenizer)), tmp_path / "run", tokenizer=tokenizer, device="cpu")
    finetuner.load_model(method="vanilla_distillation")
    finetuner.load_teacher_model(build_llama(len(tokenizer)), tokenizer=tokenizer)
    return finetuner


def named(student_folder, tmp_path, method="full", folder="run") -> LLMFineTuner:
    finetuner = LLMFineTuner(student_folder, tmp_path / folder, device="cpu")
    finetuner.load_model(method=method)
    return finetuner


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def logits(model, rows) -> torch.Tensor:
    return model.eval()(torch.tensor([rows[0]["input_ids"]])).logits


def roles(verdict: dict) -> list[str]:
    return sorted(model["role"] for model in verdict["models"])


def by_role(verdict: dict) -> dict[str, dict]:
    return {model["role"]: model for model in verdict["models"]}


# ---- comparing


def test_a_live_student_is_compared_with_what_it_was(live, rows, held_out, tokenizer):
    start = weights(build_gpt2(len(tokenizer)))
    live.train(rows, **QUICK)
    verdict = live.compare(held_out, baseline=True)
    assert equal(weights(live._untouched), start)
    assert not equal(weights(live.model), start)
    models = by_role(verdict)
    perplexities = {role: models[role]["perplexity"] for role in ("untouched", "distilled", "baseline_steps")}
    assert len(set(perplexities.values())) == 3
    untouched = LLMFineTuner(build_gpt2(len(tokenizer)), "unused", tokenizer=tokenizer, device="cpu")
    untouched.load_model(method="full")
    measured = untouched.evaluate(held_out)["perplexity"]
    assert perplexities["untouched"] == pytest.approx(measured, rel=1e-5)


def test_two_phases_are_compared_as_two(live, rows, held_out):
    live.train(rows, **QUICK)
    live.train(rows, method="standard", **QUICK)
    with pytest.raises(OrderError, match="2 phases"):
        live.compare(held_out, baseline=True)
    verdict = live.compare(held_out)
    assert roles(verdict) == ["distilled", "teacher", "untouched"]
    assert by_role(verdict)["distilled"]["steps"] == 8


def test_a_second_load_of_a_live_student_starts_over(live, rows, tokenizer):
    start = weights(build_gpt2(len(tokenizer)))
    first = live.train(rows, **QUICK)
    live.load_model(method="vanilla_distillation")
    assert equal(weights(live.model), start)
    second = live.train(rows, **QUICK)
    assert [r["loss"] for r in second.history] == [r["loss"] for r in first.history]
    assert len(live._phases) == 1


# ---- folders and adapters


def test_a_full_run_leaves_no_adapter_of_the_run_before(student_folder, tmp_path, rows):
    adapter = named(student_folder, tmp_path, "lora")
    adapter.train(rows, **QUICK)
    assert (tmp_path / "run" / "adapter_config.json").exists()
    full = named(student_folder, tmp_path, "full")
    full.train(rows, **QUICK)
    assert not list((tmp_path / "run").glob("adapter_*"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(plain, rows), logits(full.model, rows))
    again = named(student_folder, tmp_path, "lora")
    again.train(rows, **QUICK)
    assert not list((tmp_path / "run").glob("model*.safetensors"))


def adalora(student_folder, tmp_path, folder="run") -> LLMFineTuner:
    finetuner = named(student_folder, tmp_path, "adalora", folder)
    finetuner.setup_adalora(target_r=2, init_r=4)
    return finetuner


def ranks(model) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


def test_the_best_adalora_is_what_is_saved(student_folder, tmp_path, rows, held_out):
    finetuner = adalora(student_folder, tmp_path)
    settings = {**QUICK, "num_epochs": 10, "learning_rate": 0.05, "schedule": "constant", "eval_every": 1}
    result = finetuner.train(rows, eval_dataset=held_out, **settings)
    losses = [record["eval_loss"] for record in result.history]
    # the best while ranks are still being pruned, which is from step 4 to step 28 of the 40
    assert result.metrics["best_step"] == losses.index(min(losses)) + 1 < 28
    base = AutoModelForCausalLM.from_pretrained(student_folder)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "run")
    want = logits(finetuner.model, rows)
    assert (logits(reloaded, rows) - want).abs().max() < 1e-5 * want.abs().max()
    assert finetuner.evaluate(held_out)["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_adalora_keeps_its_pruned_ranks_in_a_second_phase(student_folder, tmp_path, rows):
    finetuner = adalora(student_folder, tmp_path)
    settings = {**QUICK, "num_epochs": 10}
    finetuner.train(rows, **settings)
    first = ranks(finetuner.model)
    assert sum(first) == 2 * len(first)
    seen: list = []
    finetuner.train(
        rows, **settings, on_event=lambda kind, r: seen.append(sum(ranks(finetuner.model))) if kind == "step" else None
    )  # fmt: skip
    assert len(seen) == 40 and set(seen) == {sum(first)}


# ---- steps that fail, runs that are resumed


def test_gradients_of_a_failed_step_are_forgotten(student_folder, tmp_path, rows):
    settings = {**QUICK, "batch_size": 2, "gradient_accumulation_steps": 4, "save_every": 0}
    fresh = named(student_folder, tmp_path, folder="fresh").train(rows, **settings)
    finetuner = named(student_folder, tmp_path)
    passes: list = []

    def fail_in_the_third(module, inputs, output):
        passes.append(len(inputs))
        if len(passes) == 4:  # the first is the check of the head
            raise MemoryError("no more")

    inner = finetuner.model.transformer.ln_f
    hook = inner.register_forward_hook(fail_in_the_third)
    with pytest.raises(TrainingError, match="out of memory"):
        finetuner.train(rows, **settings)
    hook.remove()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in finetuner.model.parameters())
    again = finetuner.train(rows, **settings)
    assert [r["grad_norm"] for r in again.history] == [r["grad_norm"] for r in fresh.history]
    assert [r["loss"] for r in again.history] == [r["loss"] for r in fresh.history]


def test_a_run_that_stopped_early_stays_stopped(student_folder, tmp_path, rows, held_out):
    settings = {
        **QUICK, "num_epochs": 10, "learning_rate": 0.5, "schedule": "constant", "warmup": 0, "eval_every": 1,
        "patience": 2, "eval_dataset": held_out,
    }  # fmt: skip
    first = named(student_folder, tmp_path)
    done = first.train(rows, **settings)
    assert done.metrics["steps"] < 40
    other = named(student_folder, tmp_path)
    notes: list = []
    resumed = other.train(
        rows, **settings, resume=True, on_event=lambda kind, r: notes.append(r) if kind == "note" else None
    )
    assert resumed.metrics["steps"] == done.metrics["steps"]
    assert resumed.metrics["best_step"] == done.metrics["best_step"]
    assert len(resumed.history) == len(done.history)
    assert any("stopped early" in note["text"] for note in notes)
    assert equal(weights(other.model), weights(first.model))


@pytest.mark.parametrize(
    "changed", [{"batch_size": 8}, {"gradient_accumulation_steps": 2}, {"rows": 12}, {"seed": 5}]
)
def test_resuming_with_another_order_of_examples_is_refused(student_folder, tmp_path, rows, changed):
    named(student_folder, tmp_path).train(rows, **QUICK)
    other = LLMFineTuner(student_folder, tmp_path / "run", seed=changed.pop("seed", 0), device="cpu")
    other.load_model(method="full")
    some = rows.select(range(changed.pop("rows", len(rows))))
    with pytest.raises(CheckpointError, match="started with"):
        other.train(some, **{**QUICK, **changed}, resume=True)


class Interrupted(Exception):
    """What a user's callback may raise."""


@pytest.mark.parametrize("tuning", ["full", "lora", "adalora"])
@pytest.mark.parametrize("where", ["same object", "new object"])
def test_resume_after_an_interruption(student_folder, tmp_path, rows, where, tuning):
    settings = {**QUICK, "num_epochs": 2, "save_every": 2}
    whole = named(student_folder, tmp_path, tuning, "whole")
    want = whole.train(rows, **settings)
    cut = named(student_folder, tmp_path, tuning)

    def interrupt(kind, record):
        if kind == "step" and record["step"] == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        cut.train(rows, **settings, on_event=interrupt)
    if where == "new object":
        cut = named(student_folder, tmp_path, tuning)
    plans: list = []
    got = cut.train(
        rows, **settings, resume=True, on_event=lambda kind, r: plans.append(r) if kind == "plan" else None
    )
    assert plans[0]["resumed_from"] == 4
    assert [r["step"] for r in got.history] == list(range(1, 9))
    assert [r["loss"] for r in got.history] == [r["loss"] for r in want.history]
    assert equal(weights(cut.model), weights(whole.model))
    assert math.isfinite(cut.evaluate(rows)["loss"])


def test_the_student_that_was_given_is_kept_as_it_was_through_phases(live, rows):
    untouched = copy.deepcopy(live.model)
    for _ in range(2):
        live.train(rows, **QUICK)
    assert equal(weights(live._untouched), weights(untouched))
    assert len(live._phases) == 2
