"""Numbers that may change over a run: a weight or a temperature is 2.0, or "4..1" (linear), or "4..1:cosine"."""

import math
import re

from llm_finetuner.errors import RecipeError

SHAPES = ("linear", "cosine")
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RAMP = re.compile(rf"^\s*{_NUMBER}\s*\.\.\s*{_NUMBER}\s*(?::\s*(\w+)\s*)?$")


def at(value: float | str, progress: float) -> float:
    """The number at `progress` of the run, 0 at its first step and 1 at its last."""
    if not isinstance(value, str):
        return float(value)
    start, end, shape = read(value)
    if shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress


def read(value: str) -> tuple[float, float, str]:
    """ "4..1:cosine" -> (4.0, 1.0, "cosine"). Raises RecipeError."""
    match = _RAMP.match(value)
    shape = match and (match[3] or "linear")
    if match is None or shape not in SHAPES:
        raise RecipeError(
            f"{value!r} is not a number that changes over the run",
            f"write start..end, such as 4..1 or 4..1:cosine ({' or '.join(SHAPES)})",
        )
    return float(match[1]), float(match[2]), shape


def ends(value: float | str) -> tuple[float, ...]:
    """All values lie between these."""
    return read(value)[:2] if isinstance(value, str) else (value,)
