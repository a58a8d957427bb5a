"""Which positions of a teacher with another tokenizer are read for a batch, and the spans of text they share.

Shapes: B sequences, U the teacher's tokens, N positions that count, M positions of the teacher that are read, D hidden
width, V vocabulary, S spans, K positions that lie in spans.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_finetuner.output import Output, at_least_float32
from llm_finetuner.teachers.spans import Line

IGNORE = -100
LOGITS_A_CHUNK = 2**24


@dataclass
class Spans:
    """The spans of a batch: position k of N is part of span owners[k], where the student writes tokens[k]."""

    positions: Tensor  # [K]
    tokens: Tensor  # [K]
    owners: Tensor  # [K] 0..S-1
    count: int  # S
    width: int  # the student's columns that name a token
    teacher: Callable[[], Tensor]  # the log-probability that the teacher gives each: [S]; runs its head

    def student(self, rows_ND: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """The log-probability that the student gives each span: [N, D] -> [S]."""
        log_p_K = token_log_probs(rows_ND[self.positions], head, self.tokens, self.width)
        return log_p_K.new_zeros(self.count).index_add(0, self.owners, log_p_K)


def token_log_probs(rows_KD: Tensor, head: Callable, tokens_K: Tensor, width: int) -> Tensor:
    """Log-probability of one token a position among the first `width`: [K, D], [K] -> [K].

    [K, V] never exists; where gradients are wanted, the backward pass runs the head again.
    """

    def of(rows: Tensor, tokens: Tensor) -> Tensor:
        logits = at_least_float32(head(rows))[:, :width]
        return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)

    size = max(1, LOGITS_A_CHUNK // width)
    pieces = [slice(start, start + size) for start in range(0, max(len(tokens_K), 1), size)]
    if torch.is_grad_enabled():
        return torch.cat(
            [checkpoint(of, rows_KD[piece], tokens_K[piece], use_reentrant=False) for piece in pieces]
        )
    return torch.cat([of(rows_KD[piece], tokens_K[piece]) for piece in pieces])


@dataclass
class Side:
    """Positions that lie in spans, on one side: where they are, which token follows, and whose they are."""

    at: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def add(self, at: list[int], tokens: list[int], owner: int) -> None:
        self.at += at
        self.tokens += tokens
        self.owners += [owner] * len(at)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(
            torch.tensor(x, dtype=torch.long, device=device) for x in (self.at, self.tokens, self.owners)
        )


@dataclass
class Reading:
    """read: of each row the teacher's tokens, ascending, whose next one is asked for: they are 0..M-1 in turn."""

    read: list[list[int]] = field(default_factory=list)
    at_N: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.long)
    )  # which of M answers a position
    known_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # whether one does
    own: Side = field(default_factory=Side)  # places in N
    other: Side = field(default_factory=Side)  # places in M
    count: int = 0  # spans

    def spans(self, said: Output, home: torch.device, own_width: int, other_width: int) -> Spans:
        """The spans of a batch, from the teacher's answers to it."""

        def teacher() -> Tensor:
            at, tokens, owners = self.other.tensors(home)
            rows_KD = said.rows[at.to(said.rows.device)]
            with torch.no_grad():
                log_p_K = token_log_probs(rows_KD, said.head, tokens, other_width)
            return log_p_K.new_zeros(self.count).index_add(0, owners, log_p_K)

        return Spans(*self.own.tensors(home), self.count, own_width, teacher)

    def batch(self, lines: list[Line], positions: int | None, device: torch.device) -> dict[str, Tensor]:
        """The rows in the teacher's tokens, padded on the right; labels stand where an answer is read: [B, U]."""
        rows = [line.ids[:positions] for line in lines]
        width = max(2, *map(len, rows))
        ids_BU = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask_BU = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        labels_BU = torch.full_like(ids_BU, IGNORE)
        for row, read in enumerate(self.read):
            labels_BU[row, [j + 1 for j in read]] = 0
        batch = {"input_ids": ids_BU, "attention_mask": mask_BU, "labels": labels_BU}
        return {name: x.to(device) for name, x in batch.items()}


def plan(lines: list[Line], rows: list[list[int]], labels_BT: Tensor, positions: int | None) -> Reading:
    """What to read of the teacher for the student's rows. positions: the most tokens that the teacher takes.

    A span is read where every token of the student's in it counts.
    """
    reading = Reading()
    at_N: list[int] = []
    known_N: list[bool] = []
    before = 0
    for line, row, labels in zip(lines, rows, labels_BT.tolist(), strict=True):
        counted = [i for i in range(len(labels) - 1) if labels[i + 1] != IGNORE]
        place = {i: len(at_N) + n for n, i in enumerate(counted)}
        size = len(line.ids[:positions])
        meets = {i: j for i, j in line.meets if i in place and j + 1 < size}
        spans = [s for s in line.spans if s[3] < size and all(i in place for i in range(s[0], s[1]))]
        read = sorted({*meets.values(), *(j for s in spans for j in range(s[2], s[3]))})
        index = {j: before + n for n, j in enumerate(read)}
        at_N += [index[meets[i]] if i in meets else 0 for i in counted]
        known_N += [i in meets for i in counted]
        for i, i2, j, j2 in spans:
            reading.own.add([place[k] for k in range(i, i2)], row[i + 1 : i2 + 1], reading.count)
            reading.other.add([index[k] for k in range(j, j2)], line.ids[j + 1 : j2 + 1], reading.count)
            reading.count += 1
        reading.read.append(read)
        before += len(read)
    if not before:
        reading.read[0] = [0]  # nobody meets, yet there has to be something to slice
    reading.at_N = torch.tensor(at_N, dtype=torch.long)
    reading.known_N = torch.tensor(known_N, dtype=torch.bool)
    return reading
