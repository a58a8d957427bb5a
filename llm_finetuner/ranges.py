"""Checks of options: what is out of range is told to the user before it becomes a NaN, or means another label."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from llm_finetuner.errors import RecipeError


def check_number(
    option: str, value: Any, low: float, high: float = math.inf, *, closed: bool = False, hint: str = ""
) -> None:
    """Raise RecipeError unless low < value < high, or value == low where the range is closed below."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and (low < value < high or (closed and value == low)):
        return
    below = f"at least {low:g}" if closed else f"above {low:g}"
    above = "" if high == math.inf else f" and below {high:g}"
    raise RecipeError(f"{option} must be a number {below}{above}, got {value!r}", hint)


def number_or_text(text: str) -> int | float | str:
    """The number that a text spells (1e-4 too, which YAML takes for text), else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_count(option: str, value: Any, low: int) -> None:
    """Raise RecipeError unless value is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise RecipeError(f"{option} must be a whole number of at least {low}, got {value!r}")


def check_shares(weights: Any, count: int) -> None:
    """Raise RecipeError unless these weights of several teachers are `count` numbers from 0, one of them above."""
    numbers_only = isinstance(weights, list) and all(isinstance(w, int | float) and w >= 0 for w in weights)
    if not numbers_only or len(weights) != count or not sum(weights):
        raise RecipeError(
            f"weights of {count} teachers must be {count} numbers from 0, or loss; got {weights!r}",
            "leave them out to weigh all the same",
        )


def check_levels(quantiles: Sequence[float]) -> list[float]:
    """Levels of quantiles as a list. Raises RecipeError unless they ascend within (0, 1) and hold the median."""
    levels = [float(level) for level in quantiles]
    fits = all(0 < level < 1 for level in levels) and levels == sorted(set(levels))
    if not fits or (levels and 0.5 not in levels):
        raise RecipeError(
            f"quantiles must be levels between 0 and 1, ascending, with 0.5 among them, got {list(quantiles)}",
            "such as [0.1, 0.5, 0.9] for intervals of 80 %; [] forecasts one number a step",
        )
    return levels


def check_names(option: str, names: Any) -> None:
    """Raise RecipeError unless these are names, each once; None: none are given."""
    if names is None:
        return
    texts = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not texts or not names or len(set(names)) < len(names):
        raise RecipeError(
            f"{option} must be a list of names, each once, got {names!r}",
            "quote what YAML reads as something else: ['no', 'yes'], ['1', '2']",
        )


def check_weights(option: str, weights: Any) -> None:
    """Raise RecipeError unless these are weights by name, or "balanced"; None: none are given."""
    if weights is None or weights == "balanced":
        return
    if not isinstance(weights, dict) or not weights:
        raise RecipeError(f"{option} must be balanced, or weights by label, got {weights!r}")
    for name, weight in weights.items():
        check_number(f"{option}: the weight of {name}", weight, 0)
