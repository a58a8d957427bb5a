"""A folder of a teacher's answers: shards that are whole or do not exist, found by the content of a row.

    manifest.json          settings, what the answers are of (`about`), measurements, the checksum of every file
    fitted.safetensors     what all records share
    shard_00000.safetensors, ...
        keys [rows, 16], contents [rows, 16]   digests of tokens with counted positions, of tokens alone
        ends [rows]                            where a row's positions end
        lengths [rows]                         its tokens
        records [N, R]                         the answers: R bytes a position
        layer_<i>, pooled [N, D]               hidden states in float16 at the positions
        tokens_<i> [M, D]                      or at all tokens of the rows, where a task reads those

A file is written aside, flushed and renamed, then named in the manifest, so a kill leaves whole shards. Nothing in a
file depends on when or in how many attempts it was written. Several processes may write: a lock is held while one does.
Shapes: N positions that count, M tokens, R bytes a record, D hidden width.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from llm_finetuner.errors import DataError, TrainingError
from llm_finetuner.layer_maps import POOLED, POOLED_NAME
from llm_finetuner.teachers.places import FITTED, MANIFEST

FORMAT = 1
LOCK = ".lock"
NAME = "shard_{:05d}.safetensors"
OF_TOKENS = "tokens_"  # how the names of what is kept of all tokens begin
MEANS = ("mean_kl", "top_mass")  # of the measurements: over tokens


@dataclass
class Entry:
    """What is kept of one row: records [N, R] uint8, states {name: [N, D] or [M, D]} float16."""

    key: bytes
    content: bytes
    length: int
    records: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)


class Store:
    """An open folder. The index is in memory: about 200 bytes a row; the answers stay on the disk, memory-mapped."""

    def __init__(self, folder: Path, manifest: dict[str, Any], fitted: dict[str, Tensor]):
        self.folder, self.manifest, self.fitted = folder, manifest, fitted
        self.places: dict[bytes, tuple[int, int]] = {}  # key -> shard, which of its rows
        self.ends: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # shard -> of positions and tokens, 0 in front
        self.contents: set[bytes] = set()
        self.longest = 0  # tokens of a row
        self.files: dict[int, Any] = {}
        for shard in manifest["shards"]:
            self._index(_number(shard))

    @classmethod
    def create(cls, folder: Path, manifest: dict[str, Any], fitted: dict[str, Tensor]) -> "Store":
        """Start an empty one. Raises TrainingError where the folder cannot be written."""
        data = save(fitted)
        manifest = {"format": FORMAT, **manifest, "fitted": _digest(data), "shards": []}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot write the cache {folder}: {error}") from error
        _write(folder / FITTED, data)
        _write(folder / MANIFEST, _to_json(manifest))
        return cls(folder, manifest, fitted)

    @classmethod
    def open(cls, folder: Path, to_write: bool = False) -> "Store":
        """Read the index and verify every checksum. Raises DataError naming what is missing or damaged.

        to_write: shards that somebody removed are forgotten, so that their rows are computed again.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no cache of a teacher: no {MANIFEST}", "make it first"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder / MANIFEST} cannot be read: {error}",
                f"remove the folder {folder} and make it again",
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(
                f"{folder} is no cache of format {FORMAT}", "make it again with this version, elsewhere"
            )
        _verify(folder / FITTED, manifest["fitted"], f"remove the folder {folder} and make it again")
        if to_write:
            there = [s for s in manifest["shards"] if (folder / s["name"]).exists()]
            if there != manifest["shards"]:
                manifest["shards"] = there
                if "measured" in manifest:
                    left = sum(shard["tokens"] for shard in there)
                    manifest["measured"]["tokens"] = min(manifest["measured"]["tokens"], left)
                _write(folder / MANIFEST, _to_json(manifest))
        for shard in manifest["shards"]:
            advice = "remove this file and make the cache again: only its rows are computed anew"
            _verify(folder / shard["name"], shard["sha256"], advice)
        return cls(folder, manifest, load((folder / FITTED).read_bytes()))

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    @property
    def tokens(self) -> int:
        """Positions that have an answer."""
        return sum(shard["tokens"] for shard in self.manifest["shards"])

    @property
    def newest(self) -> int:
        """The number of the last shard, -1 where there is none."""
        return _number(self.manifest["shards"][-1]) if self.manifest["shards"] else -1

    def read(self, key: bytes, name: str) -> Tensor:
        """`records`, `layer_<i>` or the like of a row. Raises KeyError for a row that is not there."""
        number, row = self.places[key]
        ends = self.ends[number][name.startswith(OF_TOKENS)]
        return self._file(number).get_slice(name)[int(ends[row]) : int(ends[row + 1])]

    def add(self, entries: list[Entry]) -> None:
        """Write one more shard of the rows that nobody wrote yet. Raises TrainingError where the disk is full."""
        with locked(self.folder):
            self.refresh()
            entries = [entry for entry in entries if entry.key not in self]
            if not entries:
                return
            tensors = {
                "keys": _bytes_of([entry.key for entry in entries]),
                "contents": _bytes_of([entry.content for entry in entries]),
                "ends": torch.tensor([len(entry.records) for entry in entries]).cumsum(0),
                "lengths": torch.tensor([entry.length for entry in entries]),
                "records": torch.cat([entry.records for entry in entries]),
            }
            for name in entries[0].states:
                tensors[name] = torch.cat([entry.states[name] for entry in entries])
            data, number = save(tensors), self.newest + 1
            shard = {
                "name": NAME.format(number),
                "sha256": _digest(data),
                "rows": len(entries),
                "tokens": len(tensors["records"]),
            }
            _write(self.folder / shard["name"], data)
            self.manifest["shards"].append(shard)
            _write(self.folder / MANIFEST, _to_json(self.manifest))
            self._index(number)

    def refresh(self) -> None:
        """Take in what other processes wrote since."""
        before = self.newest
        self.manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        for number in map(_number, self.manifest["shards"]):
            if number > before:
                self._index(number)

    @property
    def unmeasured(self) -> set[int]:
        """Numbers of the shards that were written after the measurements in the manifest."""
        left, found = self.manifest.get("measured", {}).get("tokens", 0), set()
        for shard in self.manifest["shards"]:
            if left <= 0:
                found.add(_number(shard))
            left -= shard["tokens"]
        return found

    def measured(self, figures: dict[str, Any], anew: bool = False) -> dict[str, Any]:
        """Keep measurements in the manifest, of the tokens that had none, or `anew` of all; those of all are returned.

        What was measured before counts with its tokens, so a mean is one over everything that is stored.
        """
        with locked(self.folder):
            self.refresh()
            before, tokens = self.manifest.get("measured"), self.tokens
            if before and not anew:
                share = before["tokens"] / tokens
                figures = {
                    name: share * before[name] + (1 - share) * value
                    if name in MEANS and None not in (value, before[name])
                    else value
                    for name, value in figures.items()
                }
            figures = {**figures, "tokens": tokens, "rows": len(self.places)}
            self.manifest["measured"] = figures
            _write(self.folder / MANIFEST, _to_json(self.manifest))
        return figures

    def _index(self, number: int) -> None:
        file = self._file(number)
        keys, contents = (file.get_tensor(name).numpy() for name in ("keys", "contents"))
        ends, lengths = (file.get_tensor(name).numpy() for name in ("ends", "lengths"))
        self.ends[number] = np.append(0, ends), np.append(0, lengths.cumsum())
        self.places.update((key.tobytes(), (number, row)) for row, key in enumerate(keys))
        self.contents.update(content.tobytes() for content in contents)
        self.longest = max(self.longest, int(lengths.max()))

    def _file(self, number: int) -> Any:
        if number not in self.files:
            path = self.folder / NAME.format(number)
            self.files[number] = safe_open(str(path), framework="pt")
        return self.files[number]


def name_of(layer: int, all_tokens: bool) -> str:
    """The tensor that holds the hidden states of a block, or of POOLED."""
    if layer == POOLED:
        return POOLED_NAME
    return f"{OF_TOKENS if all_tokens else 'layer_'}{layer}"


def locked(folder: Path) -> FileLock:
    """While it lasts no other process writes to the folder; one that dies lets go of it."""
    return FileLock(folder / LOCK)


def _number(shard: dict[str, Any]) -> int:
    return int(Path(shard["name"]).stem.removeprefix("shard_"))


def _bytes_of(digests: list[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1).copy())


def _to_json(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _verify(path: Path, wanted: str, advice: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", advice) from error
    if found != wanted:
        raise DataError(f"{path} is damaged: its checksum is not the one in {MANIFEST}", advice)


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error}", "free some disk space and start again: what is written is kept"
        ) from error
