"""A table of numbers over time -> series on regular clocks, or an error that says where it is none.

    wide    date, HUFL, HULL, ...               a row a time, a column a channel
    long    unique_id, ds, y                    a row a time and series; also item_id, timestamp, target

Series that share their times are channels of one group; others are groups of one channel. Rows may come in any order.
Shapes: T times, C channels.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_finetuner.errors import DataError
from llm_finetuner.recipe_series import Series

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("date", "ds", "timestamp", "time", "datetime")
IDS = ("unique_id", "item_id")
VALUES = ("y", "target")
NO_TIMES = "none"
EXPECTED = (
    "wide: a column of times (date, ds, timestamp, time, datetime) and columns of numbers; long: unique_id, ds, y or "
    "item_id, timestamp, target; or name them: --time-column, --id-column, --targets"
)
SEASONS = {
    "h": 24,
    "min": 60,
    "s": 60,
    "D": 7,
    "B": 5,
    "W": 52,
    "M": 12,
    "Q": 4,
}  # steps, by the unit of the frequency


@dataclass(frozen=True)
class Group:
    """Series on one clock: values [T, C] float64, times [T] (a pandas index), names [C]."""

    values: np.ndarray
    times: "pd.Index"
    names: list[str]
    frequency: str | None  # of pandas; None where rows only follow in order

    def later(self, count: int) -> "pd.Index":
        """The next times after the last one."""
        import pandas as pd

        if self.frequency is None:
            return pd.RangeIndex(len(self.times), len(self.times) + count)
        return pd.date_range(self.times[-1], periods=count + 1, freq=self.frequency)[1:]


@dataclass(frozen=True)
class Layout:
    """Which columns were read: `series` is None of a wide table."""

    time: str | None
    series: str | None
    targets: list[str]

    def describe(self) -> str:
        """One plain sentence on how the table is read."""
        when = f"times in '{self.time}'" if self.time else "rows in their order"
        if self.series:
            return f"a long table: series by '{self.series}', {when}, numbers in '{self.targets[0]}'"
        shown = ", ".join(self.targets[:8]) + (", ..." if len(self.targets) > 8 else "")
        return f"a wide table: {when}, {len(self.targets)} channels: {shown}"


def load(source: Any, plan: Series) -> tuple[list[Group], Layout]:
    """Read a CSV, TSV or parquet file, a DataFrame or a Dataset. Raises DataError with the place of what is wrong."""
    table, name = read_table(source)
    table = table.reset_index(drop=True)  # rows are told by their places
    try:
        layout = recognise(table, plan)
        return _groups(table, layout, plan), layout
    except DataError as error:
        raise DataError(f"{name}: {error.what}", error.hint) from error


def read_table(source: Any) -> tuple["pd.DataFrame", str]:
    """(the table as it is, what errors call it). Raises DataError."""
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source, "the DataFrame given"
    if type(source).__name__ == "Dataset":
        return source.to_pandas(), "the Dataset given"
    path = Path(str(source)).expanduser()
    if not path.is_file():
        raise DataError(f"{source} is not a file", "give a .csv, .tsv or .parquet file of numbers over time")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path), path.name
        if path.suffix in (".csv", ".tsv", ".txt"):
            return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ","), path.name
    except (
        ValueError,
        OSError,
    ) as error:  # pandas: EmptyDataError, ParserError and pyarrow's are ValueErrors
        raise DataError(f"cannot read {source}: {str(error).splitlines()[0]}", EXPECTED) from error
    raise DataError(f"{source} is no table that is read here", "give a .csv, .tsv or .parquet file")


def recognise(table: "pd.DataFrame", plan: Series) -> Layout:
    """The columns of times, series and numbers, by their names (case does not count) or as the plan names them."""
    import pandas as pd

    actual = {str(column).lower().strip(): column for column in reversed(table.columns)}

    def named(given: str) -> str:
        if given.lower().strip() not in actual:
            listed = ", ".join(map(str, table.columns))
            raise DataError(f"there is no column {given!r}", f"columns found: {listed}")
        return actual[given.lower().strip()]

    def known(names: tuple[str, ...]) -> str | None:
        return next((actual[name] for name in names if name in actual), None)

    ordered = plan.time_column == NO_TIMES
    time = None if ordered else named(plan.time_column) if plan.time_column else known(TIMES)
    series = named(plan.id_column) if plan.id_column else known(IDS)
    if time is None and not ordered:
        raise DataError(
            f"no column of times among those found: {', '.join(map(str, table.columns))}",
            EXPECTED + "; --time-column none takes the rows in their order",
        )
    if plan.targets:
        targets = [named(target) for target in plan.targets]
    elif series:
        targets = [found] if (found := known(VALUES)) else []
    else:
        targets = [column for column in table.columns if column != time]
    if not targets or (series and len(targets) != 1):
        raise DataError(
            f"{len(targets)} columns of numbers to forecast: {', '.join(map(str, targets))}", EXPECTED
        )
    for target in targets:
        if not pd.api.types.is_numeric_dtype(table[target]) or pd.api.types.is_bool_dtype(table[target]):
            raise DataError(*_no_number(table, target))
    return Layout(time, series, targets)


def _no_number(table: "pd.DataFrame", column: str) -> tuple[str, str]:
    """(what is wrong, what to do) for a column that is not all numbers."""
    import pandas as pd

    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = table.index[numbers.isna() & table[column].notna()]
    hint = "mend it, or name the columns of numbers: --targets A B (series.targets)"
    if not len(wrong):
        return f"column {column!r} holds {table[column].dtype}, not numbers", hint
    return f"line {wrong[0] + 2}, column {column!r}: {table[column][wrong[0]]!r} is not a number", hint


def _groups(table: "pd.DataFrame", layout: Layout, plan: Series) -> list[Group]:
    import pandas as pd

    if not len(table):
        raise DataError("the table has no rows", EXPECTED)
    times = _times(table, layout)
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
        parts[str(name)] = _regular(values.set_axis(own), f" of series {name!r}", plan)
    groups = list(parts.values())
    if all(group.times.equals(groups[0].times) for group in groups):
        values = np.concatenate([group.values for group in groups], 1)
        return [Group(values, groups[0].times, list(parts), groups[0].frequency)]
    return groups


def _times(table: "pd.DataFrame", layout: Layout) -> "pd.Index":
    import pandas as pd

    if layout.time is None:
        return pd.RangeIndex(len(table))
    column = table[layout.time]
    parsed = pd.to_datetime(column, errors="coerce")
    if parsed.isna().any():
        row = int(np.flatnonzero(parsed.isna())[0])
        raise DataError(
            f"line {row + 2}, column {layout.time!r}: {column.iloc[row]!r} is not a time",
            "write times as 2016-07-01 00:00:00",
        )
    return pd.DatetimeIndex(parsed)


def _regular(values: "pd.DataFrame", whose: str, plan: Series) -> Group:
    """Sort by time, and see to times that come twice, are left out, and to numbers that are."""
    import pandas as pd

    frequency = None
    if isinstance(values.index, pd.DatetimeIndex):
        values = values.sort_index(kind="stable")
        values = _once(values, whose, plan)
        frequency, values = _clock(values, whose, plan)
    return Group(
        _filled(values, whose, plan).to_numpy(float),
        values.index,
        [str(c) for c in values.columns],
        frequency,
    )


def _once(values: "pd.DataFrame", whose: str, plan: Series) -> "pd.DataFrame":
    twice = values.index[values.index.duplicated()]
    if not len(twice):
        return values
    if plan.duplicates == "error":
        raise DataError(
            f"{len(twice)} times{whose} come more than once, the first is {twice[0]}",
            "--duplicates first, last or mean (series.duplicates) takes one; or is it a long table? --id-column NAME",
        )
    if plan.duplicates == "mean":
        return values.groupby(level=0).mean()
    return values[~values.index.duplicated(keep=plan.duplicates)]


def _clock(values: "pd.DataFrame", whose: str, plan: Series) -> tuple[str, "pd.DataFrame"]:
    """(frequency, rows at all of its times). Raises DataError for gaps, unless they are to be filled."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    times = values.index
    if len(times) < 3:
        raise DataError(f"{len(times)} rows{whose} are too few to tell the frequency", "give a longer series")
    frequency = _frequency(times)
    if frequency is not None:
        return frequency, values
    # months differ in length, so it is looked for in runs of rows before the most common gap is taken
    starts = range(0, len(times) - 8, max(1, len(times) // 64))
    runs = (_frequency(times[start : start + 8]) for start in starts)
    gap = times.to_series().diff().mode()[0]
    frequency = next((found for found in runs if found), None) or to_offset(gap).freqstr
    whole = pd.date_range(times[0], times[-1], freq=frequency)
    odd = times.difference(whole)
    if len(odd):
        raise DataError(
            f"times{whose} are irregular: {odd[0]} is not on the clock of {frequency} that begins at {times[0]}",
            "bring the rows to a regular clock, or say --time-column none to take them in their order",
        )
    if plan.irregular == "error":
        lost = whole.difference(times)
        raise DataError(
            f"{len(lost)} times{whose} are left out (frequency {frequency}), the first is {lost[0]}",
            "--irregular fill (series.irregular) makes missing numbers of them; --missing says what becomes of those",
        )
    return frequency, values.reindex(whole)


def _frequency(times: "pd.DatetimeIndex") -> str | None:
    """As pandas tells it; None where the times follow no clock."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a later pandas gives an offset, not its name
        found = pd.infer_freq(times)
    return None if found is None else to_offset(found).freqstr


def _filled(values: "pd.DataFrame", whose: str, plan: Series) -> "pd.DataFrame":
    values = values.replace([np.inf, -np.inf], np.nan)
    lost = values.isna()
    if not lost.to_numpy().any():
        return values
    if plan.missing == "error":
        column = values.columns[lost.any()][0]
        raise DataError(
            f"{int(lost.to_numpy().sum())} numbers{whose} are missing, the first in {column!r} at "
            f"{values.index[lost[column]][0]}",
            "--missing forward repeats the last number, --missing interpolate draws a line to the next one, which "
            "knows the future (series.missing)",
        )
    if plan.missing == "interpolate":
        values = values.interpolate(limit_direction="forward", limit_area="inside")
    values = values.ffill()
    if values.isna().to_numpy().any():
        column = values.columns[values.isna().any()][0]
        raise DataError(f"{column!r}{whose} begins without a number", "leave its first rows out of the file")
    return values


def season_of(frequency: str | None) -> int:
    """Steps of the season that a frequency is known for; 1 for others."""
    from pandas.tseries.frequencies import to_offset

    if frequency is None:
        return 1
    offset = to_offset(frequency)
    unit = offset.rule_code.split("-")[0]
    if unit == "min":  # a day of them, as forecasters count it
        return max(1, 24 * 60 // offset.n)
    for name, steps in SEASONS.items():
        if unit.startswith(name) or unit.endswith(name):
            return max(1, steps // offset.n)
    return 1
