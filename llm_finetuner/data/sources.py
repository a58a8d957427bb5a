"""A source -> a dataset whose every row can be used, or an error that says where and why not.

A column of mixed types, which Arrow cannot hold, becomes text: strings stay, other values are written as JSON.
Weakness: local files are held in memory as Python rows while they are read.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_finetuner.data import shapes
from llm_finetuner.data.lines import Record
from llm_finetuner.data.places import open_source
from llm_finetuner.data.shapes import Shape
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
Recognise = Callable[[list[dict]], Shape | None]  # the first rows -> their shape, if they have one
SKIP = "mend the row, or leave bad rows out: --on-bad-row skip (on_bad_row='skip')"


@dataclass(frozen=True)
class Rows:
    """What was read: the usable rows, how many were left out, and the shape (None: not recognised, or not asked)."""

    dataset: "datasets.Dataset"
    skipped: int
    shape: Shape | None


def read(
    source: Any,
    *,
    config: str | None = None,
    split: str = "train",
    files: str | Sequence[str] | None = None,
    samples: int | None = None,
    text_columns: Sequence[str] | str | None = None,
    on_bad_row: str = "stop",
    bad_rows_path: str | Path | None = None,
    shapes_of_text: bool = True,
) -> Rows:
    """Read `source`: a file, folder, glob, `save_to_disk` folder, hub name, `Dataset` or list of dicts.

    `files` narrows a folder (names or globs in it) or is the hub's data_files; `samples` keeps the first
    usable rows; `text_columns` is as in `shapes.recognise`. A bad row stops with a DataError that names file
    and line, or with on_bad_row="skip" is left out, counted and listed in `bad_rows_path` (JSON lines: file,
    line, reason, text). Rows are judged by the shapes of text that a model continues; shapes_of_text=False only
    reads them, for a task with other columns, which judges its rows when it prepares them: then `text_columns` is
    not looked at, and usable is what can be read. Raises DataError also where nothing usable is found.
    """
    if on_bad_row not in ("stop", "skip"):
        raise DataError(f"on_bad_row is {on_bad_row!r}", "it is 'stop' or 'skip'")
    if samples is not None and samples < 1:
        raise DataError(f"the number of samples is {samples}", "it is 1 or more, or None for all rows")
    name = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__} given"
    found = open_source(source, config, split, files)
    gate = _Gate(on_bad_row == "skip", Path(bad_rows_path) if bad_rows_path else None)

    def recognise(head: list[dict]) -> Shape | None:
        return _shape(head, text_columns) if shapes_of_text else None

    if isinstance(found, Iterator):
        rows, shape = _usable_rows(found, recognise, samples, gate)
        dataset = to_dataset(rows) if rows else None
    else:
        dataset, shape = _usable_part(found, name, recognise, samples, gate)
    if dataset is None or not len(dataset):
        left = f" ({gate.count} bad rows were left out)" if gate.count else " (empty, or only blank lines)"
        raise DataError(f"{name}: no usable rows{left}", "check the file and the names of its columns")
    if gate.count:
        logger.warning("%s: %d bad rows left out, %d rows kept", name, gate.count, len(dataset))
    return Rows(dataset, gate.count, shape)


class _Gate:
    """Stops at a bad row, or counts and lists it."""

    def __init__(self, skip: bool, path: Path | None):
        self.skip, self.path, self.count = skip, path, 0
        if path and path.exists():
            path.unlink()  # a list of an earlier run would be read as this one's

    def refuse(self, file: str, record: Record, reason: str) -> None:
        if not self.skip:
            raise DataError(f"{file}, {record.unit} {record.number}: {reason}", record.hint or SKIP)
        self.count += 1
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"file": file, "line": record.number, "reason": reason, "text": record.text[:200]}
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")


# ---- rows and faults


def _usable_rows(
    found: Iterator[tuple[str, Record]],
    recognise: Recognise,
    samples: int | None,
    gate: _Gate,
) -> tuple[list[dict], Shape | None]:
    head = list(itertools.islice(found, shapes.SAMPLE))
    shape = recognise([record.row for _, record in head if record.row is not None])
    rows: list[dict] = []
    for file, record in itertools.chain(head, found):
        reason = record.problem or (shapes.problem(record.row, shape) if shape else "")
        if reason:
            gate.refuse(file, record, reason)
            continue
        rows.append(record.row)
        if len(rows) == samples:
            break
    return rows, shape


def _usable_part(
    dataset: "datasets.Dataset",
    name: str,
    recognise: Recognise,
    samples: int | None,
    gate: _Gate,
) -> tuple["datasets.Dataset", Shape | None]:
    """The same for rows that already are a dataset: only the shape's columns are looked at."""
    shape = recognise(dataset.select(range(min(shapes.SAMPLE, len(dataset)))).to_list())
    if shape is None:
        return dataset.select(range(min(samples or len(dataset), len(dataset)))), None
    good: list[int] = []
    for index, row in enumerate(dataset.select_columns(list(shape.columns))):
        reason = shapes.problem(row, shape)
        if reason:
            gate.refuse(name, Record(index + 1, None, text=str(row), unit="row"), reason)
        else:
            good.append(index)
        if len(good) == samples:
            break
    return (dataset if len(good) == len(dataset) else dataset.select(good)), shape


def _shape(rows: list[dict], text_columns: Sequence[str] | str | None) -> Shape | None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows or "input_ids" in columns:
        return None
    try:
        return shapes.recognise(columns, rows, text_columns)
    except DataError:
        if text_columns:
            raise
        return None  # a series, or columns that the user names later: whoever needs a shape says so


def to_dataset(rows: list[dict]) -> "datasets.Dataset":
    """Rows (keys may be missing) -> dataset; a column of mixed types becomes text, other values as JSON."""
    import datasets
    import pyarrow

    table = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(column) for row in rows]
        try:
            table[column] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
            logger.info("column %r holds values of several types: kept as text", column)
            texts = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
            table[column] = pyarrow.array(texts, pyarrow.string())
    return datasets.Dataset(pyarrow.table(table))
