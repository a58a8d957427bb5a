"""Series -> scaled windows of look-back and horizon, cut when they are asked for, and the parts of a split.

Validation and test windows begin a look-back before their part, so every step of a part is forecast; no window is
left out at the end. Scales are those of the training rows alone.

Shapes: T times, C channels, L look-back, H horizon, n windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_finetuner.data import series
from llm_finetuner.data.series import Group
from llm_finetuner.errors import DataError, TooShort
from llm_finetuner.recipe_series import ETT_SPLITS, Series, shares_of

MONTH, TRAIN, OTHER = 30, 12, 4  # days, and months of the parts of the splits of ETT
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (ddof 0) of each channel: [C] each."""

    mean: np.ndarray
    spread: np.ndarray

    def down(self, values_TC: np.ndarray) -> np.ndarray:
        return (values_TC - self.mean) / self.spread

    def up(self, scaled: np.ndarray) -> np.ndarray:
        """Back to the units of the data; channels are the last axis."""
        return scaled * self.spread + self.mean


class Windows:
    """Rows of one part: {context [L, C], target [H, C], group} by number, cut out of the scaled series.

    A sequence as the loop wants it: len, a number or a list of them, select.
    """

    column_names = ("context", "target", "group")

    def __init__(
        self, scaled: Sequence[np.ndarray], starts: np.ndarray, lookback: int, horizon: int, frame: "Frame | None",
        part: str = "",
    ):  # fmt: skip
        """scaled: [T, C] of each group. starts: [n, 2], the group and the first step of each window."""
        self.scaled, self.starts, self.frame, self.part = scaled, starts, frame, part
        self.lookback, self.horizon = lookback, horizon

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int | slice | list[int]) -> dict[str, Any]:
        if isinstance(number, int | np.integer):
            group, start = (int(value) for value in self.starts[number])
            middle = start + self.lookback
            values = self.scaled[group]
            context, target = values[start:middle], values[middle : middle + self.horizon]
            return {"context": context, "target": target, "group": group}
        rows = [self[int(n)] for n in (range(len(self))[number] if isinstance(number, slice) else number)]
        return {name: [row[name] for row in rows] for name in self.column_names}

    def select(self, numbers: Sequence[int]) -> "Windows":
        return self._of(self.starts[list(numbers)])

    def __add__(self, other: "Windows") -> "Windows":
        """The windows of two parts of the same series."""
        return self._of(np.concatenate([self.starts, other.starts]))

    def _of(self, starts: np.ndarray) -> "Windows":
        return Windows(self.scaled, starts, self.lookback, self.horizon, self.frame, self.part)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All windows as arrays, a channel at a time: look-backs [n, L] and what followed [n, H]."""
        size = self.lookback + self.horizon
        for group in np.unique(self.starts[:, 0]):
            first = self.starts[self.starts[:, 0] == group, 1]
            views = np.lib.stride_tricks.sliding_window_view(self.scaled[group], size, axis=0)
            for channel in range(views.shape[1]):
                found = views[first, channel]
                yield found[:, : self.lookback], found[:, self.lookback :]


@dataclass(frozen=True)
class Frame:
    """Series, their scales, and where their parts begin and end."""

    groups: list[Group]
    scales: list[Scale]
    plan: Series
    borders: list[dict[str, tuple[int, int]]]  # of each group: part -> (first row, behind the last)
    season: int
    layout: str = ""  # how the table was read, in a sentence
    doubts: tuple[str, ...] = ()  # what of it was read otherwise than it may be meant

    @property
    def names(self) -> list[str]:
        """All channels, group by group."""
        return [name for group in self.groups for name in group.names]

    @property
    def trained_until(self) -> str | int | dict[str, str | int | list]:
        """The last time of the training rows, of several groups by series; without times (see Group.rows_until) too."""
        if any(group.frequency is None for group in self.groups):
            pairs = zip(self.groups, self.borders, strict=True)
            return {
                n: until for group, cut in pairs for n, until in group.rows_until(cut["train"][1]).items()
            }
        lasts = [
            group.times[borders["train"][1] - 1]
            for group, borders in zip(self.groups, self.borders, strict=True)
        ]
        ends = [int(last) if isinstance(last, np.integer) else str(last) for last in lasts]
        if len(ends) == 1:
            return ends[0]
        pairs = zip(self.groups, ends, strict=True)
        return {name: end for group, end in pairs for name in group.names}

    def narrowed(self, most: int) -> "Frame":
        """At most so many channels, evenly spaced, with all their times."""
        total = len(self.names)
        if total <= most:
            return self
        chosen, first, kept = {i * total // most for i in range(most)}, 0, []
        for place, (group, scale) in enumerate(zip(self.groups, self.scales, strict=True)):
            own = [i for i in range(len(group.names)) if first + i in chosen]
            first += len(group.names)
            if own:
                few = replace(group, values=group.values[:, own], names=[group.names[i] for i in own])
                kept.append((few, Scale(scale.mean[own], scale.spread[own]), self.borders[place]))
        groups, scales, borders = map(list, zip(*kept, strict=True))
        return replace(self, groups=groups, scales=scales, borders=borders)

    def part(self, name: str) -> Windows:
        """The windows of train, validation or test. Raises DataError where there is none."""
        plan, starts = self.plan, []
        size = plan.lookback + plan.horizon
        for number, borders in enumerate(self.borders):
            low, high = borders[name]
            low = low if name == "train" else max(0, low - plan.lookback)
            first = np.arange(low, high - size + 1, plan.window_step if name == "train" else 1)
            starts.append(np.stack([np.full_like(first, number), first], 1))
        found = np.concatenate(starts)
        if not len(found):
            raise DataError(
                f"the {name} part holds no window of {plan.lookback} + {plan.horizon} steps",
                "shorten --lookback or --horizon, or give that part more rows: --split (series.lookback, ...)",
            )
        scaled = [
            scale.down(group.values).astype(np.float32)
            for group, scale in zip(self.groups, self.scales, strict=True)
        ]
        return Windows(scaled, found, plan.lookback, plan.horizon, self, name)


def read(source: Any, plan: Series) -> Frame:
    """The series of a file, a DataFrame or a Dataset with their scales and parts. Raises DataError."""
    groups, layout = series.load(source, plan)
    found = frame(groups, plan, series.season_for(groups, plan), layout.describe())
    return replace(found, doubts=layout.doubts)


def frame(groups: Sequence[Group], plan: Series, season: int, layout: str = "") -> Frame:
    """Cut the parts and fit the scales. Raises DataError for series that are too short or never change."""
    kept, borders, short = [], [], []
    for group in groups:
        cut = _parts_if_long(group, plan)
        if cut is None:
            short.append(group)
        else:
            kept.append(group)
            borders.append(cut)
    if short and (plan.short == "error" or not kept):
        group, wanted = short[0], plan.lookback + plan.horizon
        cut = parts(len(group.values), plan)
        raise TooShort(
            f"{', '.join(group.names[:3])}: {len(group.values)} rows are too few for split {plan.split}: "
            f"{cut['train'][1]} to train and {cut['test'][1] - cut['test'][0]} to test, where a window takes {wanted}",
            "shorten --lookback or --horizon, choose another --split (series.lookback, ...)"
            + (", or --short drop (series.short) leaves such series out" if len(groups) > 1 else ""),
        )
    scales = [_scale(group, cut["scale"], plan) for group, cut in zip(kept, borders, strict=True)]
    return Frame(kept, scales, plan, borders, season, layout)


def _parts_if_long(group: Group, plan: Series) -> dict[str, tuple[int, int]] | None:
    """The parts of a series; None where those to train and to test hold no window."""
    try:
        cut = parts(len(group.values), plan)
    except TooShort:
        return None
    low, high = cut["train"]
    enough = high - low >= plan.lookback + plan.horizon and cut["test"][1] - cut["test"][0] >= plan.horizon
    return cut if enough else None


def parts(rows: int, plan: Series) -> dict[str, tuple[int, int]]:
    """(first row, behind the last) of each part, and of the rows that the scale is fitted to. Raises TooShort."""
    shares = shares_of(plan.split)
    if shares is None:
        month = MONTH * ETT_SPLITS[plan.split]
        train, validation, end = TRAIN * month, (TRAIN + OTHER) * month, (TRAIN + 2 * OTHER) * month
        if rows < end:
            raise TooShort(
                f"{rows} rows are too few for split {plan.split}, which takes {end}",
                "--split 70-10-20 (series.split) takes shares of whatever there is; of a long table --short drop "
                "(series.short) leaves such series out",
            )
    else:
        train, end = int(rows * shares[0]), rows
        validation = rows - int(rows * shares[2])
    few = (
        int((train - plan.lookback) * plan.train_percent // 100) + plan.lookback
    )  # as published code counts them
    used = train if plan.train_percent == 100 else max(0, few)
    return {
        "train": (0, used),
        "validation": (train, validation),
        "test": (validation, end),
        "scale": (0, train),
    }


def _scale(group: Group, rows: tuple[int, int], plan: Series) -> Scale:
    train_TC = group.values[rows[0] : rows[1]]
    mean, spread = train_TC.mean(0), train_TC.std(0)
    flat = spread <= 1e-12 * np.abs(mean)
    if flat.any():
        if plan.constant == "error":
            raise DataError(
                f"{group.names[int(np.flatnonzero(flat)[0])]!r} never changes in the {len(train_TC)} training rows",
                "leave it out (--targets, series.targets), or --constant keep (series.constant) takes it as it is",
            )
        spread = np.where(flat, 1.0, spread)
    return Scale(mean, spread)
