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
    """e^(w l) for l = 0 ... L - 1 as a product of two tables: coarse, by Q samples, and fine.

    Products with the fine table are those of real matrices, about twice as fast as complex ones of this size.
    """

    coarse: Tensor  # [H, P, M], complex
    fine: Tensor  # [H, R, 2 M], the conjugate's real and imaginary parts; R = Q, or 2 Q for complex sums
    length: int
    complex_valued: bool

    @classmethod
    def of(
        cls, w_HM: Tensor, length: int, dtype: torch.dtype, complex_valued: bool, batch: int = 1
    ) -> "Powers":
        """Tables in complex `dtype` of exponents w (complex128, real part at most 0).

        complex_valued: whether sums are complex. batch: B of what is summed, which the tables are cut for.
        """
        count = min(length, _root(length * batch))
        fine_HRM = _powers(w_HM.conj(), count, 1, dtype)
        if complex_valued:
            fine_HRM = torch.stack([fine_HRM, 1j * fine_HRM], 2).flatten(1, 2)
        return cls(_powers(w_HM, -(-length // count), count, dtype), _pairs(fine_HRM), length, complex_valued)

    def over_modes(self, gain_HBM: Tensor) -> Tensor:
        """Sum over m of gain[m] e^(w[m] l): [H, B, L]; its real part where sums are real."""
        left_HBPM = gain_HBM[:, :, None] * self.coarse[:, None]
        sums_HBPR = torch.bmm(_pairs(left_HBPM.flatten(1, 2)), self.fine.mT).unflatten(
            1, left_HBPM.shape[1:3]
        )
        if self.complex_valued:
            sums_HBPR = torch.view_as_complex(sums_HBPR.unflatten(-1, (-1, 2)))
        return sums_HBPR.flatten(2)[..., : self.length]

    def over_samples(self, x_HBL: Tensor) -> Tensor:
        """Sum over l of x[l] e^(w l): [H, B, M], for x real where sums are real."""
        blocks, rows = self.coarse.shape[1], self.fine.shape[1]
        count = rows // 2 if self.complex_valued else rows
        x_HBL = torch.nn.functional.pad(x_HBL, (0, blocks * count - x_HBL.shape[-1]))
        x_HKQ = x_HBL.unflatten(2, (blocks, count)).flatten(1, 2)
        sums_HKM = torch.bmm(_pairs(x_HKQ.conj().resolve_conj()) if self.complex_valued else x_HKQ, self.fine)
        inner_HBPM = torch.view_as_complex(sums_HKM.unflatten(-1, (-1, 2))).unflatten(1, (-1, blocks))
        return (inner_HBPM.conj() * self.coarse[:, None]).sum(2)


def _pairs(z: Tensor) -> Tensor:
    """Real and imaginary parts side by side: [..., M] -> [..., 2 M]."""
    return torch.view_as_real(z).flatten(-2)


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
