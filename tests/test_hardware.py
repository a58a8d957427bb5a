"""Settings that belong to the machine: precision, activation checkpointing, trackers, 8 bits, bfloat16 teachers."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from conftest import build_llama, prepared_rows, save_model

from llm_finetuner.finetuner import LLMFineTuner

QUICK = {"num_epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}


@pytest.fixture
def rows(tokenizer):
    return prepared_rows(16, len(tokenizer))


@pytest.fixture
def run(student_folder, teacher_folder, tmp_path, rows):
    """Train a fresh student as `method` says and return (finetuner, result)."""

    def train(method: str, teacher: str | None = None, load: dict | None = None, **settings):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        finetuner = LLMFineTuner(student_folder, folder, device="cpu")
        finetuner.load_model(method=method, **(load or {}))
        if method.endswith("distillation"):
            finetuner.load_teacher_model(teacher or teacher_folder)
        if method == "lora":
            finetuner.setup_lora(lora_dropout=0.0)
        return finetuner, finetuner.train(rows, **{**QUICK, **settings})

    return train


def losses(result) -> list[float]:
    return [record["loss"] for record in result.history]


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("method", ["full", "lora", "vanilla_distillation", "feature_distillation"])
def test_bf16_learns_like_fp32(run, method):
    plans: list = []
    listen = {"on_event": lambda kind, record: plans.append(record) if kind == "plan" else None}
    finetuner, half = run(method, precision="bf16", **listen)
    _, whole = run(method, precision="fp32", **listen)
    assert [plan["precision"] for plan in plans] == ["bf16", "fp32"]
    assert losses(half) == pytest.approx(losses(whole), rel=0.02)
    assert losses(half) != losses(whole)  # autocast did something
    moved = [p for p in finetuner.model.parameters() if p.requires_grad]
    assert moved and all(p.dtype == torch.float32 for p in moved)  # the weights themselves stay whole


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("method", ["full", "lora", "feature_distillation"])
def test_gradient_checkpointing_changes_memory_only(run, method):
    calls: list = []

    def count(result_of, **settings):
        finetuner, result = result_of(method, **settings)
        calls.append(finetuner.model.is_gradient_checkpointing)
        return result

    plain, saved = count(run), count(run, gradient_checkpointing=True)
    assert calls == [False, True]
    assert losses(saved) == pytest.approx(losses(plain), rel=1e-6)
    norms = [[record["grad_norm"] for record in result.history] for result in (saved, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and min(norms[0]) > 0


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_every_step(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetuner, result = run("full", trackers=["tensorboard"])
    files = list(Path(finetuner.recipe.output).rglob("events.out.tfevents.*"))
    assert files
    seen: dict[int, float] = {}
    for folder in {file.parent for file in files}:
        events = EventAccumulator(str(folder)).Reload()
        if "loss" in events.Tags()["scalars"]:
            seen |= {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx({record["step"]: record["loss"] for record in result.history}, rel=1e-5)


def test_lora_on_8_bits_takes_steps(run, rows):
    finetuner, result = run("lora", load={"load_in_8bit": True}, num_epochs=1)
    assert finetuner.model.config.quantization_config.load_in_8bit
    assert len(result.history) == 2 and all(math.isfinite(loss) for loss in losses(result))
    moved = {name: p for name, p in finetuner.model.named_parameters() if p.requires_grad}
    assert moved and all("lora_" in name for name in moved)
    assert any(p.abs().sum() > 0 for name, p in moved.items() if "lora_B" in name)  # they start at zero
    assert math.isfinite(finetuner.evaluate(rows)["loss"])


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("method", ["vanilla_distillation", "feature_distillation"])
def test_a_bfloat16_teacher(run, tmp_path, tokenizer, method):
    whole = build_llama(len(tokenizer))
    folder = save_model(tmp_path / "half", build_llama(len(tokenizer)).bfloat16(), tokenizer)
    finetuner, result = run(method, teacher=folder)
    assert finetuner._parts.teacher.dtype in (
        torch.bfloat16,
        torch.float32,
    )  # float32 where the CPU is slow in half
    assert all(math.isfinite(loss) and loss > 0 for loss in losses(result))
    _, want = run(method, teacher=save_model(tmp_path / "whole", whole, tokenizer))
    assert losses(result) == pytest.approx(losses(want), rel=0.02)


def test_a_teacher_held_in_bfloat16(tmp_path, student_folder, tokenizer, rows):
    """Given as an object it stays in half precision, and the student's float32 loss reads it."""
    finetuner = LLMFineTuner(student_folder, tmp_path, device="cpu")
    finetuner.load_model(method="feature_distillation")
    teacher = build_llama(len(tokenizer)).bfloat16()
    finetuner.load_teacher_model(teacher, tokenizer=tokenizer)
    finetuner.setup_feature_distillation(output_weight=1.0)
    for precision in ("fp32", "bf16"):
        result = finetuner.train(rows, **QUICK, precision=precision)
        assert teacher.dtype == torch.bfloat16
        for name in ("loss", "forward_kl", "hidden_mse"):
            assert all(math.isfinite(record[name]) and record[name] > 0 for record in result.history)
