"""One file -> records: our own readers of .jsonl .json .csv .tsv .txt (also .gz) and .parquet.

The loaders of `datasets` say "An error occurred while generating the dataset" for a bad line, null-fill
missing keys and take any size of .gz; ours give every fault a file and a line, and `sources` decides.
"""

import csv
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

from llm_finetuner.data.json_rows import read_json, read_json_lines
from llm_finetuner.data.lines import Record, lines_of
from llm_finetuner.errors import DataError

UNDAMAGED = "save the file as UTF-8 again, without NUL bytes"


def kind_of(path: Path) -> str:
    """The suffix that decides the reader, lower case and without .gz; "" where we have no reader."""
    suffixes = [s.lower() for s in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    suffix = suffixes[-2] if zipped and len(suffixes) > 1 else (suffixes or [""])[-1]
    return suffix if suffix in READERS and not (zipped and suffix == ".parquet") else ""


def read_file(path: Path) -> Iterator[Record]:
    """The records of one file in its order. Raises DataError if reading cannot go on."""
    if not kind_of(path):
        known = " ".join(READERS)
        raise DataError(
            f"{path}: this kind of file is not read", f"kinds read: {known} (text kinds also as .gz)"
        )
    try:
        yield from READERS[kind_of(path)](path)
    except (OSError, EOFError, zlib.error) as error:  # no permission, a .gz that is none or is cut off
        raise DataError(f"{path} cannot be read: {error}", "check the file and its permissions") from error


def _sound_lines(path: Path) -> Iterator[str]:
    for line in lines_of(path):
        if line.problem:  # a quoted field may span lines, so a broken line cannot be skipped alone
            raise DataError(f"{path}, line {line.number}: {line.problem}", line.hint or UNDAMAGED)
        yield line.text


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long documents
    lines = _sound_lines(path)
    first = next(lines, "")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"  # what spreadsheets write where the comma is the decimal sign
    table = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = table.line_num + 1
        try:
            fields = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quote that is opened here is never closed" if "end of data" in str(error) else str(error)
            yield Record(number, None, f"not valid CSV: {why}")
            continue
        if not fields:
            continue  # a blank line
        if header is None:
            header = _header(path, number, fields)
        elif len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            yield Record(number, None, problem, delimiter.join(fields))
        else:
            yield Record(number, dict(zip(header, fields, strict=True)), "", delimiter.join(fields))


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    where, hint = f"{path}, line {line}", "the first line must name each column once"
    if not all(names):
        raise DataError(f"{where}: column {names.index('') + 1} of the header has no name", hint)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the header names column {twice[0]!r} twice", hint)
    if any(name.lstrip("-").replace(".", "", 1).isdigit() or len(name) > 200 for name in names):
        raise DataError(f"{where}: looks like a row of data, not a header", hint)
    return names


def _read_tsv(path: Path) -> Iterator[Record]:
    yield from _read_csv(path, "\t")


def _read_text(path: Path) -> Iterator[Record]:
    for line in lines_of(path):
        text = line.text.rstrip("\r\n")
        if text.strip():
            row = None if line.problem else {"text": text}
            yield Record(line.number, row, line.problem, text, hint=line.hint)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, row, unit="row")
    except ValueError as error:  # ArrowInvalid is one
        raise DataError(
            f"{path}, row {number + 1}: not valid parquet: {error}", "is the file complete?"
        ) from error


READERS = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
