"""Sequences in what is common to all tasks: searches, trackers, every layer watched, caches of a teacher's answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sequences import SMALL, arrays
from sweep_runs import RATE, Heard
from test_trackers import runs_of

from llm_finetuner import recipe_file
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.chain import run_chain, stages_of
from llm_finetuner.data import sar_files, signals
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.gauges import tags
from llm_finetuner.models.s4d import S4DModel
from llm_finetuner.named_models import load_student
from llm_finetuner.run import read_log
from llm_finetuner.sweep import sweep
from llm_finetuner.tasks.sequence_regression import SequenceRegression
from llm_finetuner.trainer import fit


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Many rows of validation, so that half of them choose and half report."""
    folder = tmp_path_factory.mktemp("rows")
    for seed, (part, count) in enumerate({"train": 12, "validation": 80, "test": 4}.items()):
        x, y = arrays(count, seed=seed)
        (folder / part).mkdir()
        np.save(folder / part / "inputs.npy", x.astype(np.complex64))
        np.save(folder / part / "targets.npy", y.astype(np.complex64))
    return str(folder)


def recipe_in(folder, data, method="fine_tuning", **changes):
    shape = {"preset": "teacher", **SMALL, "bidirectional": True}
    student = changes.pop("student", {"name": "s4d", "init": "seed", "shape": shape})
    plan = {
        "steps": 4,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "eval_every": 0,
    }
    return recipe_file.from_dict(
        {
            "task": "sequence_regression", "method": method, "student": student,
            "tuning": {"kind": "full"}, "data": {"source": data}, "output": str(folder),
            "train": {**plan, **changes.pop("train", {})}, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> str:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    fit(recipe_in(folder, data))
    return str(folder)


def test_settings_are_searched_and_told_in_decibels(tmp_path, data, teacher):
    taught = {"teacher": {"name": teacher}, "options": {"gamma": 0.0}}
    recipe = recipe_in(tmp_path / "out", data, "regression_distillation", **taught)
    heard = Heard()
    result = sweep(recipe, {RATE: [1e-4, 2e-2], "options.beta": [0.0, 0.5]}, on_event=heard)
    lines = result["trials"]
    assert len(lines) == 5 and all(line["state"] == "finished" for line in lines)
    assert result["best"]["settings"][RATE] == 2e-2 and not result["report"]["optimistic"]
    winner = result["report"]["winner"]["nmse_db"]
    rows = signals.read(data, 0.1).part("validation")
    task, net = SequenceRegression(), S4DModel.from_pretrained(result["best"]["folder"])
    _, report = task.halves(rows, recipe.train.seed)
    assert winner == pytest.approx(task.measure.value(evaluate(task, net, report)), abs=1e-4)
    told = Path(result["table"]).read_text(encoding="utf-8")
    assert "NMSE" in told and " dB" in told
    again = Heard()
    assert (
        sweep(recipe, {RATE: [1e-4, 2e-2], "options.beta": [0.0, 0.5]}, on_event=again)["best"]
        == result["best"]
    )
    assert not again.tried
    best = recipe_file.load(result["recipe"])
    assert best.train.learning_rate == 2e-2 and best.task == "sequence_regression"


def test_wandb_has_every_layer_of_a_student_of_sequences(tmp_path, data, teacher, monkeypatch):
    """Student alone, for its teacher stands still: terms, norms and histograms, in the steps that are named."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watched = {"watch_every": 2, "trackers": ["wandb"]}
    recipe = recipe_in(tmp_path, data, "regression_distillation", teacher={"name": teacher}, train=watched)
    history = fit(recipe).history
    ((_, logged),) = runs_of(tmp_path)
    assert sorted(logged) == [1, 2, 3, 4]
    for step, items in logged.items():
        record = history[step - 1]
        want = {k: v for k, v in {**record, **tags(record)}.items() if isinstance(v, float)}
        assert {k: items[k] for k in want} == pytest.approx(want, rel=1e-6)
        assert {"mse", "output_mse", "hidden_nmse", "grad_norm"} <= want.keys()
    layers = history[1]["layers"]
    own = {f"student.{name}" for name in ("layers.0", "layers.1", "read_in", "read_out")}
    assert own <= set(layers) and "layers" not in history[0]
    sizes = dict.fromkeys(own, 0)
    for name, weight in S4DModel.from_pretrained(str(tmp_path)).named_parameters():
        sizes[next(layer for layer in own if f"student.{name}.".startswith(f"{layer}."))] += weight.numel()
    for kind in ("gradients", "weights"):
        for name, size in sizes.items():
            assert sum(logged[2][f"{kind}/{name}/values"]) == size, name
            assert f"{kind}/{name}/values" not in logged[1]


@pytest.mark.parametrize("first", [{"alpha": 0, "beta": 0, "gamma": 1}, {"alpha": 1, "beta": 0, "gamma": 0}])
def test_stages_of_a_student_begun_with_its_teacher(tmp_path, data, teacher, first):
    """Hidden states only, or the truth only, then all terms: the second stage begins where the first ended."""
    student = {"name": "s4d", "init": "teacher", "shape": {"preset": "tiny", **SMALL}}
    stages = [{**first, "train.steps": 2}, {"student": "previous"}]
    run = {"student": student, "teacher": {"name": teacher}, "stages": stages}
    recipe = recipe_in(tmp_path, data, "regression_distillation", **run)
    parts = stages_of(recipe)
    assert [(part.student.init, part.teacher.name) for part in parts] == [
        ("teacher", teacher),
        ("auto", teacher),  # of a folder its own weights
    ]
    said = run_chain(recipe)["stages"]
    assert [stage["metrics"]["steps"] for stage in said] == [2, 4] and said[1]["verdict"]["models"]
    histories = [read_log(tmp_path / f"stage_{number}") for number in (1, 2)]
    terms = [{"mse", "output_mse", "hidden_nmse"} & history[0].keys() for history in histories]
    assert terms == [{"mse"} if first["alpha"] else {"hidden_nmse"}, {"mse", "output_mse", "hidden_nmse"}]
    begun = load_student(parts[1], "cpu").state_dict()
    ended = S4DModel.from_pretrained(tmp_path / "stage_1").state_dict()
    assert all(begun[name].equal(weight) for name, weight in ended.items())


def test_answers_on_disk_teach_as_the_teacher_does(tmp_path, data, teacher):
    """In float16, as all of few answers are kept."""
    from llm_finetuner.cache_job import cache_answers

    weights = {"alpha": 0.3, "beta": 0.7, "gamma": 0.0}
    live = recipe_in(
        tmp_path / "live", data, "regression_distillation", teacher={"name": teacher}, options=weights
    )
    cache_answers(live, tmp_path / "cache")
    stored = {"kind": "cached", "options": {"path": str(tmp_path / "cache")}}
    kept = recipe_in(tmp_path / "kept", data, "regression_distillation", teacher=stored, options=weights)
    one, other = (json.dumps([r["output_mse"] for r in fit(recipe).history]) for recipe in (live, kept))
    assert json.loads(one) == pytest.approx(json.loads(other), rel=1e-3)


@pytest.mark.parametrize(
    ("sees", "warned"), [({}, True), ({"delay": 3}, False), ({"bidirectional": True}, False), (None, False)]
)
def test_a_model_that_cannot_see_behind_radar_columns_is_told_of(tmp_path, sees, warned):
    """Of other sequences (None) nobody knows where the answer lies."""
    for name, array in zip(("inputs", "targets"), arrays(), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "meta.json").write_text(json.dumps({} if sees is None else {"kind": sar_files.KIND}))
    recipe = recipe_in(tmp_path / "run", str(tmp_path), train={"steps": 1})
    shape = {**recipe.student.shape, "bidirectional": None, **(sees or {})}
    heard = Heard()
    fit(replace(recipe, student=replace(recipe.student, shape=shape)), on_event=heard)
    (plan,) = heard.of("plan")
    assert any("cannot focus" in words for words in plan["warnings"]) == warned
    if warned:
        tuner = LLMFineTuner("s4d", tmp_path / "facade", task="sequence_regression", shape=shape)
        tuner.load_model()
        with pytest.warns(UserWarning, match="cannot focus"):
            tuner.fit(str(tmp_path), steps=1)
