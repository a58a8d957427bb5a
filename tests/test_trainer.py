"""The loop: order, resume after a kill, faults, interrupts, processes, one forward pass a model a step."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from safetensors.torch import load_file
from training_script import EXACT_BATCH

from llm_finetuner import checkpoint
from llm_finetuner.assembly import Parts
from llm_finetuner.data.order import Order
from llm_finetuner.errors import CheckpointError, DataError, RecipeError, TrainingError
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.trainer import fit

HERE = Path(__file__).parent
STEPS = 8  # of training_script.py: 20 rows, 6 a step, 2 epochs


def run_script(*arguments, processes: int = 1) -> subprocess.CompletedProcess:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(HERE / "training_script.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def recipe_for(folder: Path, method: str = "fine_tuning", tuning: str = "full", **train) -> Recipe:
    teacher = Teacher("t") if method != "fine_tuning" else None
    settings = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, **train}
    return Recipe(
        method=method, tuning=Tuning(tuning), student=Model("s"), teacher=teacher, output=str(folder),
        train=Train(**settings),
    )  # fmt: skip


def parts_for(**more) -> Parts:
    return Parts(**{"student": build_gpt2(64), "train": prepared_rows(20, 64), "device": "cpu", **more})


# ---- order


@pytest.mark.parametrize(
    ("size", "batch", "step"), [(37, 4, 16), (16, 4, 8), (5, 8, 8), (7, 2, 6), (1, 4, 4)]
)
def test_every_example_is_seen_once_an_epoch(size, batch, step):
    order = Order(list(range(3, size + 3)), batch, step, seed=3)
    for epoch in range(3):
        seen: Counter = Counter()
        for number in range(order.steps_per_epoch):
            batches = order.step(epoch * order.steps_per_epoch + number + 1)
            assert all(len(numbers) <= batch and counts for numbers, counts in batches)
            seen.update(n for numbers, _ in batches for n in numbers)
        assert seen == Counter(range(size))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_step_sees_the_same_examples_on_any_number_of_processes(world):
    lengths = list(range(4, 41))
    alone = Order(lengths, 2, 8, seed=1)
    ranks = [Order(lengths, 2, 8, seed=1, rank=rank, world=world) for rank in range(world)]
    for number in range(1, 2 * alone.steps_per_epoch + 1):
        want = Counter(n for numbers, _ in alone.step(number) for n in numbers)
        shares = [rank.step(number) for rank in ranks]
        assert Counter(n for share in shares for numbers, counts in share if counts for n in numbers) == want
        assert len({len(share) for share in shares}) == 1  # every process joins every backward pass


def test_length_grouping_saves_padding():
    lengths = [4 + (i * 37) % 200 for i in range(512)]
    order = Order(lengths, 8, 16, seed=0)
    padded = sum(
        max(lengths[n] for n in numbers) * len(numbers)
        for step in range(1, order.steps_per_epoch + 1)
        for numbers, _ in order.step(step)
    )
    assert padded < 1.15 * sum(lengths)


# ---- resume


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "method", "kill_at"),
    [("full", "feature_distillation", 5), ("adalora", "vanilla_distillation", 3), ("lora", "fine_tuning", 7)],
)
def test_killed_and_resumed_is_bit_identical(tmp_path, tuning, method, kill_at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_script(whole, tuning, method, 0, "new").returncode == 0
    assert run_script(cut, tuning, method, kill_at, "new").returncode == -signal.SIGKILL
    done = run_script(cut, tuning, method, 0, "resume")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "adapter_model.safetensors"):
        assert (whole / name).exists() == (cut / name).exists()
        if (whole / name).exists():
            want, got = load_file(whole / name), load_file(cut / name)
            assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)
    records = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, cut)
    ]
    timing = ("seconds", "tokens_per_second")
    plain = [[{k: v for k, v in r.items() if k not in timing} for r in run] for run in records]
    assert plain[0] == plain[1]
    assert [record["step"] for record in records[1]] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_ctrl_c_and_sigterm_save_and_leave(tmp_path):
    for number, code in ((signal.SIGINT, 1), (signal.SIGTERM, 143)):
        folder = tmp_path / str(number)
        done = run_script(folder, "full", "fine_tuning", 3, "new", int(number))
        assert done.returncode in (code, -number)
        assert [path.name for path in checkpoint.numbered(folder)][-1] == "step_0000003"
        assert checkpoint.load(checkpoint.numbered(folder)[-1])[2]["step"] == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty folder"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(tmp_path, damage):
    fit(recipe_for(tmp_path, steps=4, save_every=2, eval_every=0), parts_for())
    newest = checkpoint.numbered(tmp_path)[-1]
    file = newest / "state.pt"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "delete":
        file.unlink()
    else:
        for path in newest.iterdir():
            path.unlink()
    said: list = []
    fit(
        recipe_for(tmp_path, steps=4, save_every=2, eval_every=0), parts_for(), resume=True,
        on_event=lambda kind, record: said.append((kind, record)),
    )  # fmt: skip
    assert [record["resumed_from"] for kind, record in said if kind == "plan"] == [2]
    assert any(newest.name in record["text"] for kind, record in said if kind == "note")


def test_nothing_to_resume_from_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        fit(recipe_for(tmp_path), parts_for(), resume=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(recipe_for(tmp_path), parts_for())
    with pytest.raises(CheckpointError, match="another model"):
        fit(recipe_for(tmp_path), parts_for(student=build_gpt2(64, layers=3)), resume=True)


def test_a_failed_write_leaves_no_partial_checkpoint(tmp_path):
    """A file stands where the folder should be written: the write fails, what was there stays."""
    target = tmp_path / "checkpoints" / "step_0000001"
    target.parent.mkdir()
    target.write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write"):
        checkpoint.save(target, {"w": torch.ones(2)}, {}, {"step": 1})
    assert [path.name for path in target.parent.iterdir()] == ["step_0000001"]


# ---- processes


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """DDP over gloo against one process, in float64: two epochs end at the same weights, stand-in batches or not."""
    batch, accumulation = EXACT_BATCH
    shares = [
        Order([5] * 20, batch, batch * accumulation, seed=0, rank=rank, world=2).step(1) for rank in (0, 1)
    ]
    assert [[counts for _, counts in share] for share in shares] == [[True, True], [True, False]]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_script(one, "full", "exact", 0, "new").returncode == 0
    done = run_script(two, "full", "exact", 0, "new", processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    want, got = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert want.keys() == got.keys() and max((want[k] - got[k]).abs().max() for k in want) < 1e-9
    assert len((one / "log.jsonl").read_text().splitlines()) == 14  # 20 rows, 3 a step, twice


# ---- cost and faults


@pytest.mark.parametrize("method", ["vanilla_distillation", "feature_distillation"])
def test_one_forward_of_each_model_a_batch(tmp_path, method):
    student, teacher = build_gpt2(64), build_llama(64)
    passes: Counter = Counter()
    student.transformer.register_forward_pre_hook(lambda *_: passes.update(["student"]))
    teacher.model.register_forward_pre_hook(lambda *_: passes.update(["teacher"]))
    # before a pass: one that nobody needs to the end is stopped on the way
    recipe = recipe_for(tmp_path, method, steps=1, gradient_accumulation_steps=2, save_every=0)
    fit(recipe, parts_for(student=student, teacher=teacher))
    checks = 2  # the head of each model is tried once before the run, with and without the trunk
    assert passes == Counter(student=2 + checks, teacher=2 + checks)


def test_a_loss_that_is_not_a_number_stops_before_the_weights_change(tmp_path):
    student = build_gpt2(64)
    with torch.no_grad():
        student.transformer.h[0].ln_1.weight[0] = float("nan")
    before = student.lm_head.weight.detach().clone()
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        fit(recipe_for(tmp_path), parts_for(student=student))
    assert torch.equal(student.lm_head.weight, before)


def steep(student, targets):
    """Zero everywhere, with an infinite slope."""
    return (student[:, 0] * 0).abs().sqrt()


def test_a_broken_gradient_under_a_sound_loss_changes_nothing(tmp_path):
    student = build_gpt2(64)
    before = {name: p.clone() for name, p in student.named_parameters()}
    recipe = replace(
        recipe_for(tmp_path), method="distillation", options={"objectives": {"test_trainer:steep": 1.0}}
    )
    with pytest.raises(TrainingError, match="norm of the gradient is nan at step 1"):
        fit(recipe, parts_for(student=student))
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())


def test_keep_best_restores_the_best_weights_and_patience_stops(tmp_path):
    """A rate far too high makes the evaluations worse and worse."""
    recipe = recipe_for(
        tmp_path, steps=40, learning_rate=0.5, schedule="constant", warmup=0, eval_every=1, patience=3
    )
    held_out = prepared_rows(6, 64, seed=5)
    result = fit(recipe, parts_for(held_out=held_out))
    losses = [record["eval_loss"] for record in result.history]
    best = losses.index(min(losses)) + 1
    assert result.metrics["best_step"] == best and len(losses) == best + 3
    from llm_finetuner.benchmark.quality import evaluate
    from llm_finetuner.tasks.causal_lm import CausalLM

    assert evaluate(CausalLM(), result.tuned.model, held_out).loss == pytest.approx(min(losses), rel=1e-6)


def test_rows_that_do_not_fit_the_model_are_refused(tmp_path):
    with pytest.raises(DataError, match="token id"):
        fit(recipe_for(tmp_path), parts_for(train=prepared_rows(4, 500)))


def test_a_model_that_is_no_run_is_never_overwritten(tmp_path):
    build_gpt2(64).save_pretrained(str(tmp_path / "other"))
    with pytest.raises(RecipeError, match="no run of ours"):
        fit(recipe_for(tmp_path / "other", tuning="lora"), parts_for())
    own = replace(recipe_for(tmp_path / "other"), student=Model(str(tmp_path / "other")))
    with pytest.raises(RecipeError, match="a model of this run"):
        fit(own, parts_for())
    assert (tmp_path / "other" / "model.safetensors").exists()


def test_weights_that_do_not_move_are_not_in_the_checkpoint(tmp_path):
    fit(recipe_for(tmp_path, tuning="lora"), parts_for())
    weights, _, _ = checkpoint.load(checkpoint.numbered(tmp_path)[-1])
    assert weights and all("lora_" in name for name in weights)
