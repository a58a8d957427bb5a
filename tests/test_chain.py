"""A chain that is interrupted and moved goes on as if it had not been; one with other settings does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from step_reference import Stopped

from llm_finetuner.chain import run_chain
from llm_finetuner.errors import CheckpointError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.recipe_file import load


@pytest.fixture
def recipe(student_folder, teacher_folder, data_file):
    return Recipe(
        method="vanilla_distillation", student=Model(student_folder), teacher=Teacher(teacher_folder),
        data=Data(data_file, samples=12, max_length=32), stages=[{}, {"student": student_folder}],
        train=Train(steps=2, batch_size=4, gradient_accumulation_steps=1, save_every=1),
    )  # fmt: skip


def stop_in(stage: int):
    """Ends a chain in the last step of a stage, after a checkpoint."""
    at = 0

    def on_event(kind: str, record: dict) -> None:
        nonlocal at
        at = record["number"] if kind == "stage" else at
        if (kind, at, record.get("step")) == ("step", stage, 2):
            raise Stopped

    return on_event


def test_a_chain_that_was_moved_goes_on(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)  # the folder is named as users do
    whole = run_chain(replace(recipe, output="whole"), compare=False)
    with pytest.raises(Stopped):
        run_chain(replace(recipe, output="old"), compare=False, on_event=stop_in(2))
    stamp = Path("old/stage_1/training.json").stat().st_mtime_ns
    Path("elsewhere").mkdir()
    Path("old").rename("elsewhere/new")
    said = run_chain(replace(recipe, output="elsewhere/new"))
    assert Path("elsewhere/new/stage_1/training.json").stat().st_mtime_ns == stamp
    for number, (stage, other) in enumerate(zip(said["stages"], whole["stages"], strict=True), 1):
        assert stage["output"] == str(tmp_path / f"elsewhere/new/stage_{number}")
        assert stage["verdict"]["models"] and stage["metrics"]["final_loss"] == other["metrics"]["final_loss"]
        got, want = (load_file(f"{place['output']}/model.safetensors") for place in (stage, other))
        assert all(torch.equal(got[name], want[name]) for name in want)
    kept = load("elsewhere/new/stage_2/recipe.yaml")
    assert kept.teacher.name == str(tmp_path / "elsewhere/new/stage_1")
    written = json.loads(Path("elsewhere/new/chain.json").read_text())
    assert [stage["output"] for stage in written["stages"]] == ["stage_1", "stage_2"]


def test_other_settings_are_refused_wherever_the_folder_is(tmp_path, recipe):
    recipe = replace(recipe, output=str(tmp_path / "old"))
    with pytest.raises(Stopped):
        run_chain(recipe, compare=False, on_event=stop_in(1))
    (tmp_path / "old").rename(tmp_path / "new")
    other = replace(recipe, output=str(tmp_path / "new"), options={"temperature": 3.0})
    with pytest.raises(CheckpointError, match="stage 1 in .*new.* was begun with other settings: options"):
        run_chain(other, compare=False)
