"""What a model says of a batch, in one form for every kind of model.

Shapes: N positions that count, n a slice of them, D hidden width, V vocabulary, H heads, T tokens. Encoders
are read at all their M tokens, whatever the N positions are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Want:
    """What the terms of the loss will read, so that nothing else is computed: block numbers from 0."""

    layers: tuple[
        int, ...
    ] = ()  # hidden states after these blocks; layer_maps.POOLED: what a label is read off
    attention: tuple[int, ...] = ()  # attention maps of these blocks
    states: tuple[int, ...] = ()  # queries, keys and values of these blocks
    embeddings: bool = False  # what goes into the first block
    answers: bool = True  # logits; without them a trunk stops after the last block that is read


@dataclass(frozen=True)
class Head:
    """A model's output layer, and what becomes of its logits (soft-cap, scale): [n, D] -> [n, V]."""

    layer: nn.Module
    transform: Callable[[Tensor], Tensor] | None = None

    def __call__(self, rows_nD: Tensor) -> Tensor:
        logits_nV = self.layer(rows_nD)
        return self.transform(logits_nV) if self.transform else logits_nV


class AsIs(nn.Module):
    """The head of models whose rows are answers already, numbers: [n, V] -> [n, V]."""

    def forward(self, rows_nV: Tensor) -> Tensor:
        return rows_nV.clone()  # the loss is computed in place


@dataclass
class Output:
    """A model's answer: `head(rows[i:j])` gives the logits of positions i..j, so [N, V] need never exist."""

    rows: Any  # [N, D] hidden states where the loss counts; of a teacher anything that slices by position
    head: Callable[[Any], Tensor]  # a slice of the rows -> [n, V]; of what is trained: a Head
    features: dict[int, Tensor] = field(default_factory=dict)  # block -> [N, D]; POOLED too
    attention: dict[int, Tensor] = field(default_factory=dict)  # block -> [N, H, T], where a position looks
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # block -> query, key, value: [N, D]
    embeddings: Tensor | None = None  # [N, D]
    spans: Any = None  # of a teacher with another tokenizer: what it says of texts of several tokens
    targets: Tensor | None = None  # [N] token ids; -100 where the right answer is not known
    known: Tensor | None = None  # [N] whether a teacher has an answer here; None: everywhere
    scale: Tensor | None = None  # [N, V] what 1 is in the units of the data, which scores are in; None: 1
    numbers: bool = False  # whether the targets are numbers, and not choices among the columns: [N, V] float
    together: Tensor | None = (
        None  # [N] which pooled vectors are compared with each other; None: all of the batch
    )
    examples: Tensor | None = None  # [N] which sequence of the batch a position belongs to
    tokens: Tensor | None = None  # [M] the sequence of each token, where blocks are read at all

    @property
    def first_tokens(self) -> Tensor:
        """Which of the tokens are the first of their sequence: [M]."""
        return self.tokens.diff(prepend=self.tokens.new_tensor([-1])) != 0


def moved(value: Any, device: torch.device | str) -> Any:
    """Tensors of nested dicts on a device; what is none of these stays as it is."""
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def at_least_float32(x: Tensor) -> Tensor:
    """Log space wants float32 whatever the model's dtype; float64 stays, for exact tests."""
    return x if x.dtype == torch.float64 else x.float()


Columns = int | Tensor | None  # of the vocabulary: the first so many, these, or all


def select(logits_nV: Tensor, columns: Columns) -> Tensor:
    """The columns of the logits that both models know: [n, V] -> [n, C]."""
    return logits_nV[:, columns] if isinstance(columns, Tensor) else logits_nV[:, :columns]
