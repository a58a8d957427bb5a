"""A chain of stages at the command line: checked, shown, run, gone on with. Heavy imports stand inside."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.console import evaluated
from llm_finetuner.cli.exits import TERMINATED, program
from llm_finetuner.cli.fitting import check_fit
from llm_finetuner.cli.folder import OTHER, check_shared
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.needed import check_complete, is_part
from llm_finetuner.cli.plain import count, duration
from llm_finetuner.cli.training import print_recipe, saved
from llm_finetuner.errors import FinetunerError, RecipeError
from llm_finetuner.recipe import Recipe, Teacher
from llm_finetuner.run import is_run, whole_path, with_whole_paths

FILE = "chain.yaml"  # the recipe of a chain, in its folder
NAMES = ("student", "teacher", "student.name", "teacher.name")  # of models, in what a stage changes


def is_chain(folder: str | Path) -> bool:
    """Whether a chain of ours began in the folder."""
    return (Path(folder) / FILE).is_file()


def start(recipe: Recipe, given: dict[str, Any], screen) -> Any:
    """Check, then show every stage's recipe (--dry-run) or run the chain."""
    from llm_finetuner.chain import stages_of

    _check_seeds(given)
    stages = stages_of(recipe)
    for number, stage in enumerate(stages, 1):
        try:
            check_complete(stage)
        except RecipeError as error:
            raise RecipeError(f"stage {number}: {error.what}", error.hint) from error
    if given.get("dry_run"):
        return _show(stages, screen)
    check(recipe, stages, given.get("overwrite", False))
    check_stages(recipe)
    return run(recipe, screen, not given.get("no_compare"), given.get("baseline", False))


def _check_seeds(given: dict[str, Any]) -> None:
    if given.get("seeds", 1) != 1:
        raise RecipeError(
            "the stages of a chain are compared with one seed each",
            f"{program()} compare STAGE --seeds N afterwards",
        )


def _show(stages: list[Recipe], screen) -> list[dict[str, Any]]:
    for number, stage in enumerate(stages, 1):
        for words in stage.warnings():
            screen.warn(f"stage {number}: {words}")
        if not screen.as_json:
            print(f"{'---' * (number > 1)}\n# stage {number} of {len(stages)}".lstrip())
            print_recipe(stage)
    return [stage.to_dict() for stage in stages]


def check_stages(recipe: Recipe) -> None:
    """Raise RecipeError or DataError for what will stop a stage and can be known before the first one begins."""
    for number, stage in enumerate(as_planned(recipe), 1):
        try:
            check_fit(stage)
        except FinetunerError as error:
            raise type(error)(f"stage {number}: {error.what}", error.hint) from error


def check(recipe: Recipe, stages: list[Recipe], overwrite: bool) -> None:
    """Refuse a folder that the chain may not write to. Raises RecipeError."""
    folder = Path(recipe.output)
    if is_chain(folder) and not overwrite:
        raise RecipeError(
            f"{recipe.output} already holds a chain",
            f"go on with it: {program()} resume {recipe.output}; replace it: --overwrite; or {OTHER}",
        )
    for stage in stages:
        check_shared(_of_others(replace(stage, output=recipe.output), folder), (FILE,))


def _of_others(recipe: Recipe, folder: Path) -> Recipe:
    """Without the models that stages of the chain make."""

    def ours(name: str) -> bool:
        return Path(name).resolve().is_relative_to(folder.resolve()) and Path(name).name.startswith("stage_")

    student = replace(recipe.student, name="") if ours(recipe.student.name) else recipe.student
    teacher = recipe.teacher
    if teacher is not None and teacher.name and ours(teacher.name):
        teacher = None
    return replace(recipe, student=student, teacher=teacher)


def run(recipe: Recipe, screen, compare: bool, baseline: bool) -> Any:
    """Begin anew: what an earlier chain left in the folder goes, then the stages one after the other."""
    from llm_finetuner import recipe_file

    folder = Path(recipe.output)
    if is_chain(folder):
        for old in folder.glob("stage_*"):
            if is_run(old):
                shutil.rmtree(old)
        (folder / "chain.json").unlink(missing_ok=True)
    recipe_file.save(replace(_whole(recipe), output=str(folder.resolve())), folder / FILE)
    return _run(recipe_file.load(folder / FILE), recipe.output, screen, compare, baseline)


def resume(given: dict[str, Any], screen) -> Any:
    """Go on with a chain: stages that are finished are kept."""
    from llm_finetuner.recipe_file import load

    _check_seeds(given)
    recipe = load(Path(given["run"]) / FILE)
    if not Path(recipe.output).is_dir():  # it was moved
        recipe = replace(recipe, output=str(Path(given["run"]).resolve()))
    return _run(recipe, given["run"], screen, not given.get("no_compare"), given.get("baseline", False))


def _run(recipe: Recipe, typed: str, screen, compare: bool, baseline: bool) -> Any:
    from llm_finetuner.cli.progress import View

    folder = recipe.output

    def as_typed(path: str) -> str:
        return typed + path.removeprefix(folder) if path.startswith(folder) else path

    view, where = View(screen), [typed]

    def on_event(kind: str, record: dict[str, Any]) -> None:
        if "output" in record:
            record = {**record, "output": as_typed(record["output"])}
            where[0] = record["output"]
        view(kind, record)

    try:
        with view:
            from llm_finetuner.chain import run_chain, stages_of

            first, *_ = stages_of(recipe)
            prepare([*names_in(first), *named_students(recipe)], screen.warn)
            said = run_chain(recipe, compare=compare, baseline=baseline, on_event=on_event)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(saved(view, where[0], typed)) from stop
    except SystemExit as stop:
        if stop.code == TERMINATED:
            screen.show(f"Terminated. {saved(view, where[0], typed)}")
        raise
    for stage in said["stages"]:
        stage["output"] = as_typed(stage["output"])
    said["output"] = typed
    _sum_up(said, screen)
    return said


def _sum_up(said: dict[str, Any], screen) -> None:
    """Each stage's verdict, then the stages in one table."""
    for number, stage in enumerate(said["stages"], 1):
        if "verdict" in stage:
            screen.heading(f"Stage {number}")
            screen.verdict(stage["verdict"])
            screen.show(f"report: {os.path.join(stage['output'], 'report.html')}")
    rows = []
    for number, stage in enumerate(said["stages"], 1):
        figures = stage["metrics"]
        rows.append(
            [
                str(number),
                count(figures["parameters"]),
                str(figures["steps"]),
                duration(figures["seconds"]),
                evaluated(figures) or "-",
                stage["output"],
            ]
        )
    screen.heading("Stages")
    screen.table(["stage", "parameters", "steps", "time", "held-out rows", "model"], rows)


def named_students(recipe: Recipe) -> list[str]:
    """The models that stages name as their students, and nothing else of them."""
    return [stage for stage in recipe.stages if isinstance(stage, str) and not is_part(stage)]


def _whole(recipe: Recipe) -> Recipe:
    """With the full paths of what lies on this disk, the stages' models included."""

    def whole(changes: Any) -> Any:
        if isinstance(changes, str):
            return whole_path(changes)
        return {k: whole_path(v) if k in NAMES and isinstance(v, str) else v for k, v in changes.items()}

    return replace(with_whole_paths(recipe), stages=[whole(stage) for stage in recipe.stages])


def chain_of(recipe: Recipe, students: list[str], scratch: Sequence[int] = ()) -> Recipe:
    """The recipe whose stages have these students, the largest first; those of the stages in `scratch` are new."""
    stages = [
        {"student": name, "student.from_scratch": True} if number in scratch else name
        for number, name in enumerate(students, 1)
    ]
    student = replace(recipe.student, name=students[0], from_scratch=1 in scratch)
    return replace(recipe, student=student, stages=stages)


def as_planned(recipe: Recipe) -> list[Recipe]:
    """The stages with the names that their models have now, to be measured before any of them is trained."""
    from llm_finetuner.chain import stages_of
    from llm_finetuner.named_models import has_new_weights

    found: list[Recipe] = []
    for stage in stages_of(recipe):
        before = {f"{recipe.output}/stage_{i}": earlier for i, earlier in enumerate(found, 1)}
        if stage.student.name in before:
            stage = replace(stage, student=replace(before[stage.student.name].student, init="seed"))
        if stage.teacher is not None and stage.teacher.name in before:
            earlier = before[stage.teacher.name]  # a part of its teacher is taken for the whole
            part = is_part(earlier.student.name)
            student = earlier.student  # its weights are new now, and trained by then
            taught = Teacher(student.name, from_scratch=has_new_weights(student), shape=student.shape)
            stage = replace(stage, teacher=earlier.teacher if part else taught)
        found.append(stage)
    return found
