"""Every objective of the registry against a naive float64 oracle: values, gradients, extremes, zero at equality."""

import math

import pytest
import torch

from llm_finetuner.registry import OBJECTIVES, resolve


def _softmax(z):
    return z.exp() / z.exp().sum(-1, keepdim=True)


def oracle_cross_entropy(student, targets):
    return torch.stack([-_softmax(z)[y].log() for z, y in zip(student, targets, strict=True)])


def oracle_forward_kl(student, teacher, temperature=1.0):
    p, q = _softmax(teacher / temperature), _softmax(student / temperature)
    return temperature**2 * (p * (p / q).log()).sum(-1)


def oracle_hidden_mse(student_features, teacher_features):
    return ((student_features - teacher_features) ** 2).sum(-1) / student_features.shape[-1]


def oracle_hidden_cosine(student_features, teacher_features):
    lengths = (student_features**2).sum(-1).sqrt() * (teacher_features**2).sum(-1).sqrt()
    return 1 - (student_features * teacher_features).sum(-1) / lengths


CASES = [("cross_entropy", {}), ("hidden_mse", {}), ("hidden_cosine", {})]
CASES += [("forward_kl", {"temperature": t}) for t in (1.0, 2.0, 5.0)]


def _inputs(name, dtype=torch.float64):
    torch.manual_seed(0)
    own = torch.randn(7, 11, dtype=dtype, requires_grad=True)
    other = torch.randint(0, 11, (7,)) if name == "cross_entropy" else torch.randn(7, 11, dtype=dtype)
    return own, other


def test_every_objective_has_an_oracle():
    assert {name for name, _ in CASES} == set(OBJECTIVES)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_value_and_gradient_match_the_oracle(name, options):
    fn, (own, other) = resolve(OBJECTIVES, name), _inputs(name)
    weights = torch.rand(7, dtype=torch.float64)
    got, want = fn(own, other, **options), globals()[f"oracle_{name}"](own, other, **options)
    assert got.shape == (7,)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)
    (d_got,) = torch.autograd.grad((got * weights).sum(), own)
    (d_want,) = torch.autograd.grad((want * weights).sum(), own)
    assert torch.allclose(d_got, d_want, rtol=1e-11, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: fn(x, other, **options), own)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_half_precision_is_computed_in_float32(name, options):
    fn, (own, other) = resolve(OBJECTIVES, name), _inputs(name, torch.float32)
    half = own.detach().bfloat16()
    other = other.bfloat16() if other.is_floating_point() else other
    assert fn(half, other, **options).dtype == torch.float32
    exact = fn(half.double(), other.double() if other.is_floating_point() else other, **options)
    assert torch.allclose(fn(half, other, **options).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "cross_entropy"])
def test_equal_inputs_give_zero_loss_and_gradient(name, options):
    own, _ = _inputs(name)
    loss = resolve(OBJECTIVES, name)(own, own.detach().clone(), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), own)
    assert loss.abs().max() < 1e-14
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_of_zero_and_one_stay_finite(temperature):
    fn = resolve(OBJECTIVES, "forward_kl")
    for dtype in (torch.float32, torch.bfloat16):
        teacher = torch.tensor([[300.0, -300.0, 0.0], [-math.inf, 0.0, 1.0]], dtype=dtype)
        student = torch.tensor([[-300.0, 300.0, 0.0], [3.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
        loss = fn(student, teacher, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_temperature_squared_is_in_the_gradient():
    """With T large the gradient of T^2 KL tends to (z_s - z_t)/V for centred logits: it must not fade with T."""
    fn = resolve(OBJECTIVES, "forward_kl")
    student, teacher = _inputs("forward_kl")
    norms = []
    for temperature in (1e3, 1e4):
        loss = fn(student, teacher, temperature=temperature).sum()
        norms.append(float(torch.autograd.grad(loss, student)[0].norm()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_masked_columns_are_as_if_they_did_not_exist():
    fn = resolve(OBJECTIVES, "forward_kl")
    student, teacher = _inputs("forward_kl")
    padding = torch.full((7, 5), -math.inf, dtype=torch.float64)
    wide = fn(torch.cat([student, padding], -1), torch.cat([teacher, padding], -1), temperature=2.0)
    assert torch.equal(wide, fn(student, teacher, temperature=2.0)) or torch.allclose(
        wide, fn(student, teacher, temperature=2.0), rtol=1e-14
    )
