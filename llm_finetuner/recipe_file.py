"""Recipes as YAML files and key=value overrides: strict, so that a typing error never trains the wrong thing."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_sections import PLAIN_METHODS, Model, Teacher
from llm_finetuner.recipe_series import OF_SEQUENCES
from llm_finetuner.registry import METHODS, MODELS, TEACHERS, TUNINGS, options_of, plain, resolve, unknown


def save(recipe: Recipe, path: str | Path) -> None:
    """Write YAML."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")


def from_dict(values: dict[str, Any]) -> Recipe:
    """Build a Recipe from plain data. Raises RecipeError for unknown fields and wrong types."""
    return _build(Recipe, values, "")


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply key=value overrides (see `override`). Raises RecipeError."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_loader())
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold 'key: value' lines, it holds a {type(values).__name__}")
    try:
        return override(from_dict(values), overrides)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.what}", error.hint) from error


def override(recipe: Recipe, assignments: typing.Sequence[str]) -> Recipe:
    """Apply "train.steps=50", "temperature=3" (an option of the method), "student.name=gpt2". Raises RecipeError.

    "student.hidden_size=16" is an option of a student that is built here, "student.shape.hidden_size". Items of lists
    go by their place from 0: "stages.0.train.steps=10" is a setting of a chain's first stage.
    """
    pairs = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"{assignment!r} is not key=value", "example: train.learning_rate=1e-4")
        try:
            pairs.append((key.strip(), yaml.load(text, Loader=_loader())))
        except yaml.YAMLError as error:
            raise RecipeError(f"{assignment!r}: the value is not valid YAML") from error
    return change(recipe, pairs)


def change(recipe: Recipe, pairs: typing.Iterable[tuple[str, Any]]) -> Recipe:
    """The recipe with other settings, one after the other, named as in `override`. Raises RecipeError.

    A section given as a mapping changes what it names and keeps the rest; student and teacher may be given by name.
    """
    values = recipe.to_dict()
    for key, value in pairs:
        _set(values, key, value)
    return from_dict(values)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    path = key.split(".")
    if path[0] in ("student", "teacher") and len(path) == 1 and isinstance(value, str):
        path, value = [path[0], "name"], value
    if len(path) == 1 and path[0] in values and isinstance(value, dict) and path[0] != "options":
        # the name first: it undoes settings of the model before
        for name in sorted(value, key=lambda name: name != "name"):
            _set(values, f"{key}.{name}", value[name])
        return
    if len(path) == 1 and path[0] not in values:
        section = "options" if path[0] in values["options"] else "tuning"
        known = {**values["options"], **values["tuning"]["options"], **values}
        if path[0] not in known:
            raise unknown("setting", path[0], known)
        path = ["options", path[0]] if section == "options" else ["tuning", "options", path[0]]
    if path[0] == "stages" and len(path) > 2:
        _set_in_stage(values["stages"], path, value)
        return
    node = _section(values, path)
    if isinstance(node, list):
        node[_place(node, path)] = value
        return
    built = path[0] in ("student", "teacher") and node.get("name") in MODELS
    if built and len(path) == 2 and path[1] not in vars(Teacher()):  # student.hidden_size
        node = node.setdefault("shape", {})
    node[path[-1]] = value
    if path[0] in ("student", "teacher") and path[1:] == ["name"]:  # nor do those of another model
        kept = options_of(resolve(MODELS, value)) if value in MODELS else {}
        node["shape"] = {k: v for k, v in (node.get("shape") or {}).items() if k in kept}
        if value not in OF_SEQUENCES:  # a model that is trained on has its own weights
            node["init"] = Model.init
    if path == ["method"]:  # options of another method do not carry over, nor a start that hangs on a teacher
        if value in PLAIN_METHODS and values["student"].get("init") == "teacher":
            values["student"]["init"] = Model.init
        kept = options_of(resolve(METHODS, value, "method"))
        values["options"] = {k: values["options"].get(k, default) for k, default in kept.items()}
    if path == ["tuning", "kind"]:
        kept = options_of(resolve(TUNINGS, value, "tuning"))
        values["tuning"]["options"] = {k: values["tuning"]["options"].get(k, v) for k, v in kept.items()}
    if path == ["teacher", "kind"]:
        kept = options_of(resolve(TEACHERS, value, "kind of teacher"))
        given = node.get("options") or {}
        node["options"] = {k: given.get(k, v) for k, v in kept.items()}


def _section(values: dict[str, Any], path: list[str]) -> dict[str, Any] | list:
    """What holds the last part of the path. Raises RecipeError where nothing does."""
    node: Any = values
    for depth, part in enumerate(path[:-1], 1):
        if part == "teacher" and isinstance(node, dict) and node.get("teacher") is None:
            node["teacher"] = {}
        if isinstance(node, list):
            node = node[_place(node, path[:depth])]
        else:
            node = node.get(part)
        if not isinstance(node, dict | list):
            raise RecipeError(f"unknown setting {'.'.join(path)!r}", f"sections: {', '.join(values)}")
    return node


def _set_in_stage(stages: list, path: list[str], value: Any) -> None:
    """A change of one stage, after those that it makes already: what is inside is known once it is applied."""
    place = _place(stages, path[:2])
    given, name = stages[place], ".".join(path[2:])
    changes = dict(given) if isinstance(given, dict) else {"student": given}
    changes.pop(name, None)
    stages[place] = {**changes, name: value}


def _place(items: list, path: list[str]) -> int:
    """The place in a list that the end of a path says. Raises RecipeError."""
    name, said = ".".join(path[:-1]), path[-1]
    if said.isdecimal() and int(said) < len(items):
        return int(said)
    known = f"{name} holds {len(items)}: " + (
        f"{name}.0 to {name}.{len(items) - 1}" if items else "it is empty"
    )
    raise RecipeError(f"{'.'.join(path)!r}: {said} is no place in the list {name}", known)


def _loader():
    """YAML 1.2's numbers: PyYAML reads 2e-4 as a string."""

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(
        r"^[-+]?(\d[\d_]*\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    # the integer resolver was added first, so it still wins for plain integers
    return Loader


def _build(cls, values: Any, where: str):
    if dataclasses.is_dataclass(values):
        return values
    if not isinstance(values, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a section of 'key: value' lines, got {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown(
                "setting", f"{where}.{name}".lstrip("."), [f"{where}.{n}".lstrip(".") for n in hints]
            )
    return cls(
        **{
            name: _convert(hints[name], value, f"{where}.{name}".lstrip("."))
            for name, value in values.items()
        }
    )


def _convert(hint, value: Any, where: str) -> Any:
    """Check one value against its annotation; ints pass for floats, and lists keep their items."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    value = plain(value)  # numpy numbers
    for option in options:
        origin = typing.get_origin(option)
        if dataclasses.is_dataclass(option) and value is not None:
            return _build(option, value, where)
        if origin is Literal and value in typing.get_args(option):
            return value
        if option is Any or (option is types.NoneType and value is None):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        bare = origin or option
        if bare in (str, bool, dict, list) and isinstance(value, bare):
            return value
    wanted = " or ".join(_spell(option) for option in options)
    raise RecipeError(f"{where} must be {wanted}, got {value!r}")


def _spell(option) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    names = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        types.NoneType: "null",
    }
    return names.get(option, getattr(typing.get_origin(option) or option, "__name__", str(option)))
