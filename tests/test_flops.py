"""Operations that are counted against those that are worked out by hand."""

import math

import pytest
import torch
from mamba_models import mamba
from sequences import model
from torch import nn

from llm_finetuner.benchmark import flops, speed
from llm_finetuner.benchmark.focusers import Zeros
from llm_finetuner.models.s4d_kernel import fast_length

REAL, COMPLEX = torch.randn(3, 96), torch.randn(3, 96, dtype=torch.complex64)
QUERY = torch.randn(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("forward", "want"),
    [
        (lambda: REAL @ REAL.T, 2 * 3 * 3 * 96),
        (lambda: nn.functional.linear(REAL, REAL[:, :96], REAL[:, 0]), 2 * 3 * 3 * 96),
        (lambda: REAL * REAL + 1, 2 * 288),
        (lambda: COMPLEX * COMPLEX, 6 * 288),
        (lambda: COMPLEX * REAL - COMPLEX, (2 + 2) * 288),
        (lambda: (REAL.sum(1), COMPLEX.sum(1)), 3 * 288),
        (lambda: torch.fft.fft(COMPLEX), 3 * 5 * 96 * math.log2(96)),
        (lambda: torch.fft.irfft(torch.fft.rfft(REAL)), 3 * 5 * 96 * math.log2(96)),
        (lambda: torch.fft.fft2(COMPLEX), 5 * 288 * math.log2(288)),
        (
            lambda: nn.functional.scaled_dot_product_attention(QUERY, QUERY, QUERY),
            2 * 2 * 2 * 4 * 5 * 5 * 8,
        ),
        (lambda: torch.relu(REAL).exp(), 0),
    ],
)
def test_operations_by_hand(forward, want):
    assert flops.count(forward) == pytest.approx(want, abs=2)


@pytest.mark.parametrize("complex_valued", [True, False])
def test_a_state_space_model_by_its_formula(complex_valued):
    """Two transforms, a product with the spectrum and a matrix a layer; the kernel is made once and not in it."""
    net = model(double=False, gate="off", activation="linear", complex_valued=complex_valued)
    x = torch.randn(2, 50, 2, dtype=torch.complex64 if complex_valued else torch.float32)
    net.eval()
    with torch.no_grad():
        net(x)
    n, rows, (layers, width, size) = 2 * fast_length(50), 2 * 50, (2, 4, 4 if complex_valued else 1)
    ends = 2 * rows * size * (2 * width + width)
    matrix = 2 * rows * size * width**2
    if complex_valued:
        filtered = 2 * width * (2 * 5 * n * math.log2(n) + 6 * n)
        turned = 4 * (2 * width + width + layers * width**2)  # weights written as real matrices
        added = 2 * rows * width
    else:
        filtered, turned = 2 * width * (5 * n * math.log2(n) + 6 * (n / 2 + 1)), 0
        added = rows * width
    want = ends + turned + layers * (filtered + matrix + added)
    assert flops.count(lambda: net(x)) == pytest.approx(want, rel=0.02)


def test_a_scan_is_counted():
    """Torch's counter leaves out a good part of a Mamba."""
    from torch.utils.flop_counter import FlopCounterMode

    net, ids = mamba(), torch.ones(1, 32, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as known:
        net(ids)
    assert flops.count(lambda: net(ids)) > 1.1 * known.get_total_flops()


def test_speeds_hold_them_for_each_sample_and_none_where_nothing_is_seen():
    net = model(double=False)
    x = torch.randn(2, 50, 2, dtype=torch.complex64)
    found = speed.measure({"net": net, "zeros": Zeros(net.config)}, x, repeats=1)
    net.eval()
    with torch.no_grad():
        net(x)
    assert found["net"]["flops"] == flops.count(lambda: net(x)) / 100
    assert found["zeros"]["flops"] is None
