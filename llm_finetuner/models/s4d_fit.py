"""Filters of a state-space model fitted to those of one with more modes.

A trained filter holds much where nothing came of it: modes that cancel each other near the sample, and what they add
far from it. A few of its modes are another filter then. Modes of the smaller model's own, evenly spaced, with the gains
that come nearest to the filter over about as many lags as it has numbers of state, keep what it does.

Shapes: d directions, H channels, M modes, L lags.
"""

import itertools
import math

import torch
from torch import Tensor

from llm_finetuner.models.s4d_mixer import S4DMixer

STEPS = 5  # time steps tried, from a quarter of that at which S4D-Lin fills the band to it
DECAYS = (0.5, 1.0, 2.0)
TURNS = (
    0,
    -0.125,
    0.125,
    -0.25,
    0.25,
)  # of a circle a sample, by which complex modes are moved along the band
RIDGE = 1e-6  # of the mean energy of a mode


@torch.no_grad()
def fit_kernels(source: S4DMixer, mixer: S4DMixer, kept: Tensor, lags: int) -> None:
    """Overwrite the modes of `mixer`, as they were drawn, by those nearest to channels `kept` of `source` over L lags.

    Nearest: least squared error of the kernel; of each channel's time step, decay and place in the band those of a few
    with the least. The projection onto given poles is that of H2-optimal reduction (Antoulas, Approximation of
    Large-Scale Dynamical Systems, SIAM 2005, section 5.5), over a finite time.
    """
    wanted_HLd = source.kernel(lags)[:, kept].movedim(0, -1)
    weights = [mixer.log_dt, mixer.decay, mixer.frequency, mixer.C]
    drawn, modes = mixer.frequency.clone(), mixer.decay.shape[1]
    least_H, found = torch.full((len(kept),), math.inf, dtype=torch.float64), [w.clone() for w in weights]
    steps = [2 ** (-i / 2) / modes for i in range(STEPS)]
    for dt, decay, turn in itertools.product(steps, DECAYS, TURNS if mixer.complex_valued else TURNS[:1]):
        mixer.log_dt.fill_(math.log(dt))
        mixer.decay.fill_(math.log(decay))
        mixer.frequency.copy_(drawn + 2 * math.pi * turn / dt)
        C_HMd, error_H = _gains(mixer, wanted_HLd)
        mixer.C.copy_(torch.view_as_real(C_HMd).movedim(2, 0))
        better = error_H < least_H.to(error_H.device)
        least_H = torch.where(better, error_H, least_H.to(error_H.device))
        for old, new in zip(found, weights, strict=True):
            axis = 1 if new is mixer.C else 0
            old.movedim(axis, 0)[better] = new.movedim(axis, 0)[better]
    for weight, best in zip(weights, found, strict=True):
        weight.copy_(best)


def _gains(mixer: S4DMixer, wanted_HLd: Tensor) -> tuple[Tensor, Tensor]:
    """(C [H, M, d], complex, and the squared error [H]) of the kernels nearest to these with the mixer's poles."""
    mixer.C.copy_(mixer.C.new_tensor([1.0, 0.0]))
    w_HM, once_dHM = mixer.discretise()
    lags = torch.arange(wanted_HLd.shape[1], device=w_HM.device)
    table_HLM = once_dHM[0, :, None] * (w_HM[:, None] * lags[:, None]).exp()
    if mixer.complex_valued:
        wanted = wanted_HLd.to(torch.complex128)
    else:  # 2 Re(C z) = 2 Re(C) Re(z) - 2 Im(C) Im(z)
        table_HLM, wanted = 2 * torch.cat([table_HLM.real, -table_HLM.imag], -1), wanted_HLd.double()
    square = table_HLM.mH @ table_HLM
    energy_H = square.diagonal(dim1=1, dim2=2).real.mean(1)
    square = square + RIDGE * energy_H[:, None, None] * torch.eye(square.shape[1], device=square.device)
    C_HMd = torch.linalg.solve(square, table_HLM.mH @ wanted)
    error_H = (table_HLM @ C_HMd - wanted).abs().square().sum((1, 2))
    return C_HMd if mixer.complex_valued else torch.complex(*C_HMd.chunk(2, 1)), error_H
