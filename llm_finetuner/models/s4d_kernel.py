"""Powers of the modes of a diagonal state-space model, and sums over them, in far less than [H, M, L] memory.

Shapes: H channels, M modes, L samples, B whatever is summed side by side; L = P x Q, sample l = p Q + q.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def fast_length(least: int) -> int:
    """The smallest 2^a 3^b 5^c of at least `least`: other lengths cost an FFT up to twice as much."""
    best, fives = 1 << max(0, least - 1).bit_length(), 1
    while fives < best:
        threes = fives
        while threes < best:
            twos = threes << max(0, -(-least // threes) - 1).bit_length()
            best = min(best, twos)
            threes *= 3
        fives *= 5
    return best


@dataclass(frozen=True)
class Powers:
    """e^(w l) for l = 0 ... L - 1 as a product of two tables: coarse [H, P, M], by Q samples, and fine [H, Q, M]."""

    coarse: Tensor
    fine: Tensor
    length: int

    @classmethod
    def of(cls, w_HM: Tensor, length: int, dtype: torch.dtype) -> "Powers":
        """Tables in complex `dtype` of exponents w (complex128, real part at most 0)."""
        count = _root(length)
        blocks = -(-length // count)
        return cls(_powers(w_HM, blocks, count, dtype), _powers(w_HM, count, 1, dtype), length)

    def over_modes(self, gain_HBM: Tensor) -> Tensor:
        """Sum over m of gain[m] e^(w[m] l): [H, B, L]. A matrix product of [B P, M] and [M, Q] for each channel."""
        left_HBPM = gain_HBM[:, :, None] * self.coarse[:, None]
        sums = torch.bmm(left_HBPM.flatten(1, 2), self.fine.mT)
        return sums.unflatten(1, left_HBPM.shape[1:3]).flatten(2)[..., : self.length]

    def over_samples(self, x_HBL: Tensor) -> Tensor:
        """Sum over l of x[l] e^(w l): [H, B, M], for x of complex numbers."""
        blocks, count = self.coarse.shape[1], self.fine.shape[1]
        x_HBPQ = torch.nn.functional.pad(x_HBL, (0, blocks * count - self.length)).unflatten(
            2, (blocks, count)
        )
        inner = torch.bmm(x_HBPQ.flatten(1, 2), self.fine).unflatten(1, x_HBPQ.shape[1:3])
        return (inner * self.coarse[:, None]).sum(2)


def _root(length: int) -> int:
    return math.isqrt(length - 1) + 1


def _powers(w_HM: Tensor, count: int, step: int, dtype: torch.dtype) -> Tensor:
    """e^(w step k) for k = 0 ... count - 1: [H, count, M]. Again two levels, so that few exponentials are taken."""
    inner = _root(count)
    outer = -(-count // inner)
    fine = _exponentials(w_HM, inner, step, dtype)
    coarse = _exponentials(w_HM, outer, step * inner, dtype)
    return (coarse[:, :, None] * fine[:, None]).flatten(1, 2)[:, :count]


def _exponentials(w_HM: Tensor, count: int, step: int, dtype: torch.dtype) -> Tensor:
    """e^(w step k), the phase brought into one turn while it is float64: in float32 it would lose its digits."""
    k = step * torch.arange(count, dtype=torch.float64, device=w_HM.device)[:, None]
    real = torch.empty(0, dtype=dtype).real.dtype
    turn = 2 * math.pi
    return torch.polar(
        torch.exp((w_HM.real[:, None] * k).to(real)),
        torch.remainder(w_HM.imag[:, None] * k, turn).to(real),
    )
