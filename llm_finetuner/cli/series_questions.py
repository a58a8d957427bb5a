"""The questions of the menu for a model that forecasts series: the table and its windows first, then the models."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli import prompts, series_fit, spoken
from llm_finetuner.cli.answers import found_table, model_name, newest_forecaster, student_name, table_file
from llm_finetuner.cli.asking import SHARE, Answers, Question, Steps, fitted, from_setting, plain, so_far
from llm_finetuner.cli.prompts import BACK, Ask, Pick
from llm_finetuner.cli.purpose import example
from llm_finetuner.cli.settings import Setting, fields_of
from llm_finetuner.errors import FinetunerError, RecipeError
from llm_finetuner.methods.forecasting import AUTO, HALF
from llm_finetuner.ranges import number_or_text
from llm_finetuner.recipe import Data, Model, Train
from llm_finetuner.recipe_series import STEPS, WINDOWS
from llm_finetuner.registry import MODELS

CUT = ("lookback", "horizon", "split")  # of the table, asked at once
READ = (  # what can be said of a table that is read otherwise than it is meant, or not at all
    "targets", "time_column", "id_column", "season", "missing", "duplicates", "irregular", "constant", "short",
)  # fmt: skip
ASKED = {"train.steps": STEPS, "train.batch_size": WINDOWS, "train.learning_rate": None}
OF_TABLE = tuple(f"data.series.{name}" for name in READ)
ELSEWHERE = (  # asked above, so not again on request
    *ASKED, "train.epochs", "options.alpha", "options.beta", "student.shape", "teacher.shape",
    *(f"data.series.{name}" for name in (*CUT, "description")),
)  # fmt: skip
LATER = {"data.series.description": "asked after the model"}  # which time_llm needs


def field(name: str) -> Setting:
    """A setting of the series."""
    return next(s for s in fields_of(Data, "data") if s.path == f"data.series.{name}")


def data() -> Steps:
    """The table, how it is cut, and whether it is read as it is meant."""
    source = Question("data.source", lambda a: Ask(found_table(), table_file, is_path=True))
    cut = [from_setting(field(name)) for name in CUT]
    return [(source, spoken.WHY_SERIES["data.source"]), *cut, plain("data.look", lambda a: None)]


def read_otherwise(answers: Answers, wrong: FinetunerError | None) -> dict[str, Any] | object:
    """Another value of a setting of how the table is read, first of one that an error names; or BACK."""
    known = [field(name) for name in (*READ, *CUT)]
    choices = [(s.path, s.name.replace("_", " "), s.help, None) for s in known]
    path = prompts.ask("What of it?", "", Pick(choices, mends(wrong) or known[0].path))
    if path is BACK:
        return BACK
    question, why = from_setting(next(s for s in known if s.path == path))
    value = prompts.ask(question.title, why, question.make(answers))
    return BACK if value is BACK else {path: value}


def mends(wrong: FinetunerError | None) -> str | None:
    """The setting that the hint of an error names by its flag."""
    flags = re.findall(r"--[\w-]+", wrong.hint) if wrong else []
    return next((s.path for s in map(field, (*READ, *CUT)) if s.flag in flags), None)


def student(may_be_part: bool) -> Steps:
    """The student: what it is, how large, and for Time-LLM what the data are."""
    named = Question(
        "student.name",
        lambda a: Ask(example(a)[0], lambda typed: _student(typed, may_be_part, a), is_path=True),
    )
    return [
        (named, spoken.WHY_SERIES["student.name"]),
        plain("data.series.description", ask_description),
        plain("student.shape", ask_shape),
    ]


def teacher() -> tuple[Question, str]:
    """A forecaster that was trained, or one that needs no training."""

    def parse(typed: str) -> str:
        name = typed.strip()
        return name if name in MODELS else model_name(typed)

    def make(answers: Answers) -> Ask:
        series = so_far({**LATER, **answers}).data.series
        offered = (
            newest_forecaster({name: vars(series)[name] for name in series_fit.ALIKE}) or example(answers)[1]
        )
        return Ask(offered, fitted(parse, "teacher.name", answers), is_path=True)

    return Question("teacher.name", make), spoken.WHY_SERIES["teacher.name"]


def share() -> Steps:
    """One number in place of alpha and beta, of which only the ratio matters."""
    return [plain(SHARE, lambda a: Ask(f"{HALF:g}", share_typed))]


def training() -> Steps:
    """Steps, windows of a step and learning rate."""
    known = {s.path: s for s in fields_of(Train, "train")}
    steps = [from_setting(replace(known[path], default=value)) for path, value in ASKED.items()]
    return [(question, spoken.WHY_SERIES.get(question.key, told)) for question, told in steps]


def asked(answers: Answers) -> tuple[str, ...]:
    """Settings that are not offered on request: asked before, or of models that are loaded."""
    built = answers.get("student.name") in MODELS
    return (*ELSEWHERE, *(f"student.{name}" for name in series_fit.HELD if built))


def share_typed(typed: str) -> float | str:
    """The share of the teacher as typed. Raises RecipeError."""
    value = number_or_text(typed.strip())
    if value != AUTO and (isinstance(value, str) or not 0 <= value <= 1):
        raise RecipeError(
            f"the teacher's share is 0 to 1 or {AUTO}, got {typed.strip()!r}", "0.5: half and half"
        )
    return value


def ask_description(answers: Answers) -> Ask | None:
    """Only Time-LLM reads it."""
    if answers.get("student.name") != "time_llm":
        return None
    return Ask(Path(answers["data.source"]).stem, str.strip)


def ask_shape(answers: Answers) -> Ask | None:
    """The options of a model that is built here, with what they are anyway; of a line there is nothing to say."""
    kept = spoken.SHAPES.get(answers.get("student.name"))
    if kept is None:
        return None
    setting = next(s for s in fields_of(Model, "student") if s.path == "student.shape")

    def parse(typed: str) -> dict:
        shape = setting.parse(typed.split())
        try:
            series_fit.check_shapes(so_far({**answers, setting.path: shape}))
        except FinetunerError as error:
            raise RecipeError(error.what, error.hint) from error
        return shape

    usual = so_far({**LATER, **answers}).student.shape
    return Ask(setting.spell({key: usual[key] for key in kept}), parse)


def _student(typed: str, may_be_part: bool, answers: Answers) -> str:
    """A student as typed: built here, a folder, or a part of the teacher. Raises RecipeError."""
    name = typed.strip()
    name = name if name in MODELS else student_name(may_be_part, typed)
    series_fit.check_student(so_far({**LATER, **answers, "student.name": name}))
    return name
