"""Every objective of the registry against its naive float64 reference, and the rules that all of them keep."""

import objective_references as references
import pytest
import torch
from objective_references import convert, inputs, leaves, reads

from llm_finetuner.errors import RecipeError
from llm_finetuner.registry import OBJECTIVES, options_of, resolve

RESPONSE = [name for name in OBJECTIVES if "temperature" in options_of(resolve(OBJECTIVES, name))]
OPTIONS = {  # further ones than the defaults, which every objective is tested with
    "jsd": [{"beta": 0.1}, {"beta": 0.9}],
    "skew_forward_kl": [{"lam": 0.7}],
    "skew_reverse_kl": [{"lam": 0.7}],
    "adaptive_kl": [{"head_mass": 0.2}, {"head_mass": 0.9}],
    "alpha_beta": [
        {"a": a, "b": b} for a, b in [(1, 0), (0, 1), (0.5, 0), (0, 0.3), (0, 0), (1.5, 0.8), (0.01, 0.01)]
    ],
    "attention_mse": [{"heads": "averaged"}],
    "attention_kl": [{"heads": "averaged"}],
    "value_relation": [{"of": ["query", "key"]}, {"heads": 4}, {"heads": 2, "of": ["query", "key", "value"]}],
    "angle": [{"positions": 3}, {"positions": 4}],
    "cross_entropy": [{"label_smoothing": 0.2}],
    "huber": [{"delta": 0.3}],
    "pinball": [{"quantiles": [0.1, 0.5, 0.9]}],
    "multi_scale": [{"scales": 1}, {"scales": 5}],
}
CASES = [(name, options) for name in OBJECTIVES for options in [{}, *OPTIONS.get(name, [])]]
CASES += [(name, {"temperature": t}) for name in RESPONSE for t in (2.0, 10.0)]
AGAINST_TEACHER = [case for case in CASES if "targets" not in reads(case[0])]
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def as_seen_by_teacher(arguments: list) -> list:
    """The same with the student's values in the place of the teacher's: one is followed by the other."""
    copy = convert(arguments, torch.float64)
    own = arguments[0]
    copy[1] = (
        {k: t.detach().clone() for k, t in own.items()} if isinstance(own, dict) else own.detach().clone()
    )
    return copy


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_reference_and_a_source_of_its_formula(name):
    assert callable(vars(references).get(name)), (
        f"{name} needs a float64 reference in objective_references.py"
    )
    assert options_of(resolve(OBJECTIVES, name)).keys() - {"temperature"} <= {
        option for options in OPTIONS.get(name, []) for option in options
    }, f"{name} has an option that OPTIONS does not try"


@each_case
def test_value_and_gradient_match_the_reference(name, options):
    fn, arguments = resolve(OBJECTIVES, name), inputs(name, options)
    got, want = fn(*arguments, **options), vars(references)[name](*arguments, **options)
    torch.manual_seed(1)
    weights = torch.rand(len(got), dtype=torch.float64)
    assert got.shape == (12,) and got.dtype == torch.float64 and got.max() > 1e-4
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-13)
    own = leaves(arguments)
    d_got = torch.autograd.grad((got * weights).sum(), own, allow_unused=True)
    d_want = torch.autograd.grad((want * weights).sum(), own, allow_unused=True)
    for g, w in zip(d_got, d_want, strict=True):
        assert (g is None) == (w is None)
        assert g is None or torch.allclose(g, w, rtol=1e-9, atol=1e-12)


# adaptive_kl's weights are constants for the gradient but not for differences of values: the reference alone speaks
@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "adaptive_kl"], ids=str)
def test_gradient_matches_differences_of_values(name, options):
    fn, arguments = resolve(OBJECTIVES, name), inputs(name, options)
    if isinstance(arguments[0], dict):
        first, rest = list(arguments[0]), arguments[1:]
        assert torch.autograd.gradcheck(
            lambda *own: fn(dict(zip(first, own, strict=True)), *rest, **options), leaves(arguments)
        )
    else:
        assert torch.autograd.gradcheck(lambda own: fn(own, *arguments[1:], **options), arguments[0])


@each_case
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(name, options, autocast):
    fn, arguments = resolve(OBJECTIVES, name), inputs(name, options)
    half = convert(arguments, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = fn(*half, **options)
    exact = fn(*convert(half, torch.float64), **options)
    # T^2 times what float32 rounds: 1e-6, or ten times that where T^2 is less
    atol = 1e-6 * max(10.0, options.get("temperature", 1.0) ** 2)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), exact, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("name", "options"), AGAINST_TEACHER, ids=str)
def test_equal_inputs_give_zero_loss_and_gradient(name, options):
    arguments = as_seen_by_teacher(inputs(name, options))
    loss = resolve(OBJECTIVES, name)(*arguments, **options)
    assert loss.abs().max() < 1e-13
    own = leaves(arguments)
    for x, gradient in zip(own, torch.autograd.grad(loss.sum(), own, allow_unused=True), strict=True):
        if gradient is not None:  # a state that is not asked for
            # attention of exactly 0 is masked: nothing flows back through its softmax
            assert gradient[x != 0].abs().max() < 1e-12


@pytest.mark.parametrize(("name", "options"), AGAINST_TEACHER, ids=str)
def test_no_divergence_is_negative(name, options):
    assert resolve(OBJECTIVES, name)(*inputs(name, options), **options).min() > -1e-15


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_positions_has_no_loss_and_a_whole_graph(name):
    arguments = [{k: t[:0] for k, t in a.items()} if isinstance(a, dict) else a[:0] for a in inputs(name, {})]
    loss = resolve(OBJECTIVES, name)(*arguments)
    assert loss.shape == (0,) and loss.requires_grad


WRONG = [(name, {"temperature": t}) for name in RESPONSE for t in (0, -1.0, float("nan"), "2")]
WRONG += [("jsd", {"beta": b}) for b in (0, 1, -0.1, 1.1, None)]
WRONG += [(name, {"lam": lam}) for name in ("skew_forward_kl", "skew_reverse_kl") for lam in (0, 1, 2)]
WRONG += [("adaptive_kl", {"head_mass": m}) for m in (0, 1, -1)]
WRONG += [
    ("alpha_beta", {"a": a, "b": b})
    for a, b in [(-1, 1), (1, -1), (-0.2, 0.7), (0.001, 1), (float("inf"), 1), (float("nan"), 0), (True, "1")]
]
WRONG += [("cross_entropy", {"label_smoothing": s}) for s in (-0.1, 1)]
WRONG += [("huber", {"delta": d}) for d in (0, -1, "1")]
WRONG += [("pinball", {"quantiles": q}) for q in ([], [0.1, 0.9], [0.9, 0.5], [0, 0.5], [0.1, 0.5, 0.9])]
WRONG += [("multi_scale", {"scales": s}) for s in (0, 1.5)]
WRONG += [("angle", {"positions": p}) for p in (2, 3.0, True)]
WRONG += [("attention_mse", {"heads": "all"}), ("attention_kl", {"heads": 2})]
WRONG += [("value_relation", {"heads": h}) for h in (0, 3, 1.0)]
WRONG += [("value_relation", {"of": of}) for of in ("value", [], ["values"], ["key", "key"])]


@pytest.mark.parametrize(("name", "options"), WRONG, ids=str)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(RecipeError) as caught:
        resolve(OBJECTIVES, name)(*inputs(name, {}), **options)
    assert next(iter(options)) in str(caught.value)
