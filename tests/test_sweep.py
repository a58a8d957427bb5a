"""The sweep: trials that go on where they were left, failures, the ranked table and the best recipe."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from classifiers import build_bert, prepared
from conftest import build_gpt2, build_llama
from sweep_runs import RATE, Heard, counting, losses, parts_of, recipe_in
from test_forecasters import SMALL
from test_forecasting import SIZES, table

from llm_finetuner import recipe_file
from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError, TrainingError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.run import read_log
from llm_finetuner.search.shared import share
from llm_finetuner.sweep import sweep
from llm_finetuner.trainer import fit

# ---- a grid, from names to the best recipe


def test_the_guides_grid_ends_in_a_recipe_that_gives_the_same_loss_again(
    tmp_path, student_folder, teacher_folder, data_file
):
    recipe = Recipe(
        method="vanilla_distillation", student=Model(student_folder), teacher=Teacher(teacher_folder),
        data=Data(source=data_file, eval_fraction=0.2), output=str(tmp_path / "out"),
        train=Train(steps=3, batch_size=4, gradient_accumulation_steps=1, learning_rate=5e-3, eval_every=1),
    )  # fmt: skip
    configs = [{"temp": temp, "alpha": alpha} for temp in (2.0, 4.0) for alpha in (0.5, 0.9)]
    result = sweep(recipe, configs)
    lines = result["trials"]
    assert len(lines) == 4, "the recipe as given is one of the four"
    assert [line["settings"] for line in lines if line["given"]] == [{"temperature": 2.0, "alpha": 0.5}]
    assert [line["loss"] for line in lines] == sorted(line["loss"] for line in lines)
    assert lines[0] == result["best"] and lines[0]["difference"] == 0
    for line in lines[1:]:
        assert line["low"] <= line["difference"] <= line["high"]
        assert line["apart"] is False, "8 examples tell nothing apart"
    for line in lines:
        folder = Path(line["folder"])
        own = recipe_file.load(folder / "recipe.yaml")
        assert own.options == line["settings"] and (folder / "model.safetensors").exists()
        assert (folder / "checkpoints").exists() == (line is lines[0]), "losing checkpoints are removed"
        assert json.loads((folder / "training.json").read_text())["eval_loss"] == line["loss"]
    best = recipe_file.load(result["recipe"])
    assert best.output == str(tmp_path / "out" / "best") and best.options == lines[0]["settings"]
    assert fit(best).metrics["eval_loss"] == lines[0]["loss"]
    table = Path(result["table"]).read_text()
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert "temperature | alpha" in head and len(rows) == 4
    for place, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == str(place) and cells[1].split()[0] == str(line["number"])
        assert cells[2:4] == [str(value) for value in line["settings"].values()]
        assert cells[4] == f"{line['loss']:.4f}" and cells[-1] == "finished"
    assert "optimistic" in table and result["report"]["optimistic"]


# ---- going on


def test_after_an_interrupt_only_the_rest_is_run_and_the_result_is_the_same(tmp_path):
    space = {RATE: [1e-3, 1e-1]}
    whole = sweep(recipe_in(tmp_path / "whole"), space, parts=parts_of())

    def interrupt(kind: str, count: int) -> None:
        if kind == "step" and count == 6:  # in the second trial, before its first evaluation is saved
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep(recipe_in(tmp_path / "cut"), space, parts=parts_of(), on_event=Heard(interrupt))
    assert (tmp_path / "cut" / "best.yaml").exists(), "what was finished is kept"
    heard = Heard()
    again = sweep(recipe_in(tmp_path / "cut"), space, parts=parts_of(), on_event=heard)
    assert heard.tried == [1, 2]
    assert [plan["resumed_from"] for plan in heard.of("plan")] == [2, 0]
    assert losses(again) == losses(whole) and [line["state"] for line in again["trials"]] == ["finished"] * 3
    for number in range(3):
        logs = [read_log(tmp_path / name / f"trial_{number:03d}") for name in ("whole", "cut")]
        assert [[r["loss"] for r in log] for log in logs][0] == [r["loss"] for r in logs[1]]
    heard = Heard()
    sweep(recipe_in(tmp_path / "cut"), {RATE: [1e-3, 1e-1, 1e-2]}, parts=parts_of(), on_event=heard)
    assert not heard.tried, "1e-2 is what the recipe gives, and the others were tried"


def test_a_trial_without_its_folder_is_run_again(tmp_path):
    recipe, space = recipe_in(tmp_path), {RATE: [1e-3]}
    sweep(recipe, space, parts=parts_of())
    (tmp_path / "trial_001" / "scores.npz").unlink()
    heard = Heard()
    sweep(recipe, space, parts=parts_of(), on_event=heard)
    assert heard.tried == [1]


def test_checkpoints_of_a_sweep_whose_record_is_gone_are_not_gone_on_with(tmp_path):
    space = {RATE: [1e-3, 1e-4]}
    first = sweep(recipe_in(tmp_path), space, parts=parts_of())
    best = Path(first["best"]["folder"])
    assert (best / "checkpoints").exists()
    (tmp_path / "sweep.json").unlink()
    heard = Heard()
    sweep(recipe_in(tmp_path), {RATE: [2e-3, 2e-4]}, parts=parts_of(), on_event=heard)
    assert [plan["resumed_from"] for plan in heard.of("plan")] == [0, 0, 0]


def test_another_recipe_other_rows_or_other_weights_are_refused(tmp_path):
    space = {RATE: [1e-3]}
    sweep(recipe_in(tmp_path), space, parts=parts_of())
    with pytest.raises(RecipeError, match=r"recipe\.train\.steps was 4, now it is 5"):
        sweep(recipe_in(tmp_path, steps=5), space, parts=parts_of())
    with pytest.raises(RecipeError, match="training rows was"):
        sweep(recipe_in(tmp_path), space, parts=parts_of(train=counting(17)))
    with pytest.raises(RecipeError, match="held-out rows was"):
        sweep(recipe_in(tmp_path), space, parts=parts_of(held_out=13))
    with pytest.raises(RecipeError, match="weights of the student was"):
        sweep(recipe_in(tmp_path), space, parts=parts_of(student=build_gpt2(64, seed=5)))


# ---- failures


def test_a_failing_trial_is_recorded_and_the_others_go_on(tmp_path):
    recipe = recipe_in(tmp_path, "vanilla_distillation", max_grad_norm=0)
    parts = parts_of(teacher=build_llama(64))
    configs = [{RATE: 1e30}, {"alpha": 7}, {RATE: 1e-3}]
    result = sweep(recipe, configs, parts=parts)
    states = {line["number"]: (line["state"], line["error"]) for line in result["trials"]}
    assert states[1][0] == "failed" and "loss" in states[1][1]
    assert states[2][0] == "failed" and "alpha must be a number between 0 and 1, got 7" in states[2][1]
    assert states[0][0] == states[3][0] == "finished"
    assert "alpha must be" in Path(result["table"]).read_text()
    heard = Heard()
    sweep(recipe, configs, parts=parts, on_event=heard)
    assert not heard.tried
    with pytest.raises(TrainingError, match="no trial finished: the loss"):
        sweep(
            recipe_in(tmp_path / "b", learning_rate=1e30, max_grad_norm=0), {RATE: [2e30]}, parts=parts_of()
        )


# ---- uncertainty


def test_halves_choose_and_report_and_what_is_far_worse_is_told_apart(tmp_path):
    parts = parts_of(held_out=80)
    # a decay that float32 cannot hold: two trials that differ in nothing, whatever the kernels round
    space = {RATE: [3e-2], "train.weight_decay": [0.0, 1e-12]}
    result = sweep(recipe_in(tmp_path, learning_rate=1e-9), space, parts=parts)
    by = {line["number"]: line for line in result["trials"]}
    assert by[0]["apart"] is True and by[0]["low"] > 0
    near = by[3 - result["best"]["number"]]
    assert near["apart"] is False
    report = result["report"]
    assert (report["examples"], report["optimistic"], report["paid"]) == (40, False, "yes")
    assert report["winner"]["low"] < report["winner"]["perplexity"] < report["winner"]["high"]
    halves = [np.load(tmp_path / "trial_000" / "scores.npz")[f"{name}_nll"] for name in ("choose", "report")]
    tokens = [
        np.load(tmp_path / "trial_000" / "scores.npz")[f"{name}_tokens"] for name in ("choose", "report")
    ]
    assert [len(half) for half in halves] == [40, 40]
    assert by[0]["loss"] == pytest.approx(halves[0].sum() / tokens[0].sum(), rel=1e-12)
    assert report["given"]["loss"] == pytest.approx(halves[1].sum() / tokens[1].sum(), rel=1e-12)
    lengths = sorted(len(row) - 1 for row in parts.held_out["input_ids"])
    assert sorted(np.concatenate(tokens)) == lengths, "every held-out row is in one of the halves"
    assert "The search paid" in Path(result["table"]).read_text()


def test_several_seeds_give_a_mean_and_its_spread(tmp_path):
    recipe, space = recipe_in(tmp_path), {RATE: [1e-3]}
    one = sweep(recipe, space, parts=parts_of())
    heard = Heard()
    result = sweep(recipe, space, seeds=2, parts=parts_of(), on_event=heard)
    assert heard.tried == [0, 1] and len(heard.of("plan")) == 2, "only the second seed is run"
    for line in result["trials"]:
        folder = Path(line["folder"])
        own = [
            json.loads((place / "training.json").read_text())["eval_loss"]
            for place in (folder, folder / "seed_1")
        ]
        assert own[0] == losses(one)[line["number"]] and own[0] != own[1]
        assert line["loss"] == pytest.approx(sum(own) / 2) and line["sd"] == pytest.approx(
            abs(own[0] - own[1]) / math.sqrt(2)
        )
        assert recipe_file.load(folder / "seed_1" / "recipe.yaml").train.seed == recipe.train.seed + 1
    assert recipe_file.load(result["recipe"]).train == replace(
        recipe.train, learning_rate=result["best"]["settings"].get(RATE, 1e-2)
    )
    assert "+-" in Path(result["table"]).read_text()


def test_a_search_among_classifiers_reports_accuracy(tmp_path):
    """Two seeds: what is right of each row is their mean."""
    recipe = replace(recipe_in(tmp_path, learning_rate=1e-9), task="classification")
    parts = Parts(student=build_bert(), train=prepared(16), held_out=prepared(80, seed=1), device="cpu")
    result = sweep(recipe, {RATE: [3e-2]}, parts=parts, seeds=2)
    report, table = result["report"], Path(result["table"]).read_text()
    assert "| loss, nats a text |" in table and "perplexity" not in table
    for name, trial in (("winner", result["best"]["number"]), ("given", 0)):
        folder = tmp_path / f"trial_{trial:03d}"
        seeds = [np.load(place / "scores.npz") for place in (folder, folder / "seed_1")]
        share = np.mean([scores["report_right"].mean() for scores in seeds])
        assert report[name]["accuracy"] == pytest.approx(share, rel=1e-12)
        assert f"{100 * share:.1f} % ({100 * report[name]['low']:.1f} % to" in table
    assert re.search(r"other held-out examples, which chose nothing: accuracy \d+\.\d %", table)


# ---- what trials share


def test_peers_learn_anew_in_every_trial(tmp_path):
    recipe = recipe_in(tmp_path / "sweep", "online_distillation")
    result = sweep(recipe, {RATE: [2e-2]}, parts=parts_of(peers=[build_gpt2(64, seed=3)]))
    alone = replace(recipe, output=str(tmp_path / "alone"), train=replace(recipe.train, learning_rate=2e-2))
    figures = fit(alone, parts_of(peers=[build_gpt2(64, seed=3)])).metrics
    assert losses(result)[1] == figures["eval_loss"]


def test_a_live_student_is_left_as_it_was(tmp_path):
    student, teacher = build_gpt2(64), build_llama(64)
    parts = parts_of(student=student, teacher=teacher)
    sweep(recipe_in(tmp_path, "vanilla_distillation"), {"temp": [1.0]}, parts=parts)
    assert parts.student is student and parts.tuned is None and parts.teacher is teacher
    fresh = build_gpt2(64).state_dict()
    assert all(value.equal(fresh[name]) for name, value in student.state_dict().items())


# ---- of forecasters


def test_forecasters_are_searched_on_earlier_windows_and_reported_on_later_ones(tmp_path):
    table(600).to_csv(tmp_path / "rows.csv", index=False)
    recipe = recipe_file.from_dict(
        {
            "task": "forecasting", "method": "forecast_distillation", "teacher": {"name": "linear"},
            "student": {"name": "patch", "shape": {**SMALL, "num_layers": 1}}, "tuning": {"kind": "full"},
            "data": {"source": str(tmp_path / "rows.csv"), "series": {**SIZES, "split": "60-30-10"}},
            "train": {"steps": 3, "batch_size": 8, "eval_every": 0}, "output": str(tmp_path / "out"),
        }
    )  # fmt: skip
    heard = Heard()
    result = sweep(recipe, {RATE: [1e-3, 1e-2]}, on_event=heard)
    assert len(result["trials"]) == 3 and all(line["state"] == "finished" for line in result["trials"])
    assert not result["report"]["optimistic"] and result["report"]["winner"]["mse"] > 0
    told = Path(result["table"]).read_text(encoding="utf-8")
    assert (
        "| MSE |" in told and "bootstrap" not in told and "Told apart: Student's t over runs of neigh" in told
    )
    assert "other held-out windows (as much as " in told and " examples" not in told
    assert (
        sweep(recipe, {RATE: [1e-3, 1e-2]}, on_event=Heard())["best"] == result["best"]
    )  # nothing is run again
    scores = np.load(Path(result["best"]["folder"]) / "scores.npz")
    assert scores["choose_span"] == 4 and len(scores["choose_nll"]) + len(scores["report_nll"]) == 180 - 3 - 3
    few = replace(
        recipe, output=str(tmp_path / "few")
    )  # 87 windows to choose on, as much as 21 that do not overlap
    table(300).to_csv(tmp_path / "rows.csv", index=False)
    assert set(share(few, Parts(), [], lambda note: None).rows) == {"choose"}
    other = table(600, seed=5)
    other.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(RecipeError, match="training rows was"):
        sweep(recipe, {RATE: [1e-3]})
