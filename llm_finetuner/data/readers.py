"""One file -> records: our own readers of .jsonl .json .csv .tsv .txt (also .gz) and .parquet.

The loaders of `datasets` say "An error occurred while generating the dataset" for a bad line, null-fill
missing keys and take any size of .gz; ours give every fault a file and a line, and `sources` decides.
"""

import csv
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_finetuner.data import shapes
from llm_finetuner.data.json_rows import read_json, read_json_lines
from llm_finetuner.data.label_columns import LABEL_COLUMNS, TEXT_NAMES
from llm_finetuner.data.lines import Record, lines_of
from llm_finetuner.errors import DataError

UNDAMAGED = "save the file as UTF-8 again, without NUL bytes"
BARE = ("text", "label")  # the columns of a TSV without a header
# A first line with such a name is a header, even where a later label is called like its column ("toxic").
TEXT_COLUMNS = {*TEXT_NAMES, *(name for _, _, asked, _ in shapes.PAIRS for name in asked)}
# A whole number as Python writes it, so that it can become text again without a change.
WHOLE = re.compile(r"0|-?[1-9][0-9]*")
# A field of a TSV with a quote in it; group 1 if it stands in quotes. A tab and a line break in one field are two
# stray quotes far apart.
HOLDS_QUOTE = re.compile(
    r"""(?:^|(?<=\t))
    (?: ( "[^"\t]*+(?:""[^"\t]*+)*+" | "[^"\n]*+(?:""[^"\n]*+)*+" ) (?=[\t\r\n]|\Z)
      | [^\t\n]*"[^\t\n]* )""",
    re.MULTILINE | re.VERBOSE,
)


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


def _read_csv(path: Path) -> Iterator[Record]:
    lines = _sound_lines(path)
    first = next(lines, "")
    # what spreadsheets write where the comma is the decimal sign
    delimiter = ";" if "," not in first and ";" in first else ","
    table = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    yield from _records(path, _fields(table), delimiter)


class _Fields(NamedTuple):
    """One row of a table, or one fault: then `problem` says why."""

    number: int  # 1-based line on which it starts
    cells: list[str]
    problem: str = ""


def _fields(table: Any) -> Iterator[_Fields]:
    """What a csv.reader finds, without blank lines."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters refuses long documents
    while True:
        number = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quote that is opened here is never closed" if "end of data" in str(error) else str(error)
            yield _Fields(number, [], f"not valid CSV: {why}")
            continue
        if cells:
            yield _Fields(number, cells)


def _records(
    path: Path, found: Iterable[_Fields], delimiter: str, names: Sequence[str] = ()
) -> Iterator[Record]:
    """Rows under `names`, or else under those of the first row."""
    header, stands = list(names), "first line" if names else "header"
    for number, cells, problem in found:
        if problem:
            yield Record(number, None, problem)
        elif not header:
            header = _header(path, number, cells)
        elif len(cells) != len(header):
            problem = f"{len(cells)} fields where the {stands} has {len(header)}"
            yield Record(number, None, problem, delimiter.join(cells))
        else:
            yield Record(number, dict(zip(header, cells, strict=True)), "", delimiter.join(cells))


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    where, hint = f"{path}, line {line}", "the first line must name each column once"
    if not all(names):
        raise DataError(f"{where}: column {names.index('') + 1} of the header has no name", hint)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the header names column {twice[0]!r} twice", hint)
    if any(_is_number(name) or len(name) > 200 for name in names):
        raise DataError(f"{where}: looks like a row of data, not a header", hint)
    return names


def _is_number(cell: str) -> bool:
    return cell.lstrip("-").replace(".", "", 1).isdigit()


def _read_tsv(path: Path) -> Iterator[Record]:
    quoting = csv.QUOTE_MINIMAL if _is_quoted(path) else csv.QUOTE_NONE
    table = csv.reader(_sound_lines(path), delimiter="\t", quoting=quoting, strict=True)
    found = _fields(table)
    head = list(itertools.islice(found, shapes.SAMPLE))
    names = BARE if _is_bare([row.cells for row in head if not row.problem]) else ()
    for record in _records(path, itertools.chain(head, found), "\t", names):
        if names and record.row and WHOLE.fullmatch(record.row["label"]):
            record.row["label"] = int(record.row["label"])
        yield record


def _is_quoted(path: Path) -> bool:
    """Whether quotes in a TSV are those of CSV: most fields that hold a quote stand in quotes, from end to end.

    Else they are characters of the text, as in most published TSV: read as CSV's, one at the start of a field
    would take in all lines up to the next.
    """
    if not any(line.text.startswith('"') or '\t"' in line.text for line in lines_of(path)):
        return False
    held = [bool(match[1]) for match in HOLDS_QUOTE.finditer("".join(line.text for line in lines_of(path)))]
    return 2 * sum(held) > len(held)


def _is_bare(head: list[list[str]]) -> bool:
    """Whether a TSV has no header, but a text and its label in each line: the first rows tell.

    The last field of the first line is then a whole number, or stands again beside another text.
    """
    if not head or len(head[0]) != 2:
        return False
    text, label = (cell.strip() for cell in head[0])
    if not text or not label or _is_number(text):
        return False
    if text.lower() in TEXT_COLUMNS or label.lower() in LABEL_COLUMNS:
        return False
    again = any(row[1:] == head[0][1:] and row[0] != head[0][0] for row in head[1:])
    return again or bool(WHOLE.fullmatch(label))


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
