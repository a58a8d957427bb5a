"""How figures of a comparison are written in sentences: differences, ratios and lists, the same for every task.

A difference has its direction in a word and its interval in signs, minus for lower: "1.3 % lower (95 % interval -1.7 to
-0.9 %)".
"""

import math
from collections.abc import Sequence

from llm_finetuner.benchmark.enough import ENOUGH

FEW = "examples only, too few for an interval"
OVERLAP = "windows that overlap, too few for an interval"
LEAST = 0.05  # of a difference: less would be written as 0.0


def change(pair: dict, examples: int, unit: str) -> str:
    """The difference of a pair as it is printed, its interval, and whether it is more than the uncertainty."""
    if not math.isfinite(pair["difference"]):
        return "which cannot be compared"
    size = pair["change"]
    shown = f"{abs(size):.1f}" if abs(size) >= LEAST else f"less than {LEAST}"
    way = f"{shown} {unit} {'lower' if size < 0 else 'higher'}" if size else "no different"
    if examples < ENOUGH or pair["low"] is None:
        return f"{way} on {examples} {FEW if examples < ENOUGH else OVERLAP}"
    low, high = pair["change_low"], pair["change_high"]
    more = "more" if pair["significant"] else "not more"
    said = f"{way} (95 % interval {low:+.1f} to {high:+.1f} {unit}), {more} than the uncertainty"
    if not pair["significant"] and (low > 0 or high < 0):
        said += f": few examples tell the two apart, and they may do so by chance (p = {pair['p']:.2f})"
    return said


def times(ratio: float) -> str:
    """A ratio above 0, of two digits at least: 14.3 | 1.0 | 0.038."""
    if ratio >= 0.95:
        return f"{ratio:,.1f}"
    return f"{ratio:.{1 - math.floor(math.log10(ratio))}f}"


def listed(names: Sequence[str]) -> str:
    """a | a and b | a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
