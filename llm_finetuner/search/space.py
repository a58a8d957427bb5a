"""The space of a search: setting -> values to choose from, or an explicit list of settings.

A setting is named as in `recipe_file.override`: an option by its bare name ("temperature"), the rest by its dotted path
("train.learning_rate"). The values are a list or, where numbers are drawn, {"low": 1e-5, "high": 1e-3, "log": true}.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import yaml

from llm_finetuner import recipe_file
from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import number_or_text
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import plain

FIXED = (
    "output",
    "task",
    "data",
    "student.name",
    "train.seed",
)  # other rows or tokens: losses that nobody can compare
FIRST = (
    "method",
    "tuning.kind",
    "teacher.kind",
)  # they bring options of their own, so they are applied before these
RANGE = {"low", "high", "log"}
EXAMPLE = (
    "example: {'temperature': [1, 2, 4], 'alpha': [0.1, 0.5]} or [{'temperature': 2.0, 'alpha': 0.3}, ...]"
)


def check(space: Any, search: str, aliases: dict[str, str]) -> dict[str, Any] | list[dict[str, Any]]:
    """The space with its settings' full names. Raises RecipeError where it cannot be searched."""
    explicit = isinstance(space, list | tuple)
    if not space or not (isinstance(space, dict) or explicit and all(isinstance(s, dict) for s in space)):
        raise RecipeError(f"the space of a sweep is {space!r}", EXAMPLE)
    if explicit and search != "grid":
        raise RecipeError(
            "an explicit list of settings is tried as it is", "search='grid', or give each setting its values"
        )
    whole = [_renamed(settings, aliases) for settings in (space if explicit else [space])]
    if not explicit:
        for name, values in whole[0].items():
            _check_values(name, values, search)
    return whole if explicit else whole[0]


def _renamed(settings: dict[str, Any], aliases: dict[str, str]) -> dict[str, Any]:
    renamed = {aliases.get(name, name): plain(value) for name, value in settings.items()}
    if len(renamed) < len(settings):
        raise RecipeError(f"a setting is given under two names: {', '.join(settings)}", "give it once")
    for name in renamed:
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
            raise RecipeError(
                f"a sweep cannot vary {name}: losses on other rows, tokens or models cannot be compared",
                "seeds=3 runs every trial with three seeds"
                if name == "train.seed"
                else "sweep once for each value",
            )
    return renamed


def _check_values(name: str, values: Any, search: str) -> None:
    if isinstance(values, list):
        if not values:
            raise RecipeError(f"{name} has no values to choose from", EXAMPLE)
        return
    if not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= RANGE:
        raise RecipeError(
            f"{name} must be a list of values or {{'low': ..., 'high': ..., 'log': ...}}, got {values!r}",
            EXAMPLE,
        )
    if search == "grid":
        raise RecipeError(f"{name} is a range, and a grid needs values", "list them, or use search='optuna'")
    low, high = values["low"], values["high"]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or low > high or (values.get("log") and low <= 0):
        raise RecipeError(
            f"{name} must go from a low number to a high one{' above 0' if values.get('log') else ''}, got {values!r}"
        )


def grid(space: dict[str, list] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every combination, the last setting changing fastest; an explicit list as it is."""
    if isinstance(space, list):
        return space
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def corners(space: dict[str, Any]) -> list[dict[str, Any]]:
    """The first and the last of every setting's values."""
    ends = {n: v if isinstance(v, list) else (v["low"], v["high"]) for n, v in space.items()}
    return [{name: values[end] for name, values in ends.items()} for end in (0, -1)]


def check_applies(recipe: Recipe, listed: list[dict[str, Any]]) -> None:
    """Raise RecipeError when the recipe takes none of these settings; a few that it does not take are failed trials."""
    refused = []
    for settings in listed:
        try:
            applied(recipe, settings)
        except RecipeError as error:
            refused.append(error)
    if len(refused) == len(listed):
        raise refused[0]


def applied(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with these settings. Raises RecipeError for what it does not have."""
    names = sorted(settings, key=lambda name: name not in FIRST)
    return recipe_file.override(recipe, [f"{name}={json.dumps(settings[name])}" for name in names])


def value_of(recipe: Recipe, name: str) -> Any:
    """What the recipe says of a setting; None where it has no such setting."""
    values = recipe.to_dict()
    found = {**values["tuning"]["options"], **values["options"], **values}
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """The command line's form: "temperature=1,2,4" lists values, "train.learning_rate=1e-5:1e-3:log" is a range.

    Raises RecipeError.
    """
    space = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not text.strip():
            raise RecipeError(
                f"{assignment!r} is not setting=values",
                "examples: temperature=1,2,4 train.learning_rate=1e-5:1e-3:log",
            )
        space[name.strip()] = _range(text) or _values(assignment, text)
    return space


def _range(text: str) -> dict[str, Any] | None:
    low, *more = (number_or_text(part.strip()) for part in text.split(":"))
    numbers = [part for part in (low, *more[:1]) if not isinstance(part, str)]
    if len(numbers) < 2 or more[1:] not in ([], ["log"]):
        return None
    return {"low": low, "high": more[0], "log": more[1:] == ["log"]}


def _values(assignment: str, text: str) -> list:
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise RecipeError(f"{assignment!r}: the values are not valid YAML") from error
    return [number_or_text(value) if isinstance(value, str) else value for value in values]
