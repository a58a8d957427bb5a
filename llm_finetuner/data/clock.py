"""Times of a series: how they are read, what step they follow, and how many steps a season has.

A frequency is a name of pandas ("h", "MS"), or the step of times that are whole numbers, such as 1.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from llm_finetuner.errors import DataError, TooShort
from llm_finetuner.recipe_series import Series

if TYPE_CHECKING:
    import pandas as pd

DAY_HOURS, DAY_MINUTES = 24, 24 * 60
SEASONS = {
    "YE": 1, "YS": 1, "BYE": 1, "BYS": 1, "HYE": 2, "HYS": 2, "BHYE": 2, "BHYS": 2,
    "QE": 4, "QS": 4, "BQE": 4, "BQS": 4, "REQ": 4,
    "ME": 12, "MS": 12, "BME": 12, "BMS": 12, "CBME": 12, "CBMS": 12, "WOM": 12, "LWOM": 12, "SME": 24, "SMS": 24,
    "W": 52, "D": 7, "B": 5, "C": 5, "bh": 8, "cbh": 8, "h": DAY_HOURS, "min": DAY_MINUTES, "s": 60,
}  # fmt: skip
# steps, by the rule code of pandas: a year of months, a day of hours; a minute of seconds

Frequency = str | int
DATE = r"^\s*(\d{1,2})[/.-](\d{1,2})[/.-](\d{4}|\d{2})(?!\d)"  # the year last: day and month in either order
ISO = "write times as 2016-07-01 00:00:00"


def read_times(column: "pd.Series") -> "pd.Index":
    """Times of a column: of a clock, or whole numbers as they are. Raises DataError."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce").astype(float).to_numpy()
        _check_none(
            column, ~np.isfinite(numbers) | (numbers % 1 != 0), "is neither a time nor a whole number"
        )
        return pd.Index(column.to_numpy().astype(np.int64))
    first = _day_first(column)
    try:
        parsed = pd.DatetimeIndex(pd.to_datetime(column, errors="coerce", dayfirst=first))
    except ValueError:  # offsets differ, as on both sides of a clock change
        parsed = pd.DatetimeIndex(pd.to_datetime(column, errors="coerce", dayfirst=first, utc=True))
    _check_none(column, parsed.isna(), "is not a time")
    return parsed


def _day_first(column: "pd.Series") -> bool:
    """Whether dates such as 13/02/2020 name the day before the month. Raises DataError where nobody can tell."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return False
    found = column.astype(str).str.extract(DATE).dropna(subset=[0, 1])
    one, two = found[0].astype(int), found[1].astype(int)
    if not (one != two).any():
        return False
    day_first, month_first = bool((one > 12).any()), bool((two > 12).any())
    if day_first != month_first and not (found[2].str.len() == 2).any():
        return day_first
    row = int((one != two).idxmax())
    raise DataError(
        f"line {row + 2}, column {column.name!r}: nobody can tell the day from the month in {column[row]!r}"
        + (" and the other dates: either comes first in some of them" if day_first and month_first else ""),
        ISO,
    )


def _check_none(column: "pd.Series", wrong: np.ndarray, said: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"line {row + 2}, column {column.name!r}: {column.iloc[row]!r} {said}",
            ISO,
        )


def once(values: "pd.DataFrame", whose: str, plan: Series) -> "pd.DataFrame":
    """Rows whose times come once. Raises DataError, unless the plan says which of several to take."""
    twice = values.index[values.index.duplicated()]
    if not len(twice):
        return values
    if plan.duplicates == "error":
        raise DataError(
            f"{len(twice)} times{whose} come more than once, the first is {twice[0]}",
            "--duplicates first, last or mean (series.duplicates) takes one; or is it a long table? --id-column NAME "
            "(series.id_column)",
        )
    if plan.duplicates == "mean":
        return values.groupby(level=0).mean()
    return values[~values.index.duplicated(keep=plan.duplicates)]


def regular(values: "pd.DataFrame", whose: str, plan: Series) -> tuple[Frequency, "pd.DataFrame"]:
    """(frequency, rows at all of its times). Raises DataError for gaps, unless they are to be filled."""
    times = values.index
    if len(times) < 3:
        raise TooShort(f"{len(times)} rows{whose} are too few to tell the frequency", "give a longer series")
    frequency = _frequency(times)
    if frequency is not None:
        return frequency, values
    frequency = _likely(times)
    whole = _between(times[0], times[-1], frequency)
    odd = times.difference(whole)
    if len(odd):
        raise DataError(
            f"times{whose} are irregular: {odd[0]} is not on the clock of {frequency} that begins at {times[0]}",
            "bring the rows to a regular clock, or take them in their order: --time-column none (series.time_column)",
        )
    if plan.irregular == "error":
        lost = whole.difference(times)
        dates = isinstance(frequency, int) * "; of dates that are written as numbers, write 2016-07-01"
        raise DataError(
            f"{len(lost)} times{whose} are left out (frequency {frequency}), the first is {lost[0]}",
            "--irregular fill (series.irregular) makes missing numbers of them; --missing says what becomes of those"
            + dates,
        )
    return frequency, values.reindex(whole)


def _frequency(times: "pd.Index") -> Frequency | None:
    """As pandas tells it, or the step of whole numbers; None where the times follow no clock."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    if not isinstance(times, pd.DatetimeIndex):
        steps = np.unique(np.diff(times))
        return int(steps[0]) if len(steps) == 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a later pandas gives an offset, not its name
        found = pd.infer_freq(times)
    return None if found is None else to_offset(found).freqstr


def _likely(times: "pd.Index") -> Frequency:
    """The frequency of times of which some are left out."""
    import pandas as pd
    from pandas.tseries.frequencies import to_offset

    gap = times.to_series().diff().mode()[0]
    if not isinstance(times, pd.DatetimeIndex):
        return int(gap)
    # months differ in length, so it is looked for in runs of rows before the most common gap is taken
    starts = range(0, len(times) - 8, max(1, len(times) // 64))
    runs = (_frequency(times[start : start + 8]) for start in starts)
    return next((found for found in runs if found), None) or to_offset(gap).freqstr


def _between(first, last, frequency: Frequency) -> "pd.Index":
    import pandas as pd

    if isinstance(frequency, int):
        return pd.Index(np.arange(first, last + 1, frequency))
    return pd.date_range(first, last, freq=frequency)


def later(last, count: int, frequency: Frequency) -> "pd.Index":
    """The next `count` times after one."""
    import pandas as pd

    if isinstance(frequency, int):
        return pd.Index(last + frequency * np.arange(1, count + 1))
    return pd.date_range(last, periods=count + 1, freq=frequency)[1:]


def count_until(times: "pd.Index", until: Frequency, frequency: Frequency) -> int | None:
    """How many of the times are up to one that was written down; None where that is of another kind."""
    import pandas as pd

    if type(until) is not type(frequency):
        return None
    if isinstance(until, int):
        return int(times.searchsorted(until, side="right"))
    return int(_naive(times).searchsorted(_naive(pd.Timestamp(until)), side="right"))


def _naive(times):
    """In UTC, without saying so: times with and without a zone can be compared."""
    return times if times.tz is None else times.tz_convert("UTC").tz_localize(None)


def season_of(frequency: Frequency | None) -> int:
    """Steps of the season that a frequency is known for; 1 for others."""
    from pandas.tseries.frequencies import to_offset

    if not isinstance(frequency, str):
        return 1
    offset = to_offset(frequency)
    return max(1, SEASONS.get(offset.rule_code.split("-")[0], 1) // offset.n)
