"""A diagonal state-space model (S4D) over each channel: the whole sequence by FFT, in chunks, or a sample at a time.

    x[t] = dA x[t-1] + u[t]        y[t] = sum over modes of G x[t], + D u[t]
    dA = e^(dt A), G = C (dA - 1) / A (zero-order hold), A = -e^decay + j frequency

After Gu et al. 2022 (S4D, arXiv 2206.11893) with B = 1 and its discretised form moved from the input to the output, so
that the state needs no scaling of its own. A complex mixer has M = state_dim / 2 modes of their own; a real one has M
conjugate pairs, whose sum is 2 Re. Both keep state_dim real numbers a channel.

Shapes: B sequences, L samples, H channels, M modes, n the length of the FFT.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.models.s4d_kernel import Powers, fast_length

KEPT = 4  # what is made of the weights is kept for this many lengths


@dataclass(frozen=True)
class System:
    """What a mixer is for chunks of up to `length` samples: powers.length of them."""

    w_HM: Tensor  # log dA, complex128
    step_HM: Tensor  # dA
    gain_HM: Tensor  # G
    powers: Powers
    spectrum_Hn: Tensor


class S4DMixer(nn.Module):
    """[B, L, H] -> [B, L, H], each channel by itself. Bidirectional: a second set of C looks the other way."""

    def __init__(
        self, channels: int, state_dim: int, complex_valued: bool, bidirectional: bool, frequencies: str,
        discretization: str, dt_min: float, dt_max: float,
    ):  # fmt: skip
        super().__init__()
        self.complex_valued, self.bidirectional = complex_valued, bidirectional
        self.discretization, modes = discretization, state_dim // 2
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(channels))
        self.decay = nn.Parameter(torch.full((channels, modes), math.log(0.5)))
        frequency = FREQUENCIES[frequencies](modes, complex_valued)
        self.frequency = nn.Parameter(frequency.expand(channels, -1).clone())
        self.C = nn.Parameter(torch.randn(1 + bidirectional, channels, modes, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(channels))
        self._made_of: list[Tensor] = []
        self._made: dict[tuple, Any] = {}

    def discretise(self) -> tuple[Tensor, Tensor]:
        """(log dA [H, M], G [directions, H, M]) in complex128, whatever the weights are: phases need the digits."""
        A = torch.complex(-self.decay.double().exp(), self.frequency.double())
        dt = self.log_dt.double().exp()[:, None]
        if self.discretization == "zoh":
            w, B = dt * A, ((dt * A).exp() - 1) / A
        else:
            w, B = torch.log((1 + dt * A / 2) / (1 - dt * A / 2)), dt / (1 - dt * A / 2)
        return w, torch.view_as_complex(self.C.double()) * B

    def kernel(self, length: int) -> Tensor:
        """y for the input 1, 0, 0, ... without D u: [directions, H, L]; real for a real mixer."""
        w_HM, gain_dHM = self.discretise()
        return self._kernel(self._powers(w_HM, length, 1 + self.bidirectional), gain_dHM)

    def forward(self, u_BLH: Tensor) -> Tensor:
        """The whole sequence by one FFT."""
        length = u_BLH.shape[1]
        spectrum_Hn = self._keep(("spectrum", length), lambda: self._spectrum(self.kernel(length)))
        return self._convolve(u_BLH.transpose(1, 2), spectrum_Hn).transpose(1, 2)

    def system(self, length: int, batch: int) -> System:
        """What `advance` needs for chunks of up to this length, and `step`: made once, not at every chunk."""

        def make() -> System:
            w_HM, gain_dHM = self.discretise()
            powers = self._powers(w_HM, length, batch)
            spectrum_Hn = self._spectrum(self._kernel(powers, gain_dHM))
            step_HM, gain_HM = w_HM.exp().to(self._complex), gain_dHM[0].to(self._complex)
            return System(w_HM, step_HM, gain_HM, powers, spectrum_Hn)

        return self._keep(("system", length, batch), make)

    def advance(self, u_BLH: Tensor, state_BHM: Tensor, system: System) -> tuple[Tensor, Tensor]:
        """The next chunk behind `state`: (y, the state behind the chunk). Equal to the whole sequence by FFT."""
        length, u_BHL = u_BLH.shape[1], u_BLH.transpose(1, 2)
        begun_HBM = (state_BHM * (system.gain_HM * system.step_HM)).transpose(0, 1)
        left_BHL = self._of_pairs(system.powers.over_modes(begun_HBM)[..., :length]).transpose(0, 1)
        y_BHL = self._convolve(u_BHL, system.spectrum_Hn) + left_BHL
        faded_HM = (system.w_HM * length).exp().to(self._complex)
        come_HBM = system.powers.over_samples(u_BHL.flip(-1).transpose(0, 1))  # the newest first
        state_BHM = torch.addcmul(come_HBM.transpose(0, 1), faded_HM, state_BHM)
        return y_BHL.transpose(1, 2), state_BHM

    def step(self, u_BH: Tensor, state_BHM: Tensor, system: System) -> tuple[Tensor, Tensor]:
        """The next sample behind `state`: (y, the state behind it)."""
        state_BHM = torch.addcmul(u_BH[..., None].to(self._complex), system.step_HM, state_BHM)
        sums_BH = (system.gain_HM * state_BHM).sum(-1)
        y_BH = self._of_pairs(sums_BH if self.complex_valued else sums_BH.real)
        return y_BH + self.D * u_BH, state_BHM

    def initial_state(self, batch: int) -> Tensor:
        """Nothing has come yet: [B, H, M]."""
        return torch.zeros(batch, *self.decay.shape, dtype=self._complex, device=self.decay.device)

    def train(self, mode: bool = True) -> "S4DMixer":
        """Nothing made of the weights outlives the next step of an optimizer."""
        self._made_of, self._made = [], {}
        return super().train(mode)

    @property
    def _complex(self) -> torch.dtype:
        return self.D.dtype.to_complex()

    def _powers(self, w_HM: Tensor, length: int, batch: int) -> Powers:
        return Powers.of(w_HM, length, self._complex, self.complex_valued, batch)

    def _of_pairs(self, sums: Tensor) -> Tensor:
        """What modes and their conjugates come to, where there are any, from the real part of the sum over modes."""
        return sums if self.complex_valued else 2 * sums

    def _kernel(self, powers: Powers, gain_dHM: Tensor) -> Tensor:
        sums_HdL = powers.over_modes(gain_dHM.transpose(0, 1).to(self._complex))
        return self._of_pairs(sums_HdL).transpose(0, 1)

    def _spectrum(self, kernel_dHL: Tensor) -> Tensor:
        """Of the kernel and D; what looks into the future stands at the end of the circle: [H, n], or n / 2 + 1."""
        length = kernel_dHL.shape[-1]
        spare = 2 * fast_length(length) - length
        circle_Hn = nn.functional.pad(kernel_dHL[0], (0, spare))
        circle_Hn = circle_Hn + nn.functional.pad(self.D[:, None], (0, length + spare - 1))
        if self.bidirectional:
            circle_Hn = circle_Hn + nn.functional.pad(kernel_dHL[1].flip(-1), (spare, 0))
        return torch.fft.fft(circle_Hn) if self.complex_valued else torch.fft.rfft(circle_Hn)

    def _convolve(self, u_BHL: Tensor, spectrum_Hn: Tensor) -> Tensor:
        length, size = u_BHL.shape[-1], spectrum_Hn.shape[-1]
        if self.complex_valued:
            return torch.fft.ifft(torch.fft.fft(u_BHL, size) * spectrum_Hn)[..., :length]
        size = 2 * (size - 1)  # n is even
        return torch.fft.irfft(torch.fft.rfft(u_BHL, size) * spectrum_Hn, size)[..., :length]

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What `make` says, kept where no gradient is wanted and for as long as all weights are what they were.

        They are compared by value: version counters do not see what is written through `.data`.
        """
        weights = [self.log_dt, self.decay, self.frequency, self.C, self.D]
        if self.training or (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)):
            return make()
        with torch.inference_mode(False), torch.no_grad():  # what is kept is of use inside and outside
            if not (self._made_of and all(map(_same, self._made_of, weights))):
                self._made_of, self._made = [weight.clone() for weight in weights], {}
            if key not in self._made:
                self._made = dict([*self._made.items(), (key, make())][-KEPT:])
        return self._made[key]


def linear_frequencies(modes: int, complex_valued: bool) -> Tensor:
    """S4D-Lin: multiples of pi from 0. Complex modes fill the same band on both sides of 0, twice as far apart."""
    if complex_valued:
        return 2 * math.pi * (torch.arange(modes) - (modes - 1) / 2)
    return math.pi * torch.arange(modes)


def inverse_frequencies(modes: int, complex_valued: bool) -> Tensor:
    """S4D-Inv: (N / pi) (N / (2 n + 1) - 1), N = 2 M. Complex modes: N = M, each frequency and its negative."""
    size = modes if complex_valued else 2 * modes
    half = size / math.pi * (size / (2 * torch.arange((size + 1) // 2) + 1) - 1)
    return torch.cat([half, -half.flip(0)[size % 2 :]]) if complex_valued else half


FREQUENCIES = {"lin": linear_frequencies, "inv": inverse_frequencies}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
