"""How much a forecaster listens to its teacher, chosen on validation: `beta: auto` of forecast_distillation.

Only the share beta / (alpha + beta) matters (objectives/series.py), so there is one number to choose. Each candidate is
a whole run of the same seed, and the one with the best validation error is run again as the run itself: by validation
and never by the training loss, which is smaller for smaller weights. 0, the student alone, is always among them.
"""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner import recipe_file
from llm_finetuner.assembly import Parts
from llm_finetuner.errors import CheckpointError, RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.run import SHARE, spare_models, with_whole_paths, writing
from llm_finetuner.trainer import OnEvent, TrainResult, fit

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def train(
    recipe: Recipe, parts: Parts | None = None, *, resume: bool = False, on_event: OnEvent | None = None
) -> tuple[Recipe, TrainResult]:
    """trainer.fit, the share chosen before where the recipe leaves it open: (the recipe that was run, its result)."""
    chosen = choose(recipe, parts, resume=resume, on_event=on_event)
    begun = any((Path(recipe.output) / "checkpoints").glob("step_*"))
    resume = resume and (begun or chosen == recipe)
    return chosen, fit(chosen, parts, resume=resume, on_event=on_event)


def choose(
    recipe: Recipe, parts: Parts | None = None, *, resume: bool = False, on_event: OnEvent | None = None
) -> Recipe:
    """The recipe with numbers in place of `beta: auto`; any other one as it is.

    The figures of all candidates are kept in share.json in the run's folder; with resume those that are there are not
    computed again. Raises FinetunerError.
    """
    spare_models(recipe)
    folder = Path(recipe.output)
    if not recipe.scheme.undecided:
        if not resume and folder.is_dir():  # of an earlier run there
            (folder / SHARE).unlink(missing_ok=True)
        return recipe
    settings = _settings(recipe)
    kept = found_in(folder) if resume else None
    if kept and kept["settings"] != settings:
        odd = [name for name, value in settings.items() if kept["settings"].get(name) != value]
        raise CheckpointError(
            f"the share in {folder / SHARE} was chosen with other settings: {', '.join(odd)}",
            "resume with the same ones, or start the run without resume",
        )
    measure = resolve(TASKS, recipe.task, "task")().measure
    if kept is None:
        kept = {"settings": settings, "measure": measure.name, "candidates": [], "chosen": None}
        _begin(folder, recipe)
        _keep(folder, kept)  # the folder is a run from here on
    for share in SHARES[len(kept["candidates"]) :]:
        value = _tried(recipe, share, parts or Parts(), resume, on_event)
        kept["candidates"].append({"share": share, "value": value})
        _say(
            on_event, f"a share of {share:g} for the teacher gives a validation {measure.name} of {value:.4f}"
        )
        _keep(folder, kept)
    better = 1 if measure.lower else -1
    kept["chosen"] = min(kept["candidates"], key=lambda one: (better * one["value"], one["share"]))["share"]
    _keep(folder, kept)
    _say(on_event, f"the share of the teacher is {kept['chosen']:g}, of those tried the best on validation")
    chosen = _with(recipe, kept["chosen"])
    recipe_file.save(with_whole_paths(chosen), folder / "recipe.yaml")
    return chosen


def found_in(folder: str | Path) -> dict[str, Any] | None:
    """{"settings", "measure", "candidates": [{"share", "value"}], "chosen"} of a run's folder, if there is one."""
    path = Path(folder) / SHARE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides a candidate's figure, but for places, which may be moved."""
    whole = recipe.to_dict()
    return {
        **{name: whole[name] for name in ("options", "tuning", "train")},
        "series": whole["data"]["series"],
    }


def _begin(folder: Path, recipe: Recipe) -> None:
    """Forget what an earlier run chose, and write down what this one is, so that it can be gone on with."""
    (folder / SHARE).unlink(missing_ok=True)
    shutil.rmtree(folder / "share", ignore_errors=True)
    with writing(folder):
        recipe_file.save(with_whole_paths(recipe), folder / "recipe.yaml")


def _with(recipe: Recipe, share: float) -> Recipe:
    return replace(recipe, options={**recipe.options, "alpha": 1 - share, "beta": share})


def _tried(recipe: Recipe, share: float, parts: Parts, resume: bool, on_event: OnEvent | None) -> float:
    """The best validation figure of a run with this share. Raises RecipeError where nothing is held out."""
    folder = Path(recipe.output) / "share" / f"{share:g}"
    candidate = replace(
        _with(recipe, share), output=str(folder), train=replace(recipe.train, trackers=[], keep_best=True)
    )
    fresh = replace(parts, student=copy.deepcopy(parts.student), tuned=copy.deepcopy(parts.tuned), peers=[])
    again = resume and any((folder / "checkpoints").glob("step_*"))

    def say(kind: str, record: dict[str, Any]) -> None:
        if on_event is not None and kind not in ("checkpoint", "done"):  # of the run itself
            on_event(kind, record)

    metrics = fit(candidate, fresh, resume=again, on_event=say).metrics
    value = metrics[f"eval_{resolve(TASKS, recipe.task)().measure.key}"]
    if value is None:
        raise RecipeError(
            "beta: auto is chosen on validation, and no rows are held out for it", "give beta as a number"
        )
    shutil.rmtree(folder)  # its figure is what it was for
    return value


def _keep(folder: Path, found: dict[str, Any]) -> None:
    with writing(folder):
        (folder / SHARE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _say(on_event: OnEvent | None, text: str) -> None:
    if on_event is not None:
        on_event("note", {"text": text})
