"""What can be known of a run of sequence regression before a model is loaded: settings, files, kinds of models."""

import dataclasses

from llm_finetuner.cli import imports
from llm_finetuner.cli.configs import config_of
from llm_finetuner.cli.needed import teachers_heard, teachers_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.models.build import untrained
from llm_finetuner.recipe import Data, Model, Recipe
from llm_finetuner.recipe_series import OF_SEQUENCES
from llm_finetuner.registry import MODELS

READ = (
    "source",
    "samples",
    "hard_share",
    "eval_source",
    "eval_fraction",
    "eval_samples",
)  # of the data's settings
KIND = "s4d"  # model_type of models of sequences


def check_task(recipe: Recipe) -> None:
    """Raise RecipeError for settings of texts or of series, and for models of series."""
    for field in dataclasses.fields(Data):
        if field.name not in READ and getattr(recipe.data, field.name) != getattr(Data(), field.name):
            raise RecipeError(
                f"data.{field.name} is not for sequence_regression, which reads sequences of numbers",
                f"leave it out; of the data it reads {', '.join(READ)}",
            )
    for who, model in named(recipe):
        if model.name in MODELS and model.name not in OF_SEQUENCES:
            raise RecipeError(f"{model.name} forecasts series, and the task is {recipe.task}", "take s4d")
        if model.shape and model.name and model.name not in MODELS:
            raise RecipeError(
                f"{who}.shape is for models that are built here, and {model.name} has its own",
                f"models that are: {', '.join(OF_SEQUENCES)}",
            )
    if recipe.student.init == "teacher" and not recipe.needs_teacher:
        raise RecipeError(
            f"init=teacher is for a student s4d with a teacher, and {recipe.method} has none",
            "student.init=seed",
        )


def check_data(recipe: Recipe) -> None:
    """Look through the files. Raises DataError with the place of what is wrong."""
    from llm_finetuner.data import signals

    signals.read(recipe.data.source, recipe.data.eval_fraction)
    if recipe.data.eval_source:
        signals.read(recipe.data.eval_source, 0)


def check_models(recipe: Recipe) -> None:
    """Raise RecipeError for models that read something else, and for a teacher that knows nothing yet."""
    for who, model in named(recipe):
        planned = model.from_scratch  # by then an earlier stage has trained it
        if (
            model.name in OF_SEQUENCES
            and who == "teacher"
            and recipe.scheme.teacher == "given"
            and not planned
        ):
            raise untrained(model.name)
        kind = config_of(model.name).get("model_type") if model.name not in MODELS else KIND
        if kind not in (None, KIND):
            raise RecipeError(
                f"{model.name} is a model of type {kind}, which maps no sequences of numbers",
                f"take {', '.join(OF_SEQUENCES)}, or the folder of a run of one",
            )


def check_beginning(recipe: Recipe) -> None:
    """Raise RecipeError for a student that its teacher cannot begin."""
    told = [config_of(teacher.name) for teacher in teachers_of(recipe)] if recipe.inherits else []
    if told and told[0].get("model_type") == KIND:
        imports.wait()
        from llm_finetuner.models.build_s4d import begun_config
        from llm_finetuner.models.s4d import S4DConfig

        begun_config(S4DConfig.from_dict(told[0]), recipe.student.shape)


def named(recipe: Recipe) -> list[tuple[str, Model]]:
    """The student, and the teachers that are named and asked."""
    return [("student", recipe.student), *(("teacher", teacher) for teacher in teachers_heard(recipe))]
