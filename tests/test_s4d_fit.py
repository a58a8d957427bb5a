"""Filters of fewer modes fitted to those of a larger state-space model."""

import math

import pytest
import torch
from s4d_models import apart, both, model_of

from llm_finetuner.models.build_s4d import from_teacher
from llm_finetuner.models.s4d_fit import fit_kernels
from llm_finetuner.models.s4d_transfer import transfer

KEPT = torch.tensor([2, 0, 3])


def pair(kind: tuple, bidirectional: bool = True) -> tuple:
    """Mixers of 4 channels with 8 modes, and of 3 with 4."""
    large = model_of(kind, model_dim=4, state_dim=16, bidirectional=bidirectional)
    small = model_of(kind, seed=1, model_dim=3, state_dim=8, bidirectional=bidirectional)
    return large.layers[0].mixer, small.layers[0].mixer


@both
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("step", "decay"), [(1 / 4, 0.5), (1 / 8, 2.0)])
def test_a_filter_that_fewer_modes_can_be_is_found(kind, bidirectional, step, decay):
    large, small = pair(kind, bidirectional)
    with torch.no_grad():
        large.log_dt.fill_(math.log(step))
        large.decay.fill_(math.log(decay))
        large.frequency[:, :4] = small.frequency[0]
        large.C[:, :, 4:] = 0
    fit_kernels(large, small, KEPT, 20)
    assert apart(small.kernel(60), large.kernel(60)[:, KEPT]) < 1e-4


@both
def test_gains_are_those_of_least_squares(kind):
    large, small = pair(kind)
    fit_kernels(large, small, KEPT, 24)
    wanted = large.kernel(24)[:, KEPT].detach()

    def slope(gains: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            small.C.copy_(gains)
        error = (small.kernel(24) - wanted).abs().square().sum()
        return torch.autograd.grad(error, small.C)[0].abs().max()

    found = small.C.detach().clone()
    assert slope(found) < 1e-3 * slope(torch.zeros_like(found))


@both
def test_it_comes_nearer_than_some_of_the_modes(kind):
    teacher = model_of(kind, model_dim=4, state_dim=24)
    students = [model_of((*kind[:1], "off", *kind[2:]), seed=1, model_dim=4, state_dim=8) for _ in range(2)]
    transfer(teacher, students[0])
    transfer(teacher, students[1], lags=8)
    for old, *new in zip(teacher.layers, *(student.layers for student in students), strict=True):
        errors = [(block.mixer.kernel(8) - old.mixer.kernel(8)).abs().square().sum() for block in new]
        assert errors[1] < 0.7 * errors[0]


def test_a_filter_of_as_many_modes_is_copied():
    teacher = model_of(state_dim=8, model_dim=4)
    student = from_teacher(teacher, {"preset": "tiny", "model_dim": 4, "state_dim": 8, "num_layers": 2})
    for old, new in zip(teacher.layers, student.layers, strict=True):
        assert torch.equal(old.mixer.kernel(30), new.mixer.kernel(30))
