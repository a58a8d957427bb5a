"""A table of numbers over time -> series on regular clocks, or an error that says where it is none.

    wide    date, HUFL, HULL, ...               a row a time, a column a channel
    long    unique_id, ds, y                    a row a time and series; also item_id, timestamp, target

Series that share their times are channels of one group; others are groups of one channel. Rows may come in any order.
Shapes: T times, C channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_finetuner.data import clock, tables
from llm_finetuner.data.clock import Frequency, season_of
from llm_finetuner.data.tables import EXPECTED
from llm_finetuner.errors import DataError, TooShort
from llm_finetuner.recipe_series import Series

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("date", "ds", "timestamp", "time", "datetime")
IDS = ("unique_id", "item_id")
VALUES = ("y", "target")
NO_TIMES = "none"


@dataclass(frozen=True)
class Group:
    """Series on one clock: values [T, C] float64, times [T] (a pandas index), names [C]."""

    values: np.ndarray
    times: "pd.Index"
    names: list[str]
    frequency: Frequency | None  # None where rows only follow in order

    def later(self, count: int) -> "pd.Index":
        """The next times after the last one."""
        import pandas as pd

        if self.frequency is None:
            return pd.RangeIndex(len(self.times), len(self.times) + count)
        return clock.later(self.times[-1], count, self.frequency)

    def count_until(self, until: str | int | list | None, name: str | None = None) -> int | None:
        """How many rows are up to a time; None where one of the two has no times, or times of another kind.

        Where rows were counted (`rows_until`) so many, if the channel `name` begins with the same ones; else None.
        """
        if isinstance(until, list):
            count = until[0]
            known = len(self.values) >= count and self._rows(count, self.names.index(name)) == until
            return count if known else None
        if until is None or self.frequency is None:
            return None
        return clock.count_until(self.times, until, self.frequency)

    def rows_until(self, count: int) -> dict[str, list]:
        """The first rows of each channel, told by their number and a digest, [count, digest], as times cannot."""
        return {name: self._rows(count, channel) for channel, name in enumerate(self.names)}

    def _rows(self, count: int, channel: int) -> list:
        # of float32, for readers of files differ in the last bits of float64
        first_T = self.values[:count, channel].astype(np.float32)
        return [count, hashlib.sha256(first_T.tobytes()).hexdigest()[:16]]


@dataclass(frozen=True)
class Layout:
    """Which columns were read: `series` is None of a wide table. doubts: what may be meant otherwise."""

    time: str | None
    series: str | None
    targets: list[str]
    doubts: tuple[str, ...] = ()

    def describe(self) -> str:
        """One plain sentence on how the table is read."""
        when = f"times in '{self.time}'" if self.time else "rows in their order"
        if self.series:
            return f"a long table: series by '{self.series}', {when}, numbers in '{self.targets[0]}'"
        shown = ", ".join(self.targets[:8]) + (", ..." if len(self.targets) > 8 else "")
        return f"a wide table: {when}, {len(self.targets)} channels: {shown}"


def load(source: Any, plan: Series) -> tuple[list[Group], Layout]:
    """Read a CSV, TSV or parquet file, a DataFrame or a Dataset. Raises DataError with the place of what is wrong."""
    table, name, doubts = tables.read(source)
    try:
        layout = recognise(table, plan)
        layout = replace(layout, doubts=(*doubts, *layout.doubts))
        return _groups(table.reset_index(drop=True), layout, plan), layout
    except DataError as error:
        raise DataError(f"{name}: {error.what}", error.hint) from error


def recognise(table: "pd.DataFrame", plan: Series) -> Layout:
    """The columns of times, series and numbers, by their names (case does not count) or as the plan names them."""
    actual = {str(column).lower().strip(): column for column in reversed(table.columns)}

    def known(names: tuple[str, ...]) -> str | None:
        return next((actual[name] for name in names if name in actual), None)

    def named(given: str) -> str:
        if given in table.columns:
            return given
        if given.lower().strip() not in actual:
            raise DataError(f"there is no column {given!r}", _columns_of(table))
        return actual[given.lower().strip()]

    ordered = plan.time_column == NO_TIMES
    time = None if ordered else named(plan.time_column) if plan.time_column else known(TIMES)
    series = named(plan.id_column) if plan.id_column else known(IDS)
    if time is None and not ordered:
        raise DataError(
            f"no column of times among those found: {', '.join(map(str, table.columns))}",
            tables.in_index(table) or f"{EXPECTED}; --time-column none takes the rows in their order",
        )
    doubts: tuple[str, ...] = ()
    if plan.targets:
        targets = [named(target) for target in plan.targets]
    elif series:
        targets = [found] if (found := known(VALUES)) else []
    else:
        others = [column for column in table.columns if column != time]
        numbered, doubts = tables.nameless(table, others)
        targets = [column for column in others if column not in numbered]
    if not targets or (series and len(targets) != 1):
        raise DataError(
            f"{len(targets)} columns of numbers to forecast: {', '.join(map(str, targets))}", EXPECTED
        )
    tables.check_numbers(table, targets)
    return Layout(time, series, targets, doubts)


def _columns_of(table: "pd.DataFrame") -> str:
    """What to do where a column is not there."""
    hint = tables.in_index(table) or f"columns found: {', '.join(map(str, table.columns))}"
    commas = any("," in str(column) for column in table.columns)
    return hint + commas * """; quotes keep a comma in a name: --targets '"a, b"'"""


def _groups(table: "pd.DataFrame", layout: Layout, plan: Series) -> list[Group]:
    import pandas as pd

    times = clock.read_times(table[layout.time]) if layout.time else pd.RangeIndex(len(table))
    if layout.series is None:
        wide = table[layout.targets].set_axis(times)
        return [_regular(wide.astype(float), "", plan)]
    parts = {}
    for name, rows in table.groupby(layout.series, sort=True, dropna=False).groups.items():
        if pd.isna(name):
            raise DataError(
                f"line {rows[0] + 2}: column {layout.series!r} is empty", "give each row its series"
            )
        values = table.loc[rows, layout.targets].astype(float).set_axis([str(name)], axis=1)
        own = times[rows] if layout.time else pd.RangeIndex(len(rows))
        try:
            parts[str(name)] = _regular(values.set_axis(own), f" of series {name!r}", plan)
        except TooShort as error:
            if plan.short != "drop":
                raise TooShort(
                    error.what, f"{error.hint}, or --short drop (series.short) leaves it out"
                ) from error
    if not parts:
        raise TooShort("all series are too short to tell their frequency", "give longer series")
    groups = list(parts.values())
    if all(group.times.equals(groups[0].times) for group in groups):
        values = np.concatenate([group.values for group in groups], 1)
        return [Group(values, groups[0].times, list(parts), groups[0].frequency)]
    return groups


def _regular(values: "pd.DataFrame", whose: str, plan: Series) -> Group:
    """Sort by time, and see to times that come twice, are left out, and to numbers that are."""
    frequency = None
    if plan.time_column != NO_TIMES:
        values = clock.once(values.sort_index(kind="stable"), whose, plan)
        frequency, values = clock.regular(values, whose, plan)
    return Group(
        _filled(values, whose, plan).to_numpy(float),
        values.index,
        [str(c) for c in values.columns],
        frequency,
    )


def _filled(values: "pd.DataFrame", whose: str, plan: Series) -> "pd.DataFrame":
    endless = int(np.isinf(values.to_numpy()).sum())
    values = values.replace([np.inf, -np.inf], np.nan)
    lost = values.isna()
    count = int(lost.to_numpy().sum())
    if not count:
        return values
    if plan.missing == "error":
        column = values.columns[lost.any()][0]
        what = "missing" if not endless else "infinite" if endless == count else "missing or infinite"
        raise DataError(
            f"{count} numbers{whose} are {what}, the first in {column!r} at {values.index[lost[column]][0]}",
            "--missing forward repeats the last number, --missing interpolate draws a line to the next one, which "
            "knows the future (series.missing)" + "; each takes infinite ones for missing" * bool(endless),
        )
    if plan.missing == "interpolate":
        values = values.interpolate(limit_direction="forward", limit_area="inside")
    values = values.ffill()
    if values.isna().to_numpy().any():
        column = values.columns[values.isna().any()][0]
        raise DataError(f"{column!r}{whose} begins without a number", "leave its first rows out of the file")
    return values


def season_for(groups: Sequence[Group], plan: Series) -> int:
    """Steps of a season of all groups. Raises DataError where their frequencies have different ones."""
    if plan.season:
        return plan.season
    known = {season_of(group.frequency): group for group in groups}
    if len(known) > 1:
        told = ", ".join(f"{group.names[0]!r} every {group.frequency}" for group in list(known.values())[:3])
        raise DataError(
            f"series have different frequencies, and so different seasons: {told}",
            "name the steps of a season (--season, series.season), or give series of one frequency",
        )
    return next(iter(known))
