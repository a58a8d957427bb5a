"""What can be known of a run of forecasters before anything is loaded: settings, columns, rows, models and their sizes.

Only `check_shapes` needs torch.
"""

import dataclasses
from pathlib import Path
from typing import Any

from llm_finetuner.cli import imports
from llm_finetuner.cli.configs import config_of, depth_of, is_forecaster
from llm_finetuner.cli.hub import models_in
from llm_finetuner.cli.needed import compares_blocks, is_part, teachers_heard
from llm_finetuner.errors import RecipeError
from llm_finetuner.models.build import BACKBONES, untrained
from llm_finetuner.recipe import Data, Model, Recipe, members_of
from llm_finetuner.recipe_series import FORECASTING, OF_SEQUENCES, REGRESSION, Series, shares_of
from llm_finetuner.registry import MODELS, resolve, unknown

READ = ("source", "series", "hard_share", "eval_samples")  # what forecasting reads of the data's settings
HELD = ("load_in_4bit", "load_in_8bit", "dtype", "from_scratch")  # of models that are loaded
UNTRAINED = ("time_llm", "patch")  # built here, they know nothing yet
NAIVE = ("repeat-last", "seasonal-naive")  # they have no weights
WITHOUT_BLOCKS = ("linear", "naive", *NAIVE)
ALIKE = ("lookback", "horizon", "quantiles")  # of student and teacher


def check_task(recipe: Recipe) -> None:
    """Raise RecipeError for settings of series beside another task, and for those of texts beside series."""
    if recipe.task == FORECASTING:
        _check_settings(recipe)
        return
    hint = "--task forecasting"
    if recipe.data.series != Series():
        changed = next(
            name for name, value in vars(Series()).items() if value != vars(recipe.data.series)[name]
        )
        raise RecipeError(f"data.series.{changed} is for forecasting, and the task is {recipe.task}", hint)
    if _cuts_series(recipe.data.split):
        raise RecipeError(
            f"split {recipe.data.split} cuts the rows of series, and the task is {recipe.task}", hint
        )
    for model in (recipe.student, *(members_of(recipe.teacher) if recipe.teacher else ())):
        if model.name in MODELS or is_forecaster(model.name):
            what = "maps sequences of numbers" if model.name in OF_SEQUENCES else "forecasts series"
            hint = f"--task {REGRESSION}" if model.name in OF_SEQUENCES else hint
            raise RecipeError(f"{model.name} {what}, and the task is {recipe.task}", hint)


def _cuts_series(split: str) -> bool:
    try:
        shares_of(split)
    except RecipeError:
        return False
    return True


def _check_settings(recipe: Recipe) -> None:
    for field in dataclasses.fields(Data):
        if field.name not in READ and getattr(recipe.data, field.name) != getattr(Data(), field.name):
            raise RecipeError(
                f"data.{field.name} is for texts, and forecasting reads series",
                "leave it out; data.series says how they are read and cut",
            )
    models = {"student": recipe.student, **({"teacher": recipe.teacher} if recipe.teacher else {})}
    for who, model in models.items():
        if model.name in OF_SEQUENCES:
            raise RecipeError(f"{model.name} maps sequences, and forecasts no series", f"--task {REGRESSION}")
        for name in HELD:
            planned = who == "teacher" and name == "from_scratch"  # of a chain: trained by then
            if model.name in MODELS and not planned and vars(model)[name] != getattr(Model(), name):
                raise RecipeError(
                    f"{who}.{name} is for models that are loaded, and {model.name} is built here",
                    "leave it out",
                )
        if model.shape and model.name and model.name not in MODELS:
            raise RecipeError(
                f"{who}.shape is for models that are built here, and {model.name} has its own",
                f"models that are: {', '.join(MODELS)}",
            )


def check_data(recipe: Recipe) -> None:
    """Read the table and cut its parts. Raises DataError with the place of what is wrong."""
    from llm_finetuner.data import windows

    frame = windows.read(recipe.data.source, recipe.data.series)
    for name in windows.PARTS:
        frame.part(name)


# ---- models


def check_student(recipe: Recipe) -> None:
    """Raise RecipeError for a student that cannot learn, or not from these series."""
    student, series = recipe.student, recipe.data.series
    if student.name in NAIVE:
        raise RecipeError(
            f"{student.name} has nothing to learn", "a student is time_llm, patch, linear or a run of one"
        )
    if student.name == "time_llm" and not series.description.strip():
        raise RecipeError(
            "time_llm says in its prompt what the data are, and data.series.description is missing",
            "--description 'hourly load and oil temperature of a transformer'",
        )
    _check_folder(student, recipe)


def check_models(recipe: Recipe) -> None:
    """The same of a student and its teachers, and of what they say of each other."""
    check_student(recipe)
    heard = teachers_heard(recipe)
    for teacher in heard:
        if recipe.scheme.teacher == "given":
            _check_taught(teacher, recipe)
        _check_folder(teacher, recipe)
    if heard:
        _check_patches(recipe)


def _check_taught(teacher: Model, recipe: Recipe) -> None:
    """A teacher that is built here has to know something: a line is fitted, and repeating needs no learning."""
    if teacher.name in UNTRAINED and not teacher.from_scratch:
        raise untrained(teacher.name)
    if teacher.name in MODELS and recipe.data.series.quantiles:
        raise RecipeError(
            f"{teacher.name} gives one number a step, and the student is to forecast quantiles",
            "leave --quantiles out, or take a run of a forecaster with the same",
        )


def _check_folder(model: Model, recipe: Recipe) -> None:
    """Hold a model that was trained before against the series, as far as its config.json tells."""
    config = config_of(model.name)
    if model.name in MODELS or is_part(model.name):
        return
    if not config:
        _check_name(model, recipe)
        return
    if not is_forecaster(model.name):
        raise RecipeError(
            f"{model.name} is a model of type {config.get('model_type')}, no forecaster",
            "take time_llm, patch or linear, or the folder of a run of one",
        )
    for name in ALIKE:
        wanted = vars(recipe.data.series)[name]
        if config.get(name, wanted) != wanted:
            raise RecipeError(
                f"{model.name} has {name} {_spell(config[name])}, and the series are cut for {_spell(wanted)}",
                f"--{name} {_spell(config[name])}, or another model",
            )


def _check_name(model: Model, recipe: Recipe) -> None:
    """Raise RecipeError for a name that can be no forecaster's: no folder, and no org/model of the hub."""
    path = Path(model.name).expanduser()
    if not model.name or path.is_dir() or (path.parent != Path() and not path.parent.is_dir()):
        return
    others = (*OF_SEQUENCES, *(NAIVE if model is recipe.student else UNTRAINED))
    fit = [name for name in MODELS if name not in others]
    raise unknown("forecaster", model.name, (*fit, "the folder of a run", "org/model of the hub"))


def _check_patches(recipe: Recipe) -> None:
    """Hidden states are compared patch by patch."""
    terms = [term for term in recipe.terms if compares_blocks(term)]
    if not terms or recipe.scheme.teacher != "given" or is_part(recipe.student.name):
        return
    pair = [recipe.student, *members_of(recipe.teacher)]
    for model in pair:
        if _kind(model) in WITHOUT_BLOCKS:
            raise RecipeError(
                f"{terms[0].objective} compares hidden states, and {model.name} has none",
                "leave its weight at 0, or take a model with blocks: time_llm, patch",
            )
    apart = any(term.layers != "pooled" for term in terms)
    cuts = [_cut(model) for model in pair]
    if apart and all(cuts) and len(set(cuts)) > 1:
        raise RecipeError(
            f"{terms[0].objective} compares patches, and the models cut them differently: "
            + " against ".join(f"length {length}, stride {stride}" for length, stride in cuts),
            "give the student the teacher's: --shape patch_length=... stride=...",
        )


def _kind(model: Model) -> str:
    return model.name if model.name in MODELS else str(config_of(model.name).get("model_type"))


def _cut(model: Model) -> tuple[int, int] | None:
    """Length and stride of the patches."""
    found = model.shape if model.name in MODELS else config_of(model.name)
    return (found["patch_length"], found["stride"]) if {"patch_length", "stride"} <= found.keys() else None


def depth_of_model(model: Model) -> int | None:
    """Blocks of a model; None where nobody can tell yet."""
    if model.name not in MODELS:
        return depth_of(model.name)
    inner, layers = model.shape.get("backbone"), model.shape.get("num_layers")
    return layers or (3 if inner in BACKBONES else depth_of(inner) if inner else None)


def check_shapes(recipe: Recipe) -> None:
    """Build what is to be built here, without storage. Raises RecipeError, ModelError."""
    models = [recipe.student, *(members_of(recipe.teacher) if recipe.teacher else ())]
    built = [model for model in models if model.name in MODELS]
    if not built:
        return
    imports.wait()
    from llm_finetuner.models.build import empty

    there = {model.name for model in models_in(recipe) if Path(model.name).expanduser().is_dir()}
    for model in built:
        inner = model.shape.get("backbone", BACKBONES[0])
        if inner in BACKBONES or inner in there:  # one of the hub would be asked for
            empty(resolve(MODELS, model.name), model.shape)


def _spell(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
