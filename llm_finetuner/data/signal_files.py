"""Files of sequences -> arrays [N, L, channels], mapped into memory where they can be; signals.py says which files."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetuner.data.stored import Stored
from llm_finetuner.errors import DataError

PARTS = ("train", "validation", "test")
ARRAYS = ("inputs", "targets")
META = "meta.json"
SERIES = (
    "series",
    "id",
    "unique_id",
    "item_id",
)  # columns that tell which row of the array a line belongs to
EXPECTED = (
    "a folder with inputs.npy [rows, samples, channels] and targets.npy; an .npz of both; x_inputs.npy beside "
    "x_targets.npy; a .zarr group of both; or a .csv with columns x, x1, x_name, ... and y, y1, ..."
)
COLUMN = re.compile(r"([xy])(\d|_|$)", re.IGNORECASE)  # year is none


def open_arrays(source: Any) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any], str]:
    """({part, or "": (inputs, targets or None)}, meta.json, what errors call it). Raises DataError."""
    if isinstance(source, dict):
        if "inputs" not in source:
            raise DataError(
                f"no inputs among {', '.join(map(str, source))}", '{"inputs": ..., "targets": ...}'
            )
        return {"": (source["inputs"], source.get("targets"))}, {}, "the arrays given"
    if isinstance(source, tuple | list) and len(source) == 2:
        return {"": tuple(source)}, {}, "the arrays given"
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"sequences are a path, or inputs with their targets, and this is a {type(source).__name__}",
            'in Python (inputs, targets), or {"inputs": ..., "targets": ...}; inputs alone with None for targets',
        )
    path = Path(str(source)).expanduser()
    if path.suffix == ".zarr" and os.path.exists(path):
        return *_zarr(path), path.name
    if os.path.isdir(path):  # where Path.is_dir raises for a name that is too long
        return _folder(path), _meta(path), path.name
    if not os.path.isfile(path):
        raise DataError(f"there is no {str(source):.200}", EXPECTED)
    if path.suffix == ".npz":
        return {"": _npz(path)}, {}, path.name
    if path.suffix == ".npy":
        other = path.with_name(path.name.replace("inputs", "targets"))
        if other == path:
            raise DataError(f"{path.name}: a name with 'inputs' in it tells where its targets are", EXPECTED)
        return {"": (_npy(path), _npy(other) if other.is_file() else None)}, {}, path.name
    if path.suffix in (".csv", ".tsv", ".txt"):
        return {"": _table(path)}, {}, path.name
    raise DataError(f"{source} is no file that is read here", EXPECTED)


def _folder(path: Path) -> dict[str, tuple[Any, Any]]:
    places = {part: path / part for part in PARTS if (path / part).is_dir()} or {"": path}
    if "train" not in places and "" not in places:
        raise DataError(f"{path} holds {', '.join(places)}, and no train", EXPECTED)
    found = {}
    for part, place in places.items():
        if not (place / "inputs.npy").is_file():
            raise DataError(f"{place} holds no inputs.npy", EXPECTED)
        targets = place / "targets.npy"
        found[part] = _npy(place / "inputs.npy"), _npy(targets) if targets.is_file() else None
    return found


def _zarr(path: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Arrays of a group, or of its groups train, validation, test; its attributes are what meta.json is elsewhere."""
    try:
        import zarr
    except ImportError as error:
        raise DataError(
            f"{path.name}: zarr is not installed",
            'pip install "llm-finetuner[zarr]", or write it as .npy once',
        ) from error
    try:
        whole = zarr.open_group(str(path), mode="r")
    except (OSError, ValueError, KeyError) as error:  # no group: zarr's own errors are one of these
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}", EXPECTED) from error
    places = {part: whole[part] for part in PARTS if part in whole} or {"": whole}
    if "train" not in places and "" not in places:
        raise DataError(f"{path} holds {', '.join(places)}, and no train", EXPECTED)
    for part, place in places.items():
        if ARRAYS[0] not in place:
            raise DataError(f"{path.name}{part and '/' + part} holds no array inputs", EXPECTED)
    found = {
        part: tuple(Stored(place[name]) if name in place else None for name in ARRAYS)
        for part, place in places.items()
    }
    return found, dict(whole.attrs)


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a mapping, it holds {found!r:.40}")
    return found


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:  # cut short, of Python objects, or no .npy at all
        raise DataError(
            f"cannot read {path}: {str(error).splitlines()[0]}", "write it with np.save"
        ) from error


def _npz(path: Path) -> tuple[Any, Any]:
    import zipfile

    try:
        with np.load(path) as held:
            names = list(held)
            arrays = [held[name] if name in names else None for name in ARRAYS]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot read {path}: {str(error).splitlines()[0]}", "write it with np.savez"
        ) from error
    if arrays[0] is None:
        raise DataError(f"{path} holds {', '.join(names) or 'nothing'}, and no inputs", EXPECTED)
    return tuple(arrays)


def _table(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Columns x... and y... of a table in its order, a row of the arrays for each series."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except (ValueError, OSError) as error:  # pandas: EmptyDataError and ParserError are ValueErrors
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}", EXPECTED) from error
    if not len(table):
        raise DataError(f"{path.name} holds no line of numbers", EXPECTED)
    names = [str(name) for name in table.columns]
    series = next((name for name in names if name.lower() in SERIES), None)
    matched = {name: COLUMN.match(name) for name in names if name != series}
    of = {x: [name for name, m in matched.items() if m and m[1].lower() == x] for x in "xy"}
    if not of["x"]:
        raise DataError(f"{path.name}: no column x, x1 or x_... among {', '.join(names)}", EXPECTED)
    if series is not None and table[series].isna().any():
        line = int(table[series].isna().to_numpy().argmax()) + 2
        raise DataError(f"{path.name}: line {line} has nothing in column {series!r}", "name its series")
    for name in of["x"] + of["y"]:
        if not pd.api.types.is_numeric_dtype(table[name]) or pd.api.types.is_bool_dtype(table[name]):
            numbers = pd.to_numeric(table[name], errors="coerce")
            wrong = table.index[numbers.isna() & table[name].notna()]
            line = f", line {wrong[0] + 2}: {table[name][wrong[0]]!r}" if len(wrong) else ""
            raise DataError(f"{path.name}: column {name!r}{line} is not a number", "mend it")
    groups = [table] if series is None else [rows for _, rows in table.groupby(series, sort=False)]
    sizes = {len(rows) for rows in groups}
    if len(sizes) > 1:
        raise DataError(
            f"{path.name}: series are of unequal lengths, {min(sizes)} to {max(sizes)} lines",
            "cut them to one length, or give each length a file of its own",
        )
    inputs, targets = (np.stack([rows[of[letter]].to_numpy(float) for rows in groups]) for letter in "xy")
    return inputs, targets if of["y"] else None
