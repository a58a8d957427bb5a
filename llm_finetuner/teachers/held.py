"""What a teacher that fills a cache (filling.py) holds in memory: answers being given, rows not on the disk yet.

Shapes: N positions that count, n a slice of them, R bytes a record, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from llm_finetuner.output import Output
from llm_finetuner.teachers.identity import Key
from llm_finetuner.teachers.store import Entry


@dataclass
class Batch:
    """Answers that are being given: `records` [N, R] of those positions that were `asked` for."""

    keys: list[Key]
    said: Output
    head: Callable[[Tensor], Tensor]
    records: Tensor
    asked: Tensor  # [N]


@dataclass
class Held:
    """Rows that are not on the disk yet."""

    entries: list[Entry] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    size: int = 0  # bytes

    def add(self, entries: list[Entry]) -> None:
        self.entries += entries
        self.keys |= {entry.key for entry in entries}
        self.size += sum(e.records.nbytes + sum(s.nbytes for s in e.states.values()) for e in entries)
