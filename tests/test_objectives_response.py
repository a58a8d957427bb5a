"""Response losses: temperature, slices, masked columns, probabilities of 0 and 1, and how they relate."""

import math

import pytest
import torch
from objective_references import inputs

from llm_finetuner.log_space import LOG_TINY
from llm_finetuner.registry import OBJECTIVES, options_of, resolve

RESPONSE = [name for name in OBJECTIVES if "temperature" in options_of(resolve(OBJECTIVES, name))]
CASES = [(name, {}) for name in RESPONSE]
CASES += [("alpha_beta", {"a": a, "b": b}) for a, b in [(1, 0), (0, 1), (0, 0), (0, 0.3), (2, 2)]]
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
each_name = pytest.mark.parametrize("name", RESPONSE)
INF = math.inf
LOWEST = -3.38e38  # some models mask so; logit_mse reads the logits themselves and knows -inf alone as a mask


def loss_and_gradient(name, student, teacher, **options):
    student = student.detach().clone().requires_grad_()
    loss = resolve(OBJECTIVES, name)(student, teacher, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient


# total variation fades with 1/T alone: T^2 makes it grow
@pytest.mark.parametrize("name", [name for name in RESPONSE if name != "total_variation"])
def test_temperature_squared_is_in_the_gradient(name):
    """With T large the gradient of T^2 KL tends to (z_s - z_t)/V for centred logits: it must not fade with T."""
    student, teacher = inputs(name, {})
    norms = [float(loss_and_gradient(name, student, teacher, temperature=t)[1].norm()) for t in (1e3, 1e4)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2) and norms[0] > 1e-3


def test_gradient_of_total_variation_grows_with_temperature():
    student, teacher = inputs("total_variation", {})
    norms = [
        loss_and_gradient("total_variation", student, teacher, temperature=t)[1].norm() for t in (1e3, 1e4)
    ]
    assert norms[1] / norms[0] == pytest.approx(10, rel=1e-2)


@each_case
@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
def test_a_term_is_the_same_slice_by_slice(name, options, temperature):
    student, teacher = inputs(name, options)
    loss, gradient = loss_and_gradient(name, student, teacher, temperature=temperature, **options)
    pieces = [
        loss_and_gradient(name, student[i:j], teacher[i:j], temperature=temperature, **options)
        for i, j in [(0, 1), (1, 6), (6, 12)]
    ]
    assert torch.allclose(torch.cat([piece[0] for piece in pieces]), loss, rtol=1e-14)
    assert torch.allclose(torch.cat([piece[1] for piece in pieces]), gradient, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "mask"),
    [(*case, mask) for mask in (-INF, LOWEST) for case in CASES if mask == -INF or case[0] != "logit_mse"],
    ids=str,
)
def test_masked_columns_are_as_if_they_did_not_exist(name, options, mask):
    student, teacher = inputs(name, options)
    padding = torch.full((len(student), 5), mask, dtype=torch.float64)
    narrow = loss_and_gradient(name, student, teacher, temperature=2.0, **options)
    wide = loss_and_gradient(
        name, torch.cat([student, padding], -1), torch.cat([teacher, padding], -1), temperature=2.0, **options
    )
    assert torch.allclose(wide[0], narrow[0], rtol=1e-13)
    assert torch.allclose(wide[1][:, :11], narrow[1], rtol=1e-11, atol=1e-14)
    assert not wide[1][:, 11:].any()


@each_name
def test_a_constant_of_the_logits_changes_nothing(name):
    student, teacher = inputs(name, {})
    plain, shifted = (loss_and_gradient(name, z, teacher) for z in (student, student + 3.0))
    as_log_probs = loss_and_gradient(name, student, teacher.log_softmax(-1))
    for other in (shifted, as_log_probs):
        assert torch.allclose(other[0], plain[0], rtol=1e-12) and torch.allclose(
            other[1], plain[1], atol=1e-13
        )


EXTREMES = {  # teacher, student
    "certain and opposed": ([300.0, -300.0, 0.0, 1.0], [-300.0, 300.0, 0.0, 1.0]),
    "very large": ([1e4, -1e4, 9e3, 0.0], [-1e4, 1e4, 0.0, 9e3]),
    "masked on both sides": ([-INF, 0.0, 1.0, 300.0], [-INF, 300.0, 1.0, 0.0]),
    "sparse teacher": ([-INF, 0.0, -INF, 1.0], [3.0, 0.0, 1.0, 1.0]),
    "one token known to the teacher": ([-INF, 0.0, -INF, -INF], [300.0, 0.0, 1.0, 1.0]),
    "masked in the student alone": ([3.0, 0.0, 1.0, 2.0], [-INF, 0.0, 1.0, 2.0]),
    "masked with the lowest number": ([LOWEST, 0.0, 1.0, 2.0], [3.0, 0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize(
    ("name", "options", "extreme"),
    [
        (*case, e)
        for case in CASES
        for e in EXTREMES
        if case[0] != "logit_mse" or LOWEST not in EXTREMES[e][0]
    ],
    ids=str,
)
def test_probabilities_of_zero_and_one_stay_finite(name, options, extreme):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for temperature in (1.0, 2.0, 10.0):
            teacher, student = (torch.tensor([z], dtype=dtype) for z in EXTREMES[extreme])
            loss, gradient = loss_and_gradient(name, student, teacher, temperature=temperature, **options)
            assert loss.isfinite().all() and gradient.isfinite().all() and loss > -1e-6 * temperature**2
            assert not gradient[student == -INF].any()


@each_case
@pytest.mark.parametrize("extreme", EXTREMES)
def test_equal_extremes_give_zero_loss_and_gradient(name, options, extreme):
    for logits in EXTREMES[extreme]:
        z = torch.tensor([logits])
        loss, gradient = loss_and_gradient(name, z, z.clone(), **options)
        assert loss.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["reverse_kl", "adaptive_kl"])
def test_a_token_that_the_teacher_rules_out_is_still_pushed_down(name):
    teacher = torch.tensor([[-INF, 0.0, 1.0]])
    loss, gradient = loss_and_gradient(name, torch.tensor([[2.0, 0.0, 1.0]]), teacher)
    assert gradient[0, 0] > 1 and 1 < loss < -LOG_TINY


def test_reverse_kl_counts_a_ruled_out_token_as_the_smallest_float32():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[-INF, 0.0]])
    (loss,) = resolve(OBJECTIVES, "reverse_kl")(student, teacher)
    assert float(loss) == pytest.approx(0.5 * (math.log(0.5) - LOG_TINY) + 0.5 * math.log(0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "factor", "limit"),
    [
        ("jsd", {"beta": 1e-6}, 1e-6, "forward_kl"),
        ("jsd", {"beta": 1 - 1e-6}, 1e-6, "reverse_kl"),
        ("skew_forward_kl", {"lam": 1e-9}, 1, "forward_kl"),
        ("skew_reverse_kl", {"lam": 1e-9}, 1, "reverse_kl"),
        ("alpha_beta", {"a": 1, "b": 0}, 1, "forward_kl"),
        ("alpha_beta", {"a": 0, "b": 1}, 1, "reverse_kl"),
    ],
)
def test_limits_are_the_divergences_that_the_docstrings_name(name, options, factor, limit):
    student, teacher = inputs(name, {})
    got = resolve(OBJECTIVES, name)(student, teacher, temperature=2.0, **options) / factor
    assert torch.allclose(got, resolve(OBJECTIVES, limit)(student, teacher, temperature=2.0), rtol=1e-4)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0), (0, 0.5), (0, 0)])
def test_limit_cases_of_alpha_beta_are_near_their_neighbours(a, b):
    fn, (student, teacher) = resolve(OBJECTIVES, "alpha_beta"), inputs("alpha_beta", {})
    near = fn(student, teacher, a=max(a, 0.01), b=max(b, 0.01))
    assert torch.allclose(fn(student, teacher, a=a, b=b), near, rtol=0.1)


def test_adaptive_kl_fits_the_head_forward_and_the_tail_in_reverse():
    teacher = torch.tensor([[0.6, 0.2, 0.1, 0.1]], dtype=torch.float64).log()
    gap_in_tail = torch.tensor([[0.6, 0.1, 0.2, 0.1]], dtype=torch.float64).log()
    fn, reverse = resolve(OBJECTIVES, "adaptive_kl"), resolve(OBJECTIVES, "reverse_kl")
    assert torch.allclose(fn(gap_in_tail, teacher), reverse(gap_in_tail, teacher), rtol=1e-12)
    head_is_all = fn(gap_in_tail, teacher, head_mass=0.95)
    assert torch.allclose(head_is_all, resolve(OBJECTIVES, "forward_kl")(gap_in_tail, teacher), rtol=1e-12)


def test_temperature_cancels_in_logit_mse():
    fn, (student, teacher) = resolve(OBJECTIVES, "logit_mse"), inputs("logit_mse", {})
    assert torch.equal(fn(student, teacher), fn(student, teacher, temperature=7.0))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_leaves_out_columns_and_targets_that_do_not_exist(label_smoothing):
    fn, (student, targets) = resolve(OBJECTIVES, "cross_entropy"), inputs("cross_entropy", {})
    want = fn(student, targets, label_smoothing=label_smoothing)
    wide = torch.cat([student, torch.full((12, 3), -INF)], -1)
    got = fn(wide, targets, label_smoothing=label_smoothing)
    (gradient,) = torch.autograd.grad(got.sum(), student)
    assert torch.allclose(got, want, rtol=1e-14) and gradient.isfinite().all()
    unknown = fn(student, torch.where(torch.arange(12) < 4, -100, targets), label_smoothing=label_smoothing)
    assert not unknown[:4].any() and torch.equal(unknown[4:], want[4:])


def test_label_smoothing_is_that_of_torch():
    student, targets = inputs("cross_entropy", {})
    got = resolve(OBJECTIVES, "cross_entropy")(student, targets, label_smoothing=0.1)
    want = torch.nn.functional.cross_entropy(student, targets, label_smoothing=0.1, reduction="none")
    assert torch.allclose(got, want, rtol=1e-13)
