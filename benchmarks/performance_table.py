"""Medians, ratios by round, the bars they are held against, and both as Markdown tables."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from performance_process import Variant

Records = dict[str, list[dict]]  # variant -> one record a round
FIGURES: dict[str, Callable[[dict], float]] = {
    "cpu": lambda r: r["cpu"],
    "wall": lambda r: r["wall"],
    "peak": lambda r: r["peak"],
    "above": lambda r: r["above"],
    "rate": lambda r: r["facts"]["tokens"] / r["cpu"],
}
MEGABYTE = 1e6


@dataclass(frozen=True)
class Bar:
    """`figure` of one variant over that of another, round by round; the median must reach the limit."""

    said: str
    over: str
    under: str
    limit: float
    figure: str = "cpu"
    at_most: bool = False

    def values(self, records: Records) -> list[float]:
        value = FIGURES[self.figure]
        pairs = zip(records[self.over], records[self.under], strict=True)
        return [value(a) / value(b) for a, b in pairs]

    def reached(self, found: list[float]) -> bool:
        middle = statistics.median(found)
        return middle <= self.limit if self.at_most else middle >= self.limit


@dataclass(frozen=True)
class Same:
    """The loss of two variants, apart by at most such a share of it in every round."""

    said: str
    over: str
    under: str
    limit: float

    def values(self, records: Records) -> list[float]:
        pairs = zip(records[self.over], records[self.under], strict=True)
        return [abs(a["facts"]["loss"] / b["facts"]["loss"] - 1) for a, b in pairs]

    def reached(self, found: list[float]) -> bool:
        return max(found) <= self.limit


@dataclass(frozen=True)
class Bound:
    """A fact that every record of a variant tells, and that may be at most so much."""

    said: str
    variant: str
    fact: str
    limit: float

    over = under = property(lambda self: self.variant)

    def values(self, records: Records) -> list[float]:
        return [record["facts"][self.fact] for record in records[self.variant]]

    def reached(self, found: list[float]) -> bool:
        return max(found) <= self.limit


@dataclass(frozen=True)
class Piece:
    """One piece of work, done in several ways. against: the variant that the column of ratios compares with."""

    title: str
    variants: dict[str, Variant]
    against: str
    bars: list[Bar | Bound | Same] = field(default_factory=list)
    notes: str = ""
    looks_at: Literal["time", "memory", "facts"] = "time"  # without time one repetition is enough
    rate: bool = False  # a column of tokens a CPU second
    memory: Literal["peak", "above"] = "peak"  # above: the models' weights and gradients not counted


def table(piece: Piece, records: Records, failed: dict[str, str]) -> str:
    """The figures of every variant."""
    if piece.looks_at == "facts":
        return _facts(records, failed)
    timed, figure = piece.looks_at == "time", "cpu" if piece.looks_at == "time" else piece.memory
    heads = ["", *(["CPU s", "wall s"] if timed else [])]
    heads += ["peak above weights, MB" if piece.memory == "above" else "peak, MB"]
    heads += ["tokens / CPU s"] if piece.rate else []
    lines = [[*heads, f"{'CPU' if timed else 'peak'} / {piece.against}"]]
    for name in piece.variants:
        if name not in records:
            lines.append([name, failed[name]] + [""] * (len(heads) - 1))
            continue
        found = records[name]
        cells = [name, *(f"{_median(found, which):.3g}" for which in ("cpu", "wall") if timed)]
        cells += [f"{max(r[piece.memory] for r in found) / MEGABYTE:,.0f}"]
        cells += [f"{_median(found, 'rate'):.4g}"] if piece.rate else []
        ratios = Bar("", name, piece.against, 0, figure).values(records) if piece.against in records else []
        lines.append([*cells, spread(ratios)])
    return markdown(lines)


def _facts(records: Records, failed: dict[str, str]) -> str:
    """A line for every fact, a column for every variant."""
    told = {name: found[-1]["facts"] for name, found in records.items()}
    facts = dict.fromkeys(fact for facts in told.values() for fact in facts)
    lines = [["", *told, *failed]]
    for fact in facts:
        lines.append([fact, *(f"{facts[fact]:.2g}" for facts in told.values()), *failed.values()])
    return markdown(lines)


def verdicts(piece: Piece, records: Records, failed: dict[str, str]) -> tuple[str, bool]:
    """What became of the bars, and whether all that could be measured are reached."""
    lines, good = [["bar", "found (range of the rounds)", ""]], True
    for bar in piece.bars:
        missing = [name for name in (bar.over, bar.under) if name not in records]
        if missing:
            lines.append([bar.said, f"not measured: {missing[0]}: {failed[missing[0]]}", ""])
            continue
        found = bar.values(records)
        reached = bar.reached(found)
        good = good and reached
        lines.append([bar.said, spread(found), "pass" if reached else "MISSED"])
    return markdown(lines) if piece.bars else "", good


def spread(values: list[float]) -> str:
    """The median and, of several, the range."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} - {max(values):.3g})"


def markdown(lines: list[list[str]]) -> str:
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def _median(found: list[dict], figure: str) -> float:
    return statistics.median(FIGURES[figure](record) for record in found)
