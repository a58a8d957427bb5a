"""beta: auto: the share that validation prefers, found by whole runs, kept, and found again."""

import json
import os
import signal

import pytest
import torch
import yaml
from test_forecasting import recipe, source, table  # noqa: F401  a fixture
from transformers import AutoModel

from llm_finetuner import share
from llm_finetuner.cli.app import main
from llm_finetuner.cli.progress import View
from llm_finetuner.errors import CheckpointError, RecipeError
from llm_finetuner.recipe_file import load
from llm_finetuner.run import is_run
from llm_finetuner.trainer import fit

AUTO = {"options": {"beta": "auto"}, "train": {"steps": 6, "eval_every": 2}}


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_share_is_the_one_that_a_comparison_by_hand_finds(tmp_path, source, shuffled):  # noqa: F811
    teacher = {"name": "linear", "shuffled": shuffled}
    hand = {
        part: fit(
            recipe(tmp_path / f"hand_{part}", source, options={"alpha": 1 - part, "beta": part},
                   train=AUTO["train"], teacher=teacher)
        )
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    }  # fmt: skip
    chosen, result = share.train(recipe(tmp_path / "run", source, **AUTO, teacher=teacher))
    values = {part: one.metrics["eval_mse"] for part, one in hand.items()}
    kept = json.loads((tmp_path / "run" / "share.json").read_text())
    assert {one["share"]: one["value"] for one in kept["candidates"]} == values
    best = min(values, key=values.get)
    assert kept["chosen"] == best and chosen.options["beta"] == best and chosen.options["alpha"] == 1 - best
    for one, other in zip(hand[best].tuned.model.parameters(), result.tuned.model.parameters(), strict=True):
        assert torch.equal(one, other)
    written = load(tmp_path / "run" / "recipe.yaml")
    assert written.options == chosen.options and not (tmp_path / "run" / "share" / "0.5").exists()


def test_test_rows_choose_nothing(tmp_path, source):  # noqa: F811
    first, _ = share.train(recipe(tmp_path / "a", source, **AUTO))
    changed = table()
    changed.loc[240:, ["c0", "c1", "c2"]] *= -3
    changed.to_csv(source, index=False)
    second, _ = share.train(recipe(tmp_path / "b", source, **AUTO))
    assert first.options == second.options
    assert share.found_in(tmp_path / "a")["candidates"] == share.found_in(tmp_path / "b")["candidates"]


def test_what_was_tried_is_not_tried_again(tmp_path, source):  # noqa: F811
    whole, _ = share.train(recipe(tmp_path / "whole", source, **AUTO))
    open_ = recipe(tmp_path / "run", source, **AUTO)
    plans = []

    def stop(kind, record):
        plans.append(kind == "plan")
        if sum(plans) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share.train(open_, on_event=stop)
    assert len(share.found_in(tmp_path / "run")["candidates"]) == 2 and is_run(tmp_path / "run")
    plans.clear()
    chosen, _ = share.train(
        load(tmp_path / "run" / "recipe.yaml"),
        resume=True,
        on_event=lambda kind, _: plans.append(kind == "plan"),
    )
    assert sum(plans) == 3 + 1 and chosen.options == whole.options  # three candidates, and the run
    plans.clear()
    assert share.choose(open_, resume=True, on_event=lambda kind, _: plans.append(kind == "plan")) == chosen
    assert not any(plans)
    other = recipe(tmp_path / "run", source, options=AUTO["options"], train={"steps": 4})
    with pytest.raises(CheckpointError, match="chosen with other settings: train"):
        share.choose(other, resume=True)
    share.train(recipe(tmp_path / "run", source, **AUTO))  # and begun anew without resume
    assert len(share.found_in(tmp_path / "run")["candidates"]) == 5


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_ctrl_c_in_the_first_trial_loses_nothing(tmp_path, source, stopped_at, capsys, monkeypatch):  # noqa: F811
    """The command says what is kept and how to go on, and the end is that of a run that nobody stopped."""
    whole, result = share.train(recipe(tmp_path / "whole", source, **AUTO))
    run, path = str(tmp_path / "run"), tmp_path / "auto.yaml"
    path.write_text(yaml.safe_dump(recipe(run, source, **AUTO).to_dict()))

    def stop(view, record):
        steps.append(record["step"])
        if len(steps) == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)

    steps = []
    monkeypatch.setattr(View, "_step", stop)
    assert main(["run", str(path), "--no-compare"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"{run}/share/0/checkpoints/step_{stopped_at:07d}" in said and f"resume {run}" in said
    assert share.found_in(run)["candidates"] == [] and is_run(run)
    steps[:] = [0] * stopped_at  # and not again
    assert main(["resume", run, "--no-compare"]) == 0
    assert steps[stopped_at:6] == list(range(stopped_at + 1, 7))  # the first trial went on where it stood
    assert share.found_in(run)["candidates"] == share.found_in(tmp_path / "whole")["candidates"]
    kept = AutoModel.from_pretrained(run)
    for one, other in zip(kept.parameters(), result.tuned.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert load(f"{run}/recipe.yaml").options == whole.options


def test_ctrl_c_before_the_first_step_says_that_nothing_was_saved(tmp_path, source, capsys, monkeypatch):  # noqa: F811
    def stop(view, record):
        raise KeyboardInterrupt

    path, run = tmp_path / "auto.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe(run, source, **AUTO).to_dict()))
    monkeypatch.setattr(View, "_plan", stop)
    assert main(["run", str(path), "--no-compare"]) == 130
    assert "No step was finished, so nothing was saved." in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["run", str(path), "--no-compare"]) == 2 and f"resume {run}" in capsys.readouterr().err
    assert main(["run", str(path), "--no-compare", "--overwrite"]) == 0


def test_what_contradicts_itself_is_refused(tmp_path, source):  # noqa: F811
    with pytest.raises(RecipeError, match="alpha=0.3 and beta=auto"):
        recipe(tmp_path / "run", source, options={"alpha": 0.3, "beta": "auto"})
    with pytest.raises(RecipeError, match="beta must be a number"):
        recipe(tmp_path / "run", source, options={"beta": "much"})
    with pytest.raises(RecipeError, match="chosen before a run"):
        fit(recipe(tmp_path / "one", source, options={"beta": "auto"}))
    numbers = recipe(tmp_path / "run", source)
    assert share.choose(numbers) is numbers and not (tmp_path / "run").exists()


def test_a_recipe_is_run_by_the_command_line(tmp_path, source, capsys):  # noqa: F811
    path = tmp_path / "auto.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", source, **AUTO).to_dict()))
    assert main(["run", str(path), "--no-compare"]) == 0
    assert (
        load(tmp_path / "run" / "recipe.yaml").options["beta"] == share.found_in(tmp_path / "run")["chosen"]
    )
