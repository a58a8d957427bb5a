"""Every setting of a recipe: its path, flag and help. Flags and the wizard's questions are made from these.

Names, types and defaults are read from the dataclasses and from the signatures of methods and tunings.
"""

import inspect
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from llm_finetuner.cli.wording import CHOICES, FLAGS, HELP, NOTHING
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.registry import MENU, METHODS, TUNINGS, menu_entry, resolve


@dataclass(frozen=True)
class Setting:
    """One value of a recipe: where it stands, what it may be."""

    path: str
    hint: Any
    default: Any
    owner: str = ""  # the method or tuning that has this option

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
        return any((typing.get_origin(kind) or kind) is list for kind in self.kinds)

    @property
    def nothing(self) -> str:
        return NOTHING.get(self.path, "auto")

    def parse(self, typed: str | list[str]) -> Any:
        """The value that a user typed. Raises RecipeError: the setting, the text, what was expected."""
        words = [typed] if isinstance(typed, str) else typed
        text = ",".join(words).strip()
        if self.optional and text.lower() in ("", self.nothing, "none"):
            return None
        if self.path == "options.feature_layers":
            return parse_layers(text)
        if self.is_list and text.lower() in ("", "none"):
            return []
        if self.is_list:
            return [word.strip() for word in text.split(",") if word.strip()]
        for kind, wanted in ((int, "a whole number"), (float, "a number")):
            if kind in self.kinds:
                try:
                    return kind(text)
                except ValueError:
                    raise RecipeError(f"{self.path} must be {wanted}, got {text!r}") from None
        return text

    def spell(self, value: Any) -> str:
        """How a user would type the value; `parse` reads it back."""
        if value is None:
            return self.nothing
        if self.path == "options.feature_layers":
            return ",".join(":".join(map(str, x)) if isinstance(x, list) else str(x) for x in value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return (",".join(value) or "none") if isinstance(value, list) else str(value)


def parse_layers(text: str) -> list:
    """Read "0,3" as [0, 3] and "0:1,3:7" as [[0, 1], [3, 7]]. Raises RecipeError."""
    try:
        parts = [[int(number) for number in word.split(":")] for word in text.replace(",", " ").split()]
    except ValueError:
        parts = []
    if not parts or any(len(part) not in (1, 2) or min(part) < 0 for part in parts):
        raise RecipeError(f"layers must be block numbers from 0 (0,3,6) or pairs (0:1,3:7), got {text!r}")
    return [part[0] if len(part) == 1 else part for part in parts]


def fields_of(cls: type, prefix: str) -> list[Setting]:
    """The settings of one section of the recipe."""
    hints, plain = typing.get_type_hints(cls), cls()
    return [Setting(f"{prefix}.{f.name}", hints[f.name], getattr(plain, f.name)) for f in fields(cls)]


def options_in(table: dict[str, str], name: str, prefix: str) -> list[Setting]:
    """The options of a method or tuning, from its signature."""
    found = inspect.signature(resolve(table, name)).parameters.values()
    options = (p for p in found if p.kind is p.KEYWORD_ONLY)
    return [Setting(f"{prefix}.{p.name}", p.annotation, p.default, name) for p in options]


def settings(distil: bool) -> list[Setting]:
    """All that `finetune`, or `distill`, has flags for. An option that two methods have stands here twice."""
    teacher = fields_of(Teacher, "teacher") if distil else []
    methods = [name for name in METHODS if (name != "fine_tuning") == distil]
    options = [s for name in methods for s in options_in(METHODS, name, "options")]
    adapters = [s for name in TUNINGS for s in options_in(TUNINGS, name, "tuning.options")]
    tuning = Setting("tuning.kind", str, None)
    output = Setting("output", str, Recipe.output)
    models = [*fields_of(Model, "student"), *teacher, *options, tuning, *adapters]
    return [*models, *fields_of(Data, "data"), *fields_of(Train, "train"), output]


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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of `nest`."""
    paths: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and value
        paths.update(flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value})
    return paths


def build(method: str | int, paths: dict[str, Any], assignments: Iterable[str] = ()) -> Recipe:
    """The recipe of a menu entry with these settings. Raises RecipeError."""
    from llm_finetuner.recipe_file import from_dict, override

    _, name, tuning, _ = menu_entry(method)
    values = {"tuning.kind": tuning, **paths}
    if values["tuning.kind"] == "qlora" and not values.get("student.load_in_8bit"):
        values.setdefault("student.load_in_4bit", True)  # what QLoRA means
    return override(from_dict({"method": name, **nest(values)}), list(assignments))


def words_of(recipe: Recipe) -> list[str]:
    """The command's words after `python finetune_cli.py` that give this recipe again."""
    distil = recipe.needs_teacher
    entry = next((e for e in MENU.values() if e[1:3] == (recipe.method, recipe.tuning.kind)), None)
    entry = entry or next((e for e in MENU.values() if e[1] == recipe.method), menu_entry(4 if distil else 6))
    words = ["distill" if distil else "finetune", "--method", entry[0]]
    extra = []
    plain = flatten(build(entry[0], {"tuning.kind": recipe.tuning.kind}).to_dict())
    known = {setting.path: setting for setting in settings(distil)}
    if distil:
        plain.update({s.path: s.default for s in fields_of(Teacher, "teacher")})
    if recipe.tuning.kind != entry[2]:
        words += [known["tuning.kind"].flag, recipe.tuning.kind]
    for path, value in flatten(recipe.to_dict()).items():
        if path in plain and plain[path] == value or (path == "teacher" and value is None):
            continue
        setting = known.get(path)
        if setting is None or _lost(setting, value):
            extra += ["--set", f"{path}={json.dumps(value)}"]
        elif isinstance(value, bool):
            words.append(setting.flag if value else setting.flag.replace("--", "--no-", 1))
        else:
            words += [setting.flag, setting.spell(value)]
    return words + extra


def _lost(setting: Setting, value: Any) -> bool:
    """Whether the value would not survive being typed: text that reads as None, starts with a dash, ..."""
    if isinstance(value, bool):
        return False
    spelled = setting.spell(value)
    return spelled.startswith("-") or setting.parse(spelled) != value
