"""JSON and JSON lines -> records, each row with the line on which it starts."""

import json
from collections.abc import Iterator
from pathlib import Path

from llm_finetuner.data.lines import Record, lines_of, whole
from llm_finetuner.errors import DataError

MAX_DEPTH = 32  # Arrow itself gives up on schemas deeper than 64


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def row_fault(row: object) -> str:
    """Why a parsed value cannot be a row, or ""."""
    if not isinstance(row, dict):
        name = {list: "list", str: "string", type(None): "null", bool: "true or false"}.get(
            type(row), "number"
        )
        return f"not an object with columns but a JSON {name}"
    if not row:
        return "an empty object"
    level, depth = list(row.values()), 1
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return ""


def _surrogate(text: str, row: object) -> str:
    if "\\ud" in text or "\\uD" in text:  # only an escape can bring half a surrogate pair in
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half a surrogate pair (\\ud800 to \\udfff), which is no character"
    return ""


def _json_fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    return f"not usable JSON: {error}"


def read_json_lines(path: Path) -> Iterator[Record]:
    for line in lines_of(path):
        text = line.text.strip()
        if not text:
            continue
        problem, row = line.problem, None
        if not problem:
            try:
                row = _DECODER.decode(text)
                problem = row_fault(row) or _surrogate(text, row)
            except (ValueError, RecursionError) as error:
                problem = _json_fault(error)
        yield Record(line.number, None if problem else row, problem, text, hint=line.hint)


def read_json(path: Path) -> Iterator[Record]:
    """A list of objects, an object with exactly one such list, one object, or one object a line."""
    text = whole(path)
    start = _skip_blank(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _elements(path, text, start)
        return
    value, end = _decode_at(path, text, start)
    if text[end:].strip():
        yield from read_json_lines(path)
        return
    lists = _lists_of_objects(value)
    if len(lists) > 1:
        raise DataError(
            f"{path}, line 1: several lists of objects: {', '.join(lists)}", "keep one list in the file"
        )
    if not lists:
        problem = row_fault(value) or _surrogate(text, value)
        yield Record(1, None if problem else value, problem, text)
        return
    # The list's own lines: parse it again from where its key stands at the outermost level.
    place = start + 1
    while True:
        key, end = _decode_at(path, text, _skip_blank(text, place))
        place = _skip_blank(text, _skip_blank(text, end) + 1)
        if key == lists[0]:
            break
        place = _skip_blank(text, _decode_at(path, text, place)[1]) + 1
    yield from _elements(path, text, place, alone=False)


def _lists_of_objects(value: object) -> list[str]:
    if not isinstance(value, dict) or any(key.lower() in ("messages", "conversations") for key in value):
        return []  # a chat is one row, though it holds a list of objects
    lone = len(value) == 1  # {"data": []} holds no rows; {"text": "a", "tags": []} is one
    found = {k: v for k, v in value.items() if isinstance(v, list) and (v or lone)}
    return [k for k, v in found.items() if all(isinstance(item, dict) for item in v)]


def _elements(path: Path, text: str, start: int, alone: bool = True) -> Iterator[Record]:
    """The elements of the JSON list at text[start], each with its line."""
    index = counted = start + 1
    number = text.count("\n", 0, counted) + 1
    while True:
        index = _skip_blank(text, index)
        if text[index : index + 1] == "]":
            if alone and text[index + 1 :].strip():
                line = text.count("\n", 0, _skip_blank(text, index + 1)) + 1
                raise DataError(f"{path}, line {line}: not valid JSON: text after the closing bracket")
            return
        number += text.count("\n", counted, index)
        counted = index
        value, end = _decode_at(path, text, index)
        problem = row_fault(value) or _surrogate(text[index:end], value)
        yield Record(number, None if problem else value, problem, text[index : min(end, index + 1000)])
        index = _skip_blank(text, end)
        if text[index : index + 1] == ",":
            index += 1
        elif text[index : index + 1] != "]":
            line = text.count("\n", 0, end) + 1
            raise DataError(
                f"{path}, line {line}: not valid JSON: no comma or ] after a row", "is the file cut off?"
            )


def _decode_at(path: Path, text: str, index: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, index)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            line = error.lineno
        else:
            line = text.count("\n", 0, index) + 1
        raise DataError(
            f"{path}, line {line}: {_json_fault(error)}", "one object a line (.jsonl) can be skipped"
        ) from None


def _skip_blank(text: str, index: int) -> int:
    while index < len(text) and text[index] in " \t\r\n":
        index += 1
    return index
