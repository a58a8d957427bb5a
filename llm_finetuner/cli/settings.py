"""Every setting of a recipe: its path, flag and help. Flags and the wizard's questions are made from these.

Names, types and defaults are read from the dataclasses and from the signatures of methods, tunings and teachers.
"""

import functools
import inspect
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, Literal

from llm_finetuner.cli import typed as text_of
from llm_finetuner.cli.wording import CHOICES, FLAGS, HELP, NOTHING, OR_A_WORD
from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import number_or_text
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS, REGRESSION, SEQUENCES, STEPS, WINDOWS
from llm_finetuner.registry import METHODS, MODELS, TEACHERS, TUNINGS, menu_entry, resolve

LAYERS = ("options.feature_layers", "options.layers")
MEMBERS = "teacher.options.members"
WEIGHTS = "data.class_weights"
KEPT = (
    "keep_blocks",
    "keep_width",
    "keep_encoder",
    "mixer",
    "init",
)  # of a student that begins with its teacher
SHAPES = ("student.shape", "teacher.shape")  # of models that are built here
VERBATIM = ("data.prefix",)  # blanks at the end are part of it
NONE_IS_SAID = ("data.series.time_column",)  # where none is a value, and not the word for None
OF_ONE_TASK = {"forecast_distillation": FORECASTING, "regression_distillation": REGRESSION}  # methods
NOT_OF_TEACHERS = tuple(f"teacher.{name}" for name in KEPT)
FOR_TYPES = {  # what annotations name without importing it
    "Context": object,
    "Provider": object,
    "nn": SimpleNamespace(Module=object),
}


@dataclass(frozen=True)
class Setting:
    """One value of a recipe: where it stands, what it may be."""

    path: str
    hint: Any
    default: Any
    owner: str = ""  # the method, tuning, kind of teacher, model or task that has this option

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @property
    def flag(self) -> str:
        prefix = "teacher-" if self.path.startswith("teacher.") else ""
        return FLAGS.get(self.path, f"--{prefix}{self.name.replace('_', '-')}")

    @property
    def help(self) -> str:
        return HELP.get(self.path, "")

    @property
    def kinds(self) -> tuple:
        """The types it may have, without None."""
        union = isinstance(self.hint, types.UnionType) or typing.get_origin(self.hint) is typing.Union
        kinds = typing.get_args(self.hint) if union else (self.hint,)
        return tuple(kind for kind in kinds if kind is not types.NoneType)

    @property
    def optional(self) -> bool:
        return types.NoneType in typing.get_args(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        if self.path in CHOICES:
            return tuple(CHOICES[self.path])
        return typing.get_args(self.kinds[0]) if typing.get_origin(self.kinds[0]) is Literal else ()

    @property
    def is_list(self) -> bool:
        """Whether it may be typed as several words."""
        return any((typing.get_origin(kind) or kind) in (list, dict) for kind in self.kinds)

    @property
    def is_mapping(self) -> bool:
        return any((typing.get_origin(kind) or kind) is dict for kind in self.kinds)

    @property
    def nothing(self) -> str:
        return NOTHING.get(self.path, "auto")

    def parse(self, typed: str | list[str]) -> Any:
        """The value that a user typed. Raises RecipeError: the setting, the text, what was expected."""
        words = [typed] if isinstance(typed, str) else typed
        text = ",".join(words).strip()
        nothing = (self.nothing,) if self.path in NONE_IS_SAID else ("", self.nothing, "none")
        if self.optional and text.lower() in nothing:
            return None
        if self.path in VERBATIM:
            return typed
        if self.path in LAYERS:
            return text_of.read_layers(text)
        if self.is_mapping:
            return self._mapping(words)
        if self.is_list:
            return self._items(text)
        if self.path in OR_A_WORD:
            return number_or_text(text)  # the method says which word
        if float in self.kinds and str in self.kinds:
            return text_of.read_number(self.path, text)
        for kind, wanted in ((int, "a whole number"), (float, "a number")):
            if kind in self.kinds:
                try:
                    return kind(text)
                except ValueError:
                    raise RecipeError(f"{self.path} must be {wanted}, got {text!r}") from None
        return text

    def _mapping(self, words: list[str]) -> dict[str, Any]:
        if self.path == "options.objectives":
            return text_of.read_objectives(words)
        parts = [part for word in words for part in word.split(",")]
        if self.path == WEIGHTS:
            return text_of.read_weights(parts)
        if "".join(words).strip().lower() in ("", self.nothing):
            return {}
        return text_of.read_shape(parts) if self.path in SHAPES else text_of.read_conditions(parts)

    def _items(self, text: str) -> Any:
        items = text_of.read_names(text)
        kind = next((typing.get_args(k) for k in self.kinds if typing.get_origin(k) is list), ()) or (str,)
        if str in self.kinds and len(items) == 1 and kind[0] is not str and not _reads(items[0], kind[0]):
            return items[0]  # weights: loss
        if text.lower() == "none":
            return []
        if isinstance(kind[0], types.UnionType):
            return [number_or_text(item) for item in items]
        wanted = {int: "whole numbers", float: "numbers"}.get(kind[0], "names")
        if not all(_reads(item, kind[0]) for item in items):
            raise RecipeError(f"{self.path} must be {wanted}, got {text!r}")
        return [kind[0](item) for item in items]

    def spell(self, value: Any) -> str:
        """How a user would type the value in one line; `parse` reads it back."""
        apart = ", " if self.path in ("data.only", WEIGHTS) else " "
        return apart.join(self.words(value))

    def words(self, value: Any) -> list[str]:
        """The value as the words of a command; `parse` reads them back."""
        if value is None or value == {}:
            return [self.nothing]
        if self.path in LAYERS:
            return [text_of.spell_layers(value)]
        if self.path == "options.objectives":
            return text_of.spell_objectives(value)
        if isinstance(value, dict):
            return [f"{name}={text_of.spell_plain(item)}" for name, item in value.items()]
        if isinstance(value, bool):
            return ["yes" if value else "no"]
        return [text_of.spell_names(value) or "none"] if isinstance(value, list) else [str(value)]


def _reads(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def fields_of(cls: type, prefix: str, owner: str = "") -> list[Setting]:
    """The settings of one section of the recipe, without the options of what it names. Series are a section of data."""
    hints, plain = typing.get_type_hints(cls), cls()
    found = []
    for field in fields(cls):
        path, default = f"{prefix}.{field.name}", getattr(plain, field.name)
        if is_dataclass(default):
            found += fields_of(type(default), path, FORECASTING)
        else:
            found.append(Setting(path, hints[field.name], default, owner))
    return [s for s in found if s.name != "options" and s.path not in NOT_OF_TEACHERS]


def options_in(table: dict[str, str], name: str, prefix: str) -> list[Setting]:
    """The options of a method, a tuning, a kind of teacher or a model that is built here, from its signature."""
    function = resolve(table, name)
    hints = typing.get_type_hints(function, localns=FOR_TYPES) if table in (TEACHERS, MODELS) else {}
    found = inspect.signature(function).parameters.values()
    options = (p for p in found if p.kind is p.KEYWORD_ONLY)
    return [Setting(f"{prefix}.{p.name}", hints.get(p.name, p.annotation), p.default, name) for p in options]


@functools.cache
def settings(distil: bool) -> tuple[Setting, ...]:
    """All that `finetune`, or `distill`, has flags for. An option that two methods have stands here twice."""
    methods = [name for name in METHODS if (name != "fine_tuning") == distil]
    options = [s for name in methods for s in options_in(METHODS, name, "options")]
    adapters = [s for name in TUNINGS for s in options_in(TUNINGS, name, "tuning.options")]
    tuning = Setting("tuning.kind", str, None)
    task, output = Setting("task", str, Recipe.task), Setting("output", str, Recipe.output)
    student = [s for s in fields_of(Model, "student") if distil or not s.name.startswith("keep_")]
    models = [*student, *(teacher_settings() if distil else []), *options, tuning, *adapters]
    return (task, *models, *fields_of(Data, "data"), *fields_of(Train, "train"), output)


def teacher_settings() -> list[Setting]:
    """The fields of a teacher, and the options of all kinds of teachers."""
    kinds = [s for name in TEACHERS for s in options_in(TEACHERS, name, "teacher.options")]
    return [*fields_of(Teacher, "teacher"), *kinds]


def by_flag(found: Iterable[Setting]) -> dict[str, list[Setting]]:
    """The settings of each flag: those of several methods that have the same option or flag together."""
    flags: dict[str, list[Setting]] = {}
    for setting in found:
        flags.setdefault(setting.flag, []).append(setting)
    return flags


def paths_in(given: dict[str, Any], distil: bool, method: str = "") -> dict[str, Any]:
    """Path -> value of the flags that were given, read as the method and the task have them. Raises RecipeError."""
    paths = {}
    owners = {method, task_of(given.get("--task"), method)} - {""}
    for flag, same in by_flag(settings(distil)).items():
        if flag in given:
            setting, typed = next((s for s in same if s.owner in owners), same[0]), given[flag]
            if flag == "--teacher" and isinstance(typed, list) and len(typed) > 1:
                paths[MEMBERS] = typed
                continue
            # booleans come from argparse as they are
            paths[setting.path] = typed if isinstance(typed, bool) else setting.parse(typed)
    return paths


def task_of(task: str | None, method: str) -> str:
    """The task that was named, else the one that the method is for."""
    return task or OF_ONE_TASK.get(method, Recipe.task)


def kind_of_teacher(paths: dict[str, Any]) -> str | None:
    """The first kind in the table that has all options given, None for no options; with a name a cache is filled."""
    given = {path for path in paths if path.startswith("teacher.options.")}
    fits = [
        name
        for name in TEACHERS
        if given and given <= {s.path for s in options_in(TEACHERS, name, "teacher.options")}
    ]
    if paths.get("teacher.name"):
        fits = [name for name in fits if name != "cached"]
    return fits[0] if fits else None


def nest(paths: dict[str, Any]) -> dict[str, Any]:
    """{"train.seed": 1} -> {"train": {"seed": 1}}."""
    values: dict[str, Any] = {}
    for path, value in paths.items():
        node = values
        *sections, name = path.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return values


def build(method: str | int, paths: dict[str, Any], assignments: Iterable[str] = ()) -> Recipe:
    """The recipe of a menu entry with these settings. Raises RecipeError."""
    from llm_finetuner.recipe_file import from_dict, override

    _, name, tuning, _ = menu_entry(method)
    values = {"tuning.kind": tuning, **paths}
    if values["tuning.kind"] == "qlora" and not values.get("student.load_in_8bit"):
        values.setdefault("student.load_in_4bit", True)  # what QLoRA means
    kind = kind_of_teacher(values)
    if kind is not None:
        values.setdefault("teacher.kind", kind)
    values["task"] = task_of(values.get("task"), name)
    if values["task"] == FORECASTING:
        if "train.epochs" not in values:
            values.setdefault("train.steps", STEPS)
    if values["task"] in OF_NUMBERS:
        values.setdefault("train.batch_size", WINDOWS if values["task"] == FORECASTING else SEQUENCES)
        values.setdefault("train.gradient_accumulation_steps", 1)
    return override(from_dict({"method": name, **nest(values)}), list(assignments))
