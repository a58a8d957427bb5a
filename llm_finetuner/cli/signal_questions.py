"""The questions of the menu for a model of sequences: the recording first, then the models, its shape last."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli import series_fit, signal_fit, signal_sight, spoken
from llm_finetuner.cli.answers import lies_here, student_name, teacher_name
from llm_finetuner.cli.asking import Answers, Question, Steps, fitted, from_setting, plain, so_far
from llm_finetuner.cli.configs import config_of
from llm_finetuner.cli.preview import stamp
from llm_finetuner.cli.prompts import Ask, Pick
from llm_finetuner.cli.settings import fields_of, options_in
from llm_finetuner.errors import FinetunerError, RecipeError
from llm_finetuner.recipe import Model, Train
from llm_finetuner.recipe_series import OF_SEQUENCES, SEQUENCES
from llm_finetuner.registry import METHODS

FILES = (".npz", ".npy", ".zarr", ".csv", ".tsv")  # of sequences
WEIGHTS = ("alpha", "beta", "gamma")
ASKED = {"train.epochs": Train.epochs, "train.batch_size": SEQUENCES, "train.learning_rate": None}
ELSEWHERE = (  # asked above, so not again on request
    *ASKED, *(f"options.{name}" for name in WEIGHTS), "student.shape", "student.init", "teacher.shape",
    *(f"student.{name}" for name in series_fit.HELD), *(f"teacher.{name}" for name in series_fit.HELD),
)  # fmt: skip


def data() -> Steps:
    """The files, and whether they are read as they are meant."""
    source = Question("data.source", lambda a: Ask(_found(), _source, is_path=True))
    return [(source, spoken.WHY_SEQUENCES["data.source"]), plain("data.look", lambda a: None)]


def student(_may_be_part: bool) -> Steps:
    """The student: one that is built here, or a run of one."""

    def make(answers: Answers) -> Ask:
        return Ask(OF_SEQUENCES[0], fitted(_student, "student.name", answers), is_path=True)

    return [(Question("student.name", make), spoken.WHY_SEQUENCES["student.name"])]


def teacher() -> tuple[Question, str]:
    """A run of a model of sequences."""

    def make(answers: Answers) -> Ask:
        offered = _newest() or spoken.EXAMPLES["sequence_regression"][1]
        return Ask(offered, fitted(teacher_name, "teacher.name", answers), is_path=True)

    return Question("teacher.name", make), spoken.WHY_SEQUENCES["teacher.name"]


def shape() -> Steps:
    """What a student that is built here begins with, and its sizes."""
    return [plain("student.init", _pick_init), plain("student.shape", _ask_shape)]


def share() -> Steps:
    """What truth, teacher and hidden states weigh."""
    found = {s.name: s for s in options_in(METHODS, "regression_distillation", "options")}
    return [from_setting(found[name]) for name in WEIGHTS]


def training() -> Steps:
    """Epochs, rows of a step and learning rate."""
    found = {s.path: s for s in fields_of(Train, "train")}
    steps = [from_setting(replace(found[path], default=value)) for path, value in ASKED.items()]
    return [
        (question, spoken.WHY_SEQUENCES.get(question.key, question.why(told))) for question, told in steps
    ]


def asked(_answers: Answers) -> tuple[str, ...]:
    """Settings that are not offered on request."""
    return ELSEWHERE


def _source(typed: str) -> str:
    """A folder or file as typed. Raises RecipeError."""
    name = os.path.expanduser(typed.strip())
    if not name or not lies_here(name):
        raise RecipeError(f"there is no file or folder {typed.strip()!r}", "Tab completes paths")
    return name


def _found() -> str:
    """The first recording here, so that there is something to accept."""
    folders = [
        path.parent for pattern in ("*", "outputs/*") for path in sorted(Path().glob(f"{pattern}/meta.json"))
    ]
    files = [path for suffix in FILES for path in sorted(Path().glob(f"*{suffix}"))]
    return str(next(iter([*folders, *files]), "outputs/columns"))


def _newest() -> str | None:
    """The run in outputs/ that was finished last and maps sequences."""
    runs = [path.parent for path in Path("outputs").glob("**/training.json")]
    runs = [run for run in runs if config_of(str(run)).get("model_type") == signal_fit.KIND]
    return str(max(runs, key=lambda run: (run / "training.json").stat().st_mtime)) if runs else None


def _student(typed: str) -> str:
    name = typed.strip()
    return name if name in OF_SEQUENCES else student_name(False, typed)


def _pick_init(answers: Answers) -> Pick | None:
    """Only of a student that is built here and has one model as its teacher."""
    if answers.get("student.name") not in OF_SEQUENCES or not answers.get("teacher.name"):
        return None
    choices = [(name, *told, None) for name, told in spoken.BEGINNINGS.items()]
    return Pick(choices, "teacher")


def _ask_shape(answers: Answers) -> Ask | None:
    """Sizes of a student that is built here, as its data and its teacher ask for."""
    if answers.get("student.name") not in OF_SEQUENCES:
        return None
    setting = next(s for s in fields_of(Model, "student") if s.path == "student.shape")

    def parse(typed: str) -> dict[str, Any]:
        shape = setting.parse(typed.split())
        try:
            recipe = so_far({**answers, setting.path: shape})
            series_fit.check_shapes(recipe)
            signal_fit.check_beginning(recipe)
        except FinetunerError as error:
            raise RecipeError(error.what, error.hint) from error
        return shape

    taught = config_of(answers["teacher.name"]) if answers.get("teacher.name") else None
    future = {"bidirectional": True} if taught is None else _future(taught)
    sizes = {"preset": "teacher" if taught is None else "compressed"}
    return Ask(setting.spell({**sizes, **_channels(answers), **future}), parse)


def _future(taught: dict[str, Any]) -> dict[str, Any]:
    """How a teacher sees what lies behind a position: a student that does not is told apart by that alone."""
    return {name: taught[name] for name in ("bidirectional", "delay") if taught.get(name)}


def _channels(answers: Answers) -> dict[str, Any]:
    """What the rows have, as far as it is not what a model is built for anyway."""
    recipe = so_far(answers)
    return signal_sight.channels(recipe, stamp(recipe.data.source))
