"""One file -> numbered, decoded lines: UTF-8 (BOM or not), UTF-16 with a BOM, and .gz with a size guard."""

import codecs
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_finetuner.errors import DataError

GZIP_FREE, GZIP_RATIO = 64 * 2**20, 200  # text shrinks 3 to 50 times; 200 times and 64 MiB is a bomb
NOT_UTF8 = "not UTF-8"


class Record(NamedTuple):
    """One row as found, or one fault: then `row` is None and `problem` says why."""

    number: int  # 1-based line on which it starts (parquet: row)
    row: dict | None
    problem: str = ""
    text: str = ""  # what stood there, for the list of bad rows
    unit: str = "line"
    hint: str = ""  # what to do about the fault, where leaving the row out is not it


def _raw_lines(path: Path) -> Iterator[bytes]:
    zipped = path.suffix.lower() == ".gz"
    left = max(GZIP_FREE, GZIP_RATIO * path.stat().st_size) if zipped else 2**62
    with gzip.open(path) if zipped else open(path, "rb") as stream:
        while raw := stream.readline(left + 1):
            left -= len(raw)
            if left < 0:
                raise DataError(
                    f"{path} unpacks to more than {GZIP_RATIO} times its size", "unpack it yourself first"
                )
            yield raw


def whole(path: Path) -> str:
    """The file as one string: UTF-8, or UTF-16 with a BOM."""
    data = b"".join(_raw_lines(path))
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path}, line 1: UTF-32 is not read", "save the file as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.upper().removesuffix("-SIG")
        what = f"not {name}: byte 0x{data[error.start]:02x} at offset {error.start}"
        hint = "it begins as UTF-16: is it damaged?" if encoding == "utf-16" else as_utf8(path, data)
        raise DataError(f"{path}, line {line}: {what}", hint) from error
    return text


def as_utf8(path: Path, data: bytes) -> str:
    """How to make UTF-8 of a file with these bytes in it; the encoding is a guess between the two commonest."""
    old = "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data) else "LATIN1"
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return f"UTF-8 is expected, and this may be {old}: iconv -f {old} -t UTF-8 {path} > {new}"


def lines_of(path: Path) -> Iterator[Record]:
    """Decoded lines with their ends; a line that is no UTF-8 or holds a NUL byte comes as a fault."""
    at = 0
    for number, raw in enumerate(_raw_lines(path), 1):
        if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            pieces = whole(path).split(
                "\n"
            )  # UTF-16 is rare: read at once, so that offsets and ends are right
            for later, text in enumerate(pieces, 1):
                nul = "a NUL character" if "\0" in text else ""
                yield Record(later, None, nul, text + "\n" * (later < len(pieces)))
            return
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
        fault = _byte_fault(raw, at)
        hint = as_utf8(path, raw) if fault.startswith(NOT_UTF8) else ""
        yield Record(number, None, fault, text, hint=hint)
        at += len(raw)


def _byte_fault(raw: bytes, at: int) -> str:
    if b"\0" in raw:
        return f"a NUL byte at offset {at + raw.index(0)} (a damaged file, or UTF-16 without a BOM)"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{NOT_UTF8}: byte 0x{raw[error.start]:02x} at offset {at + error.start}"
    return ""
