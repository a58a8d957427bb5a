"""Progressive distillation: stages of one recipe, each student the next one's teacher, each with its verdict.

Mirzadeh et al. 2020, teacher assistants (arXiv 1902.03393); Furlanello et al. 2018, born-again networks, where every
stage has the same shape (arXiv 1805.04770).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner import share
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import CheckpointError, RecipeError
from llm_finetuner.recipe import Model, Recipe, Teacher
from llm_finetuner.recipe_file import change, load, save
from llm_finetuner.run import with_whole_paths
from llm_finetuner.trainer import OnEvent, fit

PREVIOUS = "previous"  # a stage's student: the one before, trained on
MADE = {"from_scratch": False, "mixer": Model.mixer}  # which is as it was made


def stages_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of every stage, in <output>/stage_1, stage_2, ... Raises RecipeError naming the stage.

    A stage changes settings of the recipe; a string names its student, whose weights are loaded. The teacher is the
    student of the stage before, unless the stage names one or its student is "previous": then the model before is
    trained on, with its teacher.
    """
    found: list[Recipe] = []
    for number, changes in enumerate(recipe.stages, 1):
        changes = {"student": changes} if isinstance(changes, str) else changes
        if not isinstance(changes, dict):
            raise RecipeError(
                f"stage {number} must be a student's name or settings to change, got {changes!r}"
            )
        try:
            found.append(_stage(recipe, found, changes, number))
        except RecipeError as error:
            raise RecipeError(f"stage {number}: {error.what}", error.hint) from error
    return found


def _stage(recipe: Recipe, before: Sequence[Recipe], changes: dict[str, Any], number: int) -> Recipe:
    base = replace(recipe, stages=[], output=f"{recipe.output}/stage_{number}")
    stage = change(base, changes.items())
    section = changes.get("student", {})
    given = {f"student.{name}" for name in section} if isinstance(section, dict) else {"student.name"}
    given |= changes.keys()
    # whoever names a model means its weights
    if "student.name" in given and "student.from_scratch" not in given:
        stage = replace(stage, student=replace(stage.student, from_scratch=False))
    on = stage.student.name == PREVIOUS
    if on:
        if not before:
            raise RecipeError("the first stage has no previous student", "name its student")
        stage = replace(stage, student=replace(stage.student, name=before[-1].output, **MADE))
        if before[-1].tuning.kind != "full":
            raise RecipeError(
                f"the stage before trains an adapter ({before[-1].tuning.kind}), which cannot be trained on",
                "tuning: {kind: full} there, or another student here",
            )
    names_teacher = any(key.split(".")[0] == "teacher" for key in changes)
    if before and not names_teacher:
        teacher = replace(recipe.teacher or Teacher(), name=before[-1].output, kind="live", options={})
        stage = replace(stage, teacher=before[-1].teacher if on else teacher)
    return stage if stage.distils else replace(stage, teacher=None)


def run_chain(
    recipe: Recipe,
    *,
    compare: bool = True,
    baseline: bool = False,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Run what is left of the stages: {"output", "stages": [{"output", "metrics", "verdict"}]}, also in chain.json.

    Stages that are finished are kept, and one that was interrupted goes on from its checkpoint, also where the folder
    was moved in between. Raises FinetunerError.
    """
    say = on_event or (lambda kind, record: None)
    stages = stages_of(replace(recipe, output=os.path.abspath(recipe.output)))
    if not stages:
        raise RecipeError("the recipe has no stages", "stages: [student, student, ...]")
    done = []
    for number, stage in enumerate(stages, 1):
        say(
            "stage",
            {"number": number, "of": len(stages), "student": stage.student.name, "output": stage.output},
        )
        folder = Path(stage.output)
        stage = share.choose(stage, resume=True, on_event=on_event)
        begun = _begun(stage, number)
        if not (folder / "training.json").exists():
            fit(stage, resume=begun, on_event=on_event)
        about = {"output": stage.output, "metrics": _read(folder / "training.json")}
        if compare and stage.distils:
            verdict = folder / "metrics.json"
            about["verdict"] = (
                _read(verdict)
                if verdict.exists()
                else compare_run(folder, baseline=baseline, on_event=on_event)
            )
        done.append(about)
    kept = [{**about, "output": Path(about["output"]).name} for about in done]  # the folder may be moved
    (Path(recipe.output) / "chain.json").write_text(json.dumps({"stages": kept}, indent=1), encoding="utf-8")
    return {"output": recipe.output, "stages": done}


def _begun(stage: Recipe, number: int) -> bool:
    """Whether the stage left a checkpoint to go on from. Raises CheckpointError where its settings were others.

    Where the chain's folder was moved since, the stage's recipe is written again with the places of now.
    """
    folder = Path(stage.output)
    if not (folder / "recipe.yaml").exists():
        return False
    kept = load(folder / "recipe.yaml")
    data = replace(stage.data, max_length=kept.data.max_length)  # it is held to the model's positions
    present = with_whole_paths(replace(stage, data=data))
    then, now = _inside(kept), _inside(present)
    odd = [name for name in now if then[name] != now[name]]
    if odd:
        raise CheckpointError(
            f"stage {number} in {folder} was begun with other settings: {', '.join(odd)}",
            "remove that folder and those of the later stages, or choose another output",
        )
    if kept != present:
        save(present, folder / "recipe.yaml")
    return any((folder / "checkpoints").glob("step_*"))


def _inside(stage: Recipe) -> dict[str, Any]:
    """The settings, with paths in the chain's folder as seen from there."""
    chain = os.path.dirname(os.path.abspath(stage.output))

    def seen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: seen(item) for key, item in value.items()}
        if isinstance(value, list):
            return [seen(item) for item in value]
        inside = isinstance(value, str) and value.startswith(chain + os.sep)
        return os.path.relpath(value, chain) if inside else value

    return seen({**stage.to_dict(), "output": os.path.abspath(stage.output)})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
