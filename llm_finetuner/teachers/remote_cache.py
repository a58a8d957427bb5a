"""What a remote teacher said, kept on disk so that nothing is asked twice: one small file a sequence.

Shapes: P positions of one sequence, k tokens listed for each.
"""

import hashlib
import json
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetuner.errors import TrainingError

MAGIC = b"LLMFTRA1"
HEAD = struct.Struct("<II")  # P, k
DIGEST = 16  # bytes


@dataclass
class Answer:
    """Position t speaks of token t + 1. An entry of -inf is missing."""

    positions: np.ndarray  # [P] int32, ascending
    ids: np.ndarray  # [P, k] int32
    log_probs: np.ndarray  # [P, k] float32, nats at temperature 1

    def lacks(self, positions: np.ndarray) -> np.ndarray:
        """Those of these positions that it does not speak of."""
        return np.setdiff1d(positions, self.positions, assume_unique=True)

    def pick(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids and log_probs of these positions, none of which it lacks: [n, k], [n, k]."""
        at = np.searchsorted(self.positions, positions)
        return self.ids[at], self.log_probs[at]

    def joined(self, other: "Answer") -> "Answer":
        """Both; where both speak, self."""
        positions, first = np.unique(np.concatenate([self.positions, other.positions]), return_index=True)
        ids = np.concatenate([self.ids, other.ids])[first]
        return Answer(positions, ids, np.concatenate([self.log_probs, other.log_probs])[first])


def default_root() -> Path:
    """Shared by all runs of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_finetuner" / "remote"


class Answers:
    """A folder for each `asked` (address, model, k, vocabulary), in it a file for each sequence.

    A file is written aside and renamed, and carries a checksum: after a kill, a power cut or with several processes
    there is a whole answer or none. What it cannot know: other weights behind the same address and name.
    """

    def __init__(self, root: Path, asked: dict[str, Any]):
        text = json.dumps(asked, sort_keys=True)
        self.folder = root / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "asked.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def has(self, tokens: np.ndarray) -> bool:
        """Whether something is kept of the sequence; it is not read."""
        return self._path(_key(tokens)).exists()

    def read(self, tokens: np.ndarray) -> Answer | None:
        """What is kept of the sequence: None where nothing is, or where it is damaged or cannot be read."""
        key = _key(tokens)
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        body = data[len(MAGIC) + DIGEST :]
        if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : len(MAGIC) + DIGEST] != _digest(key, body):
            return None
        count, k = HEAD.unpack_from(body)
        parts = np.split(np.frombuffer(body, "<i4", offset=HEAD.size), [count, count + count * k])
        return Answer(parts[0], parts[1].reshape(count, k), parts[2].view("<f4").reshape(count, k))

    def write(self, tokens: np.ndarray, answer: Answer) -> Answer:
        """Keep it, and return it with what was kept already of other positions. Raises TrainingError."""
        before = self.read(tokens)
        answer = answer.joined(before) if before else answer
        key = _key(tokens)
        body = HEAD.pack(*answer.ids.shape) + b"".join(
            [answer.positions.astype("<i4").tobytes(), answer.ids.astype("<i4").tobytes(),
             answer.log_probs.astype("<f4").tobytes()]
        )  # fmt: skip
        path = self._path(key)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            aside.write_bytes(MAGIC + _digest(key, body) + body)
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise _unwritable(path, error) from error
        return answer

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key


def _key(tokens: np.ndarray) -> str:
    return hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=DIGEST).hexdigest()


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + body, digest_size=DIGEST).digest()


def _unwritable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"the teacher's answers cannot be kept in {path}: {error.strerror or error}",
        "free some room, or give another folder as cache",
    )
