"""What a model says of a batch, in one form for every kind of model.

Shapes: N positions that count, D hidden width, V vocabulary, B sequences, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Want:
    """What the terms of the loss will read, so that nothing else is computed: block numbers from 0."""

    layers: tuple[int, ...] = ()


@dataclass
class Output:
    """A model's answer: `head(rows[i:j])` gives the logits of positions i..j, so [N, V] need never exist."""

    rows: Tensor  # [N, D] hidden states where the loss counts
    head: Callable[[Tensor], Tensor]  # [n, D] -> [n, V]
    features: dict[int, Tensor] = field(default_factory=dict)  # block -> [N, D]
    targets: Tensor | None = None  # [N] token ids
    examples: Tensor | None = None  # [N] which sequence of the batch a position belongs to


def at_least_float32(x: Tensor) -> Tensor:
    """Log space wants float32 whatever the model's dtype; float64 stays, for exact tests."""
    return x if x.dtype == torch.float64 else x.float()
