"""The wizard's questions as data: key (a path in the recipe), title, explanation, what to draw."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_finetuner.cli.folder import check_output
from llm_finetuner.cli.hub import is_on_hub
from llm_finetuner.cli.plain import first_line
from llm_finetuner.cli.prompts import BACK, Ask, Mark, Pick
from llm_finetuner.cli.settings import Setting, fields_of, options_in
from llm_finetuner.cli.wording import EXAMPLE_STUDENT, EXAMPLE_TEACHER, TITLES, WHY
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.registry import METHODS, TUNINGS, menu_entry, resolve

Answers = dict[str, Any]
ASKED = ("train.epochs", "train.batch_size", "train.learning_rate", "data.max_length", "data.samples")
ELSEWHERE = (  # asked with the models and the data
    "student.name", "teacher.name", "data.source", "data.config", "data.split", "data.text_columns",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One step. `make` returns what to draw, or None where the question makes no sense for these answers."""

    key: str
    make: Callable[[Answers], Ask | Pick | Mark | None]

    @property
    def title(self) -> str:
        return TITLES.get(self.key, self.key.rsplit(".", 1)[-1].replace("_", " ").capitalize())

    def why(self, setting_help: str = "") -> str:
        return WHY.get(self.key, setting_help)


def questions(answers: Answers) -> list[tuple[Question, str]]:
    """All questions for the answers so far, each with its one-line explanation."""
    method, _ = method_of(answers)
    steps: list[tuple[Question, str]] = [
        (Question("student.name", lambda a: Ask(EXAMPLE_STUDENT, student_name, is_path=True)), ""),
        (Question("student.from_scratch", pick_scratch), ""),
    ]
    if method != "fine_tuning":
        steps.append(
            (Question("teacher.name", lambda a: Ask(EXAMPLE_TEACHER, teacher_name, is_path=True)), "")
        )
        steps.append((Question("tuning.kind", pick_tuning), ""))
    steps += [
        (Question("data.source", lambda a: Ask(found_data(), data_source, is_path=True)), ""),
        (Question("data.config", pick_config), ""),
        (Question("data.split", pick_split), ""),
        (Question("data.look", lambda a: None), ""),
    ]
    steps += [from_setting(s) for s in options_in(METHODS, method, "options")]
    known = {s.path: s for s in (*fields_of(Train, "train"), *fields_of(Data, "data"))}
    steps += [from_setting(known[path]) for path in ASKED]
    more = further(answers)
    steps.append((Question("advanced", pick_advanced), ""))
    steps.append((Question("more", lambda a: mark_more(a, more)), ""))
    steps += [from_setting(s) for s in more if s.path in answers.get("more", ())]
    steps.append(
        (Question("output", lambda a: Ask(free_folder(a), partial(output_folder, a), is_path=True)), "")
    )
    return [(question, question.why(told)) for question, told in steps]


def method_of(answers: Answers) -> tuple[str, str]:
    """(method, tuning) of the answers."""
    _, method, tuning, _ = menu_entry(answers["method"])
    return method, answers.get("tuning.kind", tuning)


def further(answers: Answers) -> list[Setting]:
    """The settings that are asked for on request only."""
    method, tuning = method_of(answers)
    teacher = fields_of(Teacher, "teacher") if method != "fine_tuning" else []
    settings = [
        *options_in(TUNINGS, tuning, "tuning.options"), *fields_of(Train, "train"), *fields_of(Data, "data"),
        *fields_of(Model, "student"), *teacher,
    ]  # fmt: skip
    asked = (*ASKED, *ELSEWHERE, *(["student.from_scratch"] if lacks_weights(answers) else []))
    return [s for s in settings if s.path not in asked]


def pick_advanced(answers: Answers) -> Pick:
    """The gate before the settings that few people change."""
    return Pick([("no", "No, they are fine", "", None), ("yes", "Yes, show them", "", None)], "no")


def mark_more(answers: Answers, more: list[Setting]) -> Mark | None:
    return Mark([(s.path, describe(s)) for s in more]) if answers.get("advanced") == "yes" else None


def describe(setting: Setting) -> str:
    return f"{setting.name} = {setting.spell(setting.default)}: {setting.help}"


def from_setting(setting: Setting) -> tuple[Question, str]:
    """A question made from a field or an option: its type says how to ask, the recipe's own check is the validation."""
    return Question(setting.path, lambda answers: prompt_for(setting, answers)), setting.help


def prompt_for(setting: Setting, answers: Answers) -> Ask | Pick:
    """Choices become a list, yes or no too; all else is typed."""
    if bool in setting.kinds:
        return Pick([(True, "yes", "", None), (False, "no", "", None)], setting.default)
    if setting.choices:
        return Pick([(name, name, "", None) for name in setting.choices], setting.default)

    def parse(typed: str) -> Any:
        value = setting.parse(typed)
        check(setting, value, answers)
        return value

    return Ask(setting.spell(setting.default), parse)


def check(setting: Setting, value: Any, answers: Answers) -> None:
    """Hold the value against the section or the method it belongs to. Raises RecipeError."""
    section, name = setting.path.rsplit(".", 1)
    if section in ("train", "data"):
        {"train": Train, "data": Data}[section](**{name: value})
    elif section == "options":
        resolve(METHODS, setting.owner)(**{name: value})
    elif section == "tuning.options":
        before = {
            s.name: answers[s.path] for s in options_in(TUNINGS, setting.owner, section) if s.path in answers
        }
        Recipe(tuning=Tuning(setting.owner, {**before, name: value}))


# ---- the questions that no field can make


def model_name(typed: str) -> str:
    """A model folder or hub name as typed. Raises RecipeError."""
    name = typed.strip()
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise RecipeError(f"{name} holds no config.json", "give the folder of a Hugging Face model")
        return os.path.expanduser(name)
    if path.exists() or name.startswith((".", "/", "~")):
        raise RecipeError(f"{name} is not a folder", "give a model's folder, or a hub name such as gpt2")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise RecipeError(
            f"{name!r} is neither a folder nor a hub name", "hub names look like gpt2 or org/model"
        )
    return name


def student_name(typed: str) -> str:
    """A student as typed: not an adapter, which cannot be trained on. Raises RecipeError."""
    name = model_name(typed)
    if (Path(name) / "adapter_config.json").exists():
        raise RecipeError(f"{name} holds an adapter, not a model", "merge it first: LLMFineTuner.merge()")
    return name


def teacher_name(typed: str) -> str:
    """A teacher as typed: one that has learned something. Raises RecipeError."""
    name = model_name(typed)
    if Path(name).is_dir() and not holds_weights(Path(name)):
        raise RecipeError(f"{name} holds no weights", "give the folder of a model that was trained")
    return name


def holds_weights(folder: Path) -> bool:
    patterns = ("model*.safetensors*", "pytorch_model*.bin*", "adapter_model.*")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def lacks_weights(answers: Answers) -> bool:
    """Whether the student is a folder that holds a configuration only."""
    name = answers.get("student.name")
    return bool(name) and Path(name).is_dir() and not holds_weights(Path(name))


def pick_scratch(answers: Answers) -> Pick | None:
    """Asked only where there is nothing else to start from."""
    yes = (True, "Yes, from scratch", "The folder holds no weights: they are drawn from the seed", None)
    no = (BACK, "No, another model", "", None)
    return Pick([yes, no], True) if lacks_weights(answers) else None


def data_source(typed: str) -> str:
    """A file, folder, glob or hub name as typed. Raises RecipeError."""
    name = typed.strip()
    path = Path(name).expanduser()
    if name and path.exists() or any(mark in name for mark in "*?["):
        return os.path.expanduser(name)
    suffixes = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
    if name.startswith((".", "/", "~")) or name.endswith(suffixes) or not is_on_hub(name):
        raise RecipeError(
            f"there is no file or folder {name!r}", "Tab completes paths; a hub name is org/data"
        )
    return name


def found_data() -> str:
    """The first data file here, so that there is something to accept."""
    patterns = (f"{folder}*{suffix}" for suffix in (".jsonl", ".parquet", ".csv") for folder in ("", "data/"))
    return next((str(path) for pattern in patterns for path in sorted(Path().glob(pattern))), "train.jsonl")


def pick_tuning(answers: Answers) -> Pick:
    described = [(name, name, first_line(resolve(TUNINGS, name)), None) for name in TUNINGS]
    return Pick(described, menu_entry(answers["method"])[2])


def pick_config(answers: Answers) -> Ask | None:
    setting = next(s for s in fields_of(Data, "data") if s.path == "data.config")
    return Ask(setting.nothing, setting.parse) if is_on_hub(answers["data.source"]) else None


def pick_split(answers: Answers) -> Ask | None:
    return Ask(Data.split) if is_on_hub(answers["data.source"]) else None


def free_folder(answers: Answers) -> str:
    """outputs/<student>-<method>, or the first number after it that is free."""
    student = Path(answers["student.name"]).name or "student"
    first = f"outputs/{student}-{answers['method']}"
    names = [first, *(f"{first}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not Path(name).exists())


def output_folder(answers: Answers, typed: str) -> str:
    """The folder of the run as typed. Raises RecipeError where something is in the way."""
    folder, teacher = os.path.expanduser(typed.strip()), answers.get("teacher.name")
    check_output(
        Recipe(
            student=Model(answers["student.name"]), teacher=Teacher(teacher) if teacher else None,
            data=Data(answers["data.source"]), output=folder,
        )
    )  # fmt: skip
    return folder
