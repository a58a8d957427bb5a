"""Filters fitted to those of a model with more modes: what lies in reach is found again, and nothing else is nearer."""

import math

import pytest
import torch

from llm_finetuner.models.s4d_fit import fit_kernels
from llm_finetuner.models.s4d_mixer import S4DMixer

LAGS = 24
KEPT = torch.tensor([2, 0])


def mixer(
    channels: int, state_dim: int, complex_valued: bool, bidirectional: bool = True, seed: int = 0
) -> S4DMixer:
    torch.manual_seed(seed)
    return (
        S4DMixer(channels, state_dim, complex_valued, bidirectional, "lin", "zoh", 0.02, 0.2).double().eval()
    )


def error(fitted: S4DMixer, source: S4DMixer) -> torch.Tensor:
    """Squared, of the kernels of each channel: [H]."""
    with torch.no_grad():
        gap_dHL = fitted.kernel(LAGS) - source.kernel(LAGS)[:, KEPT]
    return gap_dHL.abs().square().sum((0, 2))


@pytest.mark.parametrize("complex_valued", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_filter_within_reach_is_found_again(complex_valued, bidirectional):
    source = mixer(3, 12, complex_valued, bidirectional)
    small = mixer(1, 4, complex_valued, bidirectional)
    with torch.no_grad():  # its poles, at one of the steps that are tried; the others do nothing
        source.log_dt.fill_(math.log(0.5))
        source.decay.zero_()
        source.frequency[:, :2] = small.frequency
        source.C[:, :, 2:] = 0
    fitted = mixer(2, 4, complex_valued, bidirectional, seed=1)
    fit_kernels(source, fitted, KEPT, LAGS)
    energy_H = source.kernel(LAGS)[:, KEPT].detach().abs().square().sum((0, 2))
    assert (error(fitted, source) < 1e-6 * energy_H).all()


@pytest.mark.parametrize("complex_valued", [True, False])
def test_no_other_gains_are_nearer(complex_valued):
    source, fitted = mixer(3, 32, complex_valued), mixer(2, 8, complex_valued, seed=1)
    fit_kernels(source, fitted, KEPT, LAGS)
    gap = (fitted.kernel(LAGS) - source.kernel(LAGS)[:, KEPT].detach()).abs().square().sum()
    (slope,) = torch.autograd.grad(gap, fitted.C)
    (steep,) = torch.autograd.grad(fitted.kernel(LAGS).abs().square().sum(), fitted.C)
    assert slope.abs().max() < 1e-3 * steep.abs().max()
    drawn = mixer(2, 8, complex_valued, seed=1)
    assert (error(fitted, source) < error(drawn, source)).all()


def test_more_modes_come_nearer():
    source, found = mixer(3, 64, True), []
    for state_dim in (4, 8, 16, 32):
        fitted = mixer(2, state_dim, True, seed=1)
        fit_kernels(source, fitted, KEPT, LAGS)
        found.append(float(error(fitted, source).sum()))
    assert found == sorted(found, reverse=True) and found[-1] < 0.1 * found[0]
