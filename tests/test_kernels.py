"""The C kernel of cross-entropy and forward KL against the objectives themselves in float64."""

import copy

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from test_gradients import assert_close, gradient_of_fit, sgd  # noqa: F401
from test_gradients import reference as reference_of_fit
from torch import nn

from llm_finetuner import chunks
from llm_finetuner.kernels import response as kernel
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.objectives.supervised import cross_entropy
from llm_finetuner.output import Head, Output
from llm_finetuner.response import over_rows
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.provider import Provider

INF = float("inf")
needs_compiler = pytest.mark.skipif(not kernel.available(), reason="no C compiler on this machine")
pytestmark = needs_compiler


def reference(s, t, targets, places, known, temperature, w_ce, w_kl):
    """Gradient by the logits and the four sums, by autograd through the objectives in float64."""
    s, t = s.double().requires_grad_(), t.double()
    ce = cross_entropy(s, targets)
    kl = torch.where(known, forward_kl(s[:, : t.shape[1]], t, temperature=temperature), 0)
    (gradient,) = torch.autograd.grad(w_ce * ce.sum() + w_kl * kl.sum(), s)
    nll = cross_entropy(t, torch.where(known, places, -100))
    same = (s[:, : t.shape[1]].argmax(-1) == t.argmax(-1)) & known
    return gradient, torch.stack([ce.sum(), kl.sum(), nll.sum(), same.sum()]).detach()


def run(s, t, targets, places, known, temperature, w_ce, w_kl):
    got = s.clone()
    sums = kernel.cross_entropy_and_forward_kl_(
        got, t, targets, places, known, temperature=temperature, w_ce=w_ce, w_kl=w_kl
    )
    return got, sums


def pair(n, V, C, seed=0, spread=4.0):
    made = torch.Generator().manual_seed(seed)
    s, t = torch.randn(n, V, generator=made) * spread, torch.randn(n, C, generator=made) * spread
    return s, t, torch.randint(0, C, (n,), generator=made)


def assert_same(got, want, rel=2e-6):
    (gradient, sums), (true_gradient, true_sums) = got, want
    assert gradient.isfinite().all()
    assert (gradient - true_gradient).norm() <= rel * true_gradient.norm()
    assert torch.allclose(sums, true_sums, rtol=rel, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 3.0, 4.0, 10.0])
@pytest.mark.parametrize(("V", "C"), [(1, 1), (7, 7), (1000, 1000), (1003, 961)])
def test_gradient_and_sums(temperature, V, C):
    s, t, targets = pair(37, V, C)
    known = torch.ones(37, dtype=torch.bool)
    for spread in (1, 30):  # flat, and nearly certain
        given = (spread * s, t * spread, targets, targets, known, temperature, 0.3, 0.7)
        assert_same(run(*given), reference(*given))


@pytest.mark.parametrize("w_ce, w_kl", [(1.0, 0.0), (0.0, 1.0)])
def test_either_term_alone(w_ce, w_kl):
    s, t, targets = pair(9, 300, 300)
    given = (s, t, targets, targets, torch.ones(9, dtype=torch.bool), 2.0, w_ce, w_kl)
    assert_same(run(*given), reference(*given))


def test_what_counts_in_which_term():
    """-100 is in no cross-entropy, a place of -100 in no NLL, an unknown position in nothing of the teacher's."""
    s, t, targets = pair(40, 120, 100)
    places = targets.clone()
    targets[::3], places[::4] = -100, -100
    known = torch.arange(40) % 5 != 0
    given = (s, t, targets, places, known, 2.0, 0.5, 0.5)
    assert_same(run(*given), reference(*given))
    gone = (targets == -100) & ~known
    assert gone.any() and run(*given)[0][gone].abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", [-INF, -1e38])
def test_masked_columns_mean_what_the_objective_says(temperature, masked, value):
    s, t, _ = pair(16, 64, 64)
    targets = torch.full((16,), 60)
    for tensor, name in ((s, "student"), (t, "teacher")):
        if masked in (name, "both"):
            tensor[:, 10:20] = value
    given = (s, t, targets, targets, torch.ones(16, dtype=torch.bool), temperature, 0.5, 0.5)
    assert_same(run(*given), reference(*given))


def test_a_teacher_equal_to_the_student_teaches_nothing():
    s, _, targets = pair(16, 500, 500)
    for temperature in (1.0, 2.0, 3.0):
        known = torch.ones(16, dtype=torch.bool)
        gradient, sums = run(s, s.clone(), targets, targets, known, temperature, 0.0, 1.0)
        assert gradient.abs().max() < 1e-6 and abs(sums[1]) < 1e-5 and sums[3] == 16


def test_logits_that_are_not_numbers_are_not_hidden():
    s, t, targets = pair(4, 50, 50)
    s[2, 7] = float("nan")
    _, sums = run(s, t, targets, targets, torch.ones(4, dtype=torch.bool), 2.0, 0.5, 0.5)
    assert sums[:2].isnan().all()


def test_without_a_teacher():
    s, _, targets = pair(11, 200, 200)
    targets[3] = -100
    gradient, sums = run(s, None, targets, None, None, 1.0, 0.5, 0.0)
    wide = s.double().requires_grad_()
    loss = cross_entropy(wide, targets).sum()
    want = torch.autograd.grad(0.5 * loss, wide)[0]
    assert (gradient - want).norm() <= 2e-6 * want.norm() and sums[0] == pytest.approx(loss.item(), rel=1e-6)


def test_rows_that_are_a_part_of_wider_ones():
    """Strides: the kernel writes into its own columns and nothing beside them."""
    whole, t, targets = pair(8, 90, 80)
    s = whole[:, 5:85]
    beside = whole.clone()
    known = torch.ones(8, dtype=torch.bool)
    want = reference(s.clone(), t, targets, targets, known, 2.0, 0.5, 0.5)
    sums = kernel.cross_entropy_and_forward_kl_(
        s, t, targets, targets, known, temperature=2.0, w_ce=0.5, w_kl=0.5
    )
    assert_same((s, sums), want)
    assert torch.equal(whole[:, :5], beside[:, :5]) and torch.equal(whole[:, 85:], beside[:, 85:])


def test_tokens_beyond_the_columns_are_refused():
    s, t, targets = pair(4, 50, 40)
    known = torch.ones(4, dtype=torch.bool)
    for wrong in (dict(targets=targets + 50), dict(places=targets + 40)):
        ids = {"targets": targets, "places": targets, **wrong}
        with pytest.raises(IndexError, match="vocabulary of"):
            run(s, t, ids["targets"], ids["places"], known, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "broken", ["switched off", "no compiler", "a compiler that fails", "no place to write"]
)
def test_falls_back_by_itself(tmp_path, monkeypatch, broken):
    (tmp_path / "file").write_text("")
    settings = {
        "switched off": {"LLM_FINETUNER_KERNELS": "0"},
        "no compiler": {"CC": "no-such-compiler"},
        "a compiler that fails": {"CC": "false", "XDG_CACHE_HOME": str(tmp_path)},
        "no place to write": {"XDG_CACHE_HOME": str(tmp_path / "file")},
    }
    for name, value in settings[broken].items():
        monkeypatch.setenv(name, value)
    assert kernel.load.__wrapped__() is None


def test_compiled_once_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel.load.__wrapped__() is not None
    (made,) = (tmp_path / "llm_finetuner").iterdir()
    monkeypatch.setattr(kernel, "_compile", None)
    assert kernel.load.__wrapped__() is not None and list((tmp_path / "llm_finetuner").iterdir()) == [made]


@pytest.mark.parametrize("options", [{"temperature": 2.0, "alpha": 0.3}, {"temperature": 3.0, "alpha": 0.0}])
def test_a_run_in_float32_has_the_gradient_of_the_reference(tmp_path, monkeypatch, options):
    """One optimizer step of vanilla distillation through the kernel, and through autograd, in float32."""
    calls: list[int] = []
    real = kernel.cross_entropy_and_forward_kl_
    monkeypatch.setattr(
        kernel, "cross_entropy_and_forward_kl_", lambda *args, **kw: calls.append(1) or real(*args, **kw)
    )
    student, teacher = build_gpt2(64), build_llama(64)
    rows = prepared_rows(8, 64)
    want, ce, kd = reference_of_fit(
        copy.deepcopy(student).double(), copy.deepcopy(teacher).double(), rows, **options
    )
    for available in (True, False):
        monkeypatch.setattr(kernel, "available", lambda answer=available: answer)
        calls.clear()
        got, record = gradient_of_fit(
            tmp_path, copy.deepcopy(student), teacher, rows, "vanilla_distillation", **options
        )
        assert bool(calls) == available
        assert_close(got, want, 1e-5)
        assert record["forward_kl"] == pytest.approx(kd, rel=1e-5)
        assert options["alpha"] == 0 or record["cross_entropy"] == pytest.approx(ce, rel=1e-5)
        assert record["teacher_nll"] > 0 and 0 <= record["agreement"] <= 1


def linear_task(rows, head, targets):
    """Output of a student whose trunk is given: the rows and the head are what trains."""
    return Output(rows=rows, head=Head(head), targets=targets)


def answer(logits):
    return Output(rows=torch.arange(len(logits)), head=lambda at: logits[at])


KD = [Term("cross_entropy", 0.3), Term("forward_kl", 0.7, {"temperature": 2.0})]


@pytest.mark.parametrize("adapter", [False, True])
def test_half_precision_loses_nothing_by_chunks(monkeypatch, adapter):
    """Gradients of a bfloat16 head in one chunk and in 64, against float64 from the same bfloat16 weights."""
    torch.manual_seed(0)
    rows, t, targets = torch.randn(512, 16), torch.randn(512, 50) * 3, torch.randint(0, 50, (512,))
    layer = nn.Linear(16, 50, bias=True)
    head = nn.Sequential(layer) if adapter else layer  # anything but a plain layer goes through autograd
    wide = copy.deepcopy(head).bfloat16().double()
    exact = rows.bfloat16().double().requires_grad_()
    total, _ = over_rows(linear_task(exact, wide, targets), answer(t.double()), Provider(), KD)
    want = torch.autograd.grad(total / 1003, [exact, *wide.parameters()])
    for size in (512, 8):
        monkeypatch.setattr(chunks, "LOGITS_A_CHUNK", size * 50)
        half, own = copy.deepcopy(head).bfloat16(), rows.bfloat16().requires_grad_()
        total, _ = over_rows(linear_task(own, half, targets), answer(t), Provider(), KD)
        got = torch.autograd.grad(total / 1003, [own, *half.parameters()])
        for one, other in zip(got, want, strict=True):
            assert one.dtype == torch.bfloat16 and (one - other).norm() < 0.005 * other.norm()


def test_a_head_of_another_shape_or_layout():
    torch.manual_seed(0)
    rows, layer, targets = torch.randn(6, 8, requires_grad=True), nn.Linear(8, 40), torch.randint(0, 40, (6,))
    t = torch.randn(6, 40)
    for wrong in (torch.randn(6, 70), torch.randn(6, 30), torch.randn(3, 40)):
        said = Output(rows=torch.arange(6), head=lambda _, wrong=wrong: wrong)
        with pytest.raises(AssertionError, match="answers, not"):
            over_rows(linear_task(rows, layer, targets), said, Provider(), KD)
    right, _ = over_rows(linear_task(rows, layer, targets), answer(t), Provider(), KD)
    turned, _ = over_rows(
        linear_task(rows, layer, targets),
        Output(rows=rows, head=lambda _: t.t().contiguous().t()),
        Provider(),
        KD,
    )
    assert right == turned
    with pytest.raises(AssertionError):
        odd = Output(rows=torch.arange(6), head=lambda at: t[at], known=torch.ones(6, dtype=torch.long))
        over_rows(linear_task(rows, layer, targets), odd, Provider(), KD)


@pytest.mark.parametrize("available", [True, False])
def test_a_term_that_has_faded_to_0_may_be_infinite(monkeypatch, available):
    monkeypatch.setattr(kernel, "available", lambda: available)
    torch.manual_seed(0)
    rows, layer = torch.randn(6, 8, requires_grad=True), nn.Linear(8, 40)
    layer.bias.data[3] = -INF
    targets = torch.full((6,), 3)
    t = torch.randn(6, 40)
    t[:, 3] = -INF
    for terms in ([Term("cross_entropy", 0.0), KD[1]], [Term("cross_entropy", 0.0)]):
        total, sums = over_rows(linear_task(rows, layer, targets), answer(t), Provider(), terms)
        (gradient,) = torch.autograd.grad(total, rows)
        assert total.isfinite() and gradient.isfinite().all() and sums["cross_entropy"][0] == INF
        assert bool(gradient.any()) == (len(terms) == 2)
