"""Positions grouped by sequence, and geometry among the positions of one: for losses over pairs and triples.

Shapes: N positions that count, D width, B sequences that have any, L positions of the longest.
"""

import torch
from torch import Tensor

from llm_finetuner.output import at_least_float32


class Sequences:
    """Brings [N, D] into [B, L, D] and back; `examples [N]` names the sequence of each position, ascending."""

    def __init__(self, examples: Tensor):
        _, self.row, self.lengths = torch.unique_consecutive(
            examples, return_inverse=True, return_counts=True
        )
        first = self.lengths.cumsum(0) - self.lengths
        self.column = torch.arange(len(examples), device=examples.device) - first[self.row]
        longest = int(self.lengths.max()) if len(examples) else 0
        self.places = torch.arange(longest, device=examples.device)  # [L]
        self.mask = self.places < self.lengths[:, None]  # [B, L]

    def pad(self, x: Tensor) -> Tensor:
        """[N, D] -> [B, L, D] in float32 at least, zeros where a sequence is shorter than the longest."""
        empty = at_least_float32(x).new_zeros(*self.mask.shape, x.shape[-1])
        return empty.index_put((self.row, self.column), at_least_float32(x))

    def spread(self, x: Tensor) -> Tensor:
        """[B, L] -> [N], or a value a sequence [B, 1] to each of its positions."""
        return x.expand(self.mask.shape)[self.row, self.column]

    def pairs(self) -> Tensor:
        """[B, L, L] true where both positions exist and are not the same one."""
        apart = self.places[:, None] != self.places
        return self.mask[:, :, None] & self.mask[:, None, :] & apart

    def center(self, x: Tensor) -> Tensor:
        """Take the mean of every sequence from its positions: [B, L, D] -> [B, L, D], zeros where padded."""
        mean = x.sum(1, keepdim=True) / self.lengths[:, None, None]
        return (x - mean) * self.mask[..., None]


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products [..., L, D], [..., M, D] -> [..., L, M], in their own precision under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.transpose(-1, -2)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1: [..., D] -> [..., D]; a vector of length 0 stays, with gradient 0."""
    square = x.square().sum(-1, keepdim=True)
    return x * torch.where(square > 0, torch.where(square > 0, square, 1).rsqrt(), 0)


def distances(centered: Tensor) -> Tensor:
    """Euclidean distances among the positions of each sequence, given `Sequences.center`: [B, L, D] -> [B, L, L].

    Taken from inner products, since [B, L, L, D] would not fit. Rounding hides distances below about 0.2 % of the
    vectors' lengths in float32: they count as 0, with gradient 0.
    """
    products = inner(centered, centered)
    square = products.diagonal(dim1=-2, dim2=-1)
    both = square[:, :, None] + square[:, None, :]
    between = both - 2 * products
    apart = between > 32 * torch.finfo(centered.dtype).eps * both
    return torch.where(apart, torch.where(apart, between, 1).sqrt(), 0)
