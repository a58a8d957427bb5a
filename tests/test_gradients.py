"""Gradients of whole training steps against a float64 reference: one SGD step of `fit` at rate 1 is the gradient."""

import copy
import functools

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from task_steps import gradient_of_step

from llm_finetuner.layer_maps import layer_pairs

V = 64


def sgd(parameters, weight_decay, device):
    return torch.optim.SGD(parameters, lr=1.0)


gradient_of_fit = functools.partial(gradient_of_step, "causal_lm")


def reference(student, teacher, rows, alpha, temperature=1.0, projection=None, pairs=()):
    """The loss as losses.md states it, one row at a time, dense, in float64. Returns gradients and the terms."""
    student = copy.deepcopy(student).train()
    ce, kd, count = 0.0, 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        said = student(ids, output_hidden_states=True)
        counted = labels != -100
        log_p = torch.log_softmax(said.logits[0, :-1], -1)[counted]
        ce = ce - log_p[range(int(counted.sum())), labels[counted]].sum()
        if teacher is not None:
            with torch.no_grad():
                told = teacher.eval()(ids, output_hidden_states=True)
            log_s = torch.log_softmax(said.logits[0, :-1] / temperature, -1)[counted]
            log_t = torch.log_softmax(told.logits[0, :-1] / temperature, -1)[counted]
            kd = kd + temperature**2 * (log_t.exp() * (log_t - log_s)).sum()
        count += int(counted.sum())
    loss = alpha * ce / count + (1 - alpha) * kd / count
    names, weights = zip(*student.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    return (
        dict(zip(names, grads, strict=True)),
        float(ce.detach() / count),
        float(torch.as_tensor(kd).detach() / count),
    )


def assert_close(got, want, tolerance=1e-9):
    scale = max(g.abs().max() for g in want.values() if g is not None)
    for name, gradient in want.items():
        gradient = torch.zeros_like(got[name]) if gradient is None else gradient
        assert (got[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.fixture
def models():
    return build_gpt2(V).double(), build_llama(V).double()


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)])
def test_accumulation_does_not_change_the_gradient(tmp_path, models, batch, accumulation):
    rows = prepared_rows(8, V)
    got, record = gradient_of_fit(
        tmp_path, *models, rows, "vanilla_distillation", batch, accumulation, temperature=2.0, alpha=0.3
    )
    want, ce, kd = reference(*models, rows, alpha=0.3, temperature=2.0)
    assert_close(got, want)
    assert record["cross_entropy"] == pytest.approx(ce, rel=1e-9)
    assert record["forward_kl"] == pytest.approx(kd, rel=1e-9)
    assert record["loss"] == pytest.approx(0.3 * ce + 0.7 * kd, rel=1e-9)


@pytest.mark.parametrize("prompt", [0, 1, 2, 4])
def test_masked_labels_count_nowhere(tmp_path, models, prompt):
    rows = prepared_rows(8, V, prompt=prompt)
    got, _ = gradient_of_fit(tmp_path, *models, rows, "vanilla_distillation", temperature=4.0, alpha=0.5)
    assert_close(got, reference(*models, rows, alpha=0.5, temperature=4.0)[0])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 10.0])
def test_pure_distillation_at_any_temperature(tmp_path, models, temperature):
    rows = prepared_rows(8, V)
    got, record = gradient_of_fit(
        tmp_path, *models, rows, "vanilla_distillation", temperature=temperature, alpha=0.0
    )
    want, _, kd = reference(*models, rows, alpha=0.0, temperature=temperature)
    assert_close(got, want)
    assert record["forward_kl"] == pytest.approx(kd, rel=1e-9)
    assert "cross_entropy" not in record  # alpha = 0 never reads the labels


def test_alpha_one_is_plain_fine_tuning(tmp_path, models):
    rows = prepared_rows(8, V)
    got, _ = gradient_of_fit(tmp_path, *models, rows, "vanilla_distillation", alpha=1.0)
    plain, _ = gradient_of_fit(tmp_path, models[0], None, rows, "fine_tuning")
    assert all(torch.equal(got[name], plain[name]) for name in plain)
    assert_close(plain, reference(models[0], None, rows, alpha=1.0)[0])


@pytest.mark.parametrize("method", ["vanilla_distillation", "feature_distillation"])
def test_a_teacher_equal_to_the_student_teaches_nothing(tmp_path, models, method):
    rows = prepared_rows(8, V)
    extra = {"output_weight": 1.0} if method == "feature_distillation" else {}
    got, record = gradient_of_fit(tmp_path, models[0], models[0], rows, method, alpha=0.0, **extra)
    assert max(g.abs().max() for g in got.values()) < 1e-12
    assert abs(record["forward_kl"]) < 1e-14 and abs(record["loss"]) < 1e-14
    assert record["agreement"] == 1.0


def test_padding_does_not_change_the_gradient(tmp_path, models):
    """Rows of one length each, and the same rows with masked padding written into them."""
    rows = prepared_rows(6, V)
    padded = rows.map(
        lambda row: {
            "input_ids": row["input_ids"] + [5] * 9,
            "attention_mask": row["attention_mask"] + [0] * 9,
            "labels": row["labels"] + [-100] * 9,
        }
    )
    got, _ = gradient_of_fit(tmp_path, *models, padded, "vanilla_distillation", alpha=0.5)
    assert_close(got, reference(*models, rows, alpha=0.5, temperature=2.0)[0])


def test_end_of_text_counts_also_when_it_is_the_padding(tmp_path, models):
    """Token 0 is pad and EOS: as a label it is learned, as padding it is not."""
    rows = prepared_rows(6, V).map(
        lambda row: {
            "input_ids": row["input_ids"] + [0],
            "attention_mask": row["attention_mask"] + [1],
            "labels": row["labels"] + [0],
        }
    )
    got, _ = gradient_of_fit(tmp_path, models[0], None, rows, "fine_tuning")
    assert_close(got, reference(models[0], None, rows, alpha=1.0)[0])


def test_feature_distillation_with_other_widths_and_depths(tmp_path, models):
    """hidden_mse through a learned projection, against the same written out by hand."""
    student, teacher = models
    rows = prepared_rows(8, V)
    pairs = layer_pairs(None, 2, 4)
    assert pairs == ((0, 0), (1, 2))
    torch.manual_seed(0)  # as fit does, right before it draws the projections
    weights = {s: torch.nn.Linear(16, 32, bias=False).weight.detach().double() for s, _ in pairs}
    got, record = gradient_of_fit(
        tmp_path, student, teacher, rows, "feature_distillation", alpha=0.3, batch=4, accumulation=2
    )
    copy_ = copy.deepcopy(student).train()
    kept: dict = {}  # the output of each block; hidden_states would give the last one after the final norm
    for at, block in enumerate(copy_.transformer.h):
        block.register_forward_hook(
            lambda m, i, o, at=at: kept.__setitem__(at, o[0] if isinstance(o, tuple) else o)
        )
    ce, feature, count = 0.0, 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        counted = labels != -100
        logits = copy_(ids).logits[0, :-1][counted]
        told = teacher.eval()(ids, output_hidden_states=True).hidden_states
        ce = ce + torch.nn.functional.cross_entropy(logits, labels[counted], reduction="sum")
        for s, t in pairs:
            own = kept[s][0, :-1][counted] @ weights[s].T
            feature = feature + (own - told[t + 1][0, :-1][counted].detach()).square().mean(-1).sum() / len(
                pairs
            )
        count += int(counted.sum())
    loss = 0.3 * ce / count + 0.7 * feature / count
    names, parameters = zip(*copy_.named_parameters(), strict=True)
    want = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    assert record["hidden_mse"] == pytest.approx(float(feature.detach() / count), rel=1e-6)
    assert_close(got, want, tolerance=1e-6)
