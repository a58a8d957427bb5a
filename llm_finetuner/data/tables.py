"""A table of numbers from a file, a DataFrame or a Dataset, and what its columns can be."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

EXPECTED = (
    "wide: a column of times (date, ds, timestamp, time, datetime) and columns of numbers; long: unique_id, ds, y or "
    "item_id, timestamp, target; or name them: --time-column, --id-column, --targets (series.time_column, ...)"
)
TARGETS = "--targets A B (series.targets)"
# what pandas makes of an empty name, and of an index in parquet
NAMELESS = re.compile(r"Unnamed: \d+|__index_level_\d+__|\s*")
DECIMAL = r"^(\s*[-+]?\d+),(\d+(?:[eE][-+]?\d+)?\s*)$"  # 1,5


def read(source: Any) -> tuple["pd.DataFrame", str, tuple[str, ...]]:
    """(the table as it is, what errors call it, how it was read where that is not plain). Raises DataError."""
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        table, name, doubts = source, "the DataFrame given", ()
    elif type(source).__name__ == "Dataset":
        table, name, doubts = source.to_pandas(), "the Dataset given", ()
    else:
        table, name, doubts = _of_file(Path(str(source)).expanduser(), source)
    if not len(table):
        raise DataError(f"{name}: the table has no rows", EXPECTED)
    return table, name, doubts


def _of_file(path: Path, source: Any) -> tuple["pd.DataFrame", str, tuple[str, ...]]:
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{source} is not a file", "give a .csv, .tsv or .parquet file of numbers over time")
    if not path.stat().st_size:
        raise DataError(f"{source} is empty", EXPECTED)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path), path.name, ()
        if path.suffix in (".csv", ".tsv", ".txt"):
            return _separated(path)
    except (
        ValueError,
        OSError,
    ) as error:  # pandas: EmptyDataError, ParserError and pyarrow's are ValueErrors
        raise DataError(f"cannot read {source}: {str(error).splitlines()[0]}", EXPECTED) from error
    raise DataError(f"{source} is no table that is read here", "give a .csv, .tsv or .parquet file")


def _separated(path: Path) -> tuple["pd.DataFrame", str, tuple[str, ...]]:
    """A text file: columns between commas, tabs in a .tsv; semicolons where the first line has more of them."""
    import pandas as pd

    usual = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig") as lines:
        head = lines.readline()
    if head.count(";") <= head.count(usual):
        return pd.read_csv(path, sep=usual), path.name, ()
    table, example = pd.read_csv(path, sep=";"), ""
    for column in table.select_dtypes(exclude="number"):
        texts = table[column].astype(str).where(table[column].notna())
        points = texts.str.replace(DECIMAL, r"\1.\2", regex=True)
        changed = points[points.ne(texts) & texts.notna()]
        if len(changed):
            numbers, example = pd.to_numeric(points, errors="coerce"), changed.iloc[0].strip()
            table[column] = numbers if numbers.notna().equals(points.notna()) else points
    said = f"commas in numbers are read as points, as in {example}: the columns stand between semicolons"
    return table, path.name, (said,) if example else ()


def in_index(table: "pd.DataFrame") -> str:
    """What to do where the times are no column but the index; "" where they are not."""
    import pandas as pd

    times = isinstance(table.index, pd.DatetimeIndex | pd.PeriodIndex)
    return 'the times are the index of the table: give table.reset_index(names="date")' if times else ""


def nameless(table: "pd.DataFrame", columns: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Those without a name that only number the rows, and what is to be said of all that have none."""
    found, said = [], []
    for column in columns:
        if not NAMELESS.fullmatch(str(column)):
            continue
        if _numbers_rows(table[column]):
            found.append(column)
            said.append(f"column {column!r} numbers the rows, and is left out; to forecast it: {TARGETS}")
        else:
            said.append(f"column {column!r} has no name, and is read as a channel; others only: {TARGETS}")
    return found, tuple(said)


def _numbers_rows(column: "pd.Series") -> bool:
    """Whether these are whole numbers that rise from row to row, or 0, 1, 2, ... in another order."""
    import pandas as pd

    if not pd.api.types.is_integer_dtype(column) or not column.is_unique:
        return False
    return bool(column.is_monotonic_increasing or column.max() - column.min() == len(column) - 1)


def check_numbers(table: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Raise DataError for a column that is not all numbers."""
    import pandas as pd

    for column in columns:
        if not pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            raise DataError(*_no_number(table, column))


def _no_number(table: "pd.DataFrame", column: str) -> tuple[str, str]:
    """(what is wrong, what to do) for a column that is not all numbers."""
    import pandas as pd

    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & table[column].notna())
    hint = f"mend it, or name the columns of numbers: {TARGETS}"
    if not len(wrong):
        return f"column {column!r} holds {table[column].dtype}, not numbers", hint
    row = int(wrong[0])
    return f"line {row + 2}, column {column!r}: {table[column].iloc[row]!r} is not a number", hint
