"""The losses between models of different tokenizers against naive float64 references, gradients too."""

import math

import torch

from llm_finetuner.objectives.across import LEAST, fold, span_kl, uld
from llm_finetuner.objectives.divergence import forward_kl


def test_fold_adds_up_probabilities():
    torch.manual_seed(0)
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([2, 0, 2, -1, 4, 2, 1])  # one masked, two beyond, place 3 never reached
    p = logits[:, [0, 1, 2, 4, 5, 6]].softmax(-1)
    naive = torch.stack([p[:, 1], p[:, 5], p[:, 0] + p[:, 2] + p[:, 4], p[:, 3]], -1).log()
    got = fold(logits, places, 5)
    assert torch.allclose(got[:, [0, 1, 2, 4]], naive, atol=1e-14) and (got[:, 3] == LEAST).all()
    weights = torch.randn(5, 4, dtype=torch.float64)
    (a,) = torch.autograd.grad((got[:, [0, 1, 2, 4]] * weights).sum(), logits, retain_graph=True)
    (b,) = torch.autograd.grad((naive * weights).sum(), logits)
    assert torch.allclose(a, b, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: fold(x, places, 5), logits)
    extreme = torch.tensor([[900.0, -900, 0, 0, -900, 0, -math.inf, 0, 0]], requires_grad=True)
    loss = forward_kl(fold(extreme, places, 5), fold(-extreme.detach().nan_to_num(), places, 5))
    assert torch.isfinite(loss).all() and torch.isfinite(torch.autograd.grad(loss.sum(), extreme)[0]).all()


def test_span_kl_compares_two_outcomes():
    log_q = torch.tensor([-0.01, -0.7, -3.0, -30.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.tensor([-0.3, -0.7, -9.0, -0.001], dtype=torch.float64)
    p, q = log_p.exp(), log_q.exp()
    naive = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    got = span_kl(log_q, log_p)
    assert torch.allclose(got, naive, atol=1e-13) and abs(got[1]) < 1e-15
    (a,) = torch.autograd.grad(got.sum(), log_q, retain_graph=True)
    assert torch.allclose(a, torch.autograd.grad(naive.sum(), log_q)[0], rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: span_kl(x, log_p), log_q)
    sure = torch.tensor([0.0, 0.0, -200.0, -1e-9], requires_grad=True)
    loss = span_kl(sure, torch.tensor([0.0, -200.0, 0.0, -math.inf]))
    assert torch.isfinite(loss).all() and torch.isfinite(torch.autograd.grad(loss.sum(), sure)[0]).all()


def test_uld_compares_sorted_probabilities():
    torch.manual_seed(0)
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 9, dtype=torch.float64)
    naive = []
    for z, t in zip(student, teacher, strict=True):
        p = sorted(t.softmax(0).tolist(), reverse=True)
        order = z.argsort(descending=True)
        q = torch.cat([z.softmax(0)[order], torch.zeros(3)])
        naive.append(sum((a - b).abs() for a, b in zip(q, p, strict=True)))
    naive = torch.stack(naive)
    got = uld(student, teacher)
    assert torch.allclose(got, naive, atol=1e-14)
    (a,) = torch.autograd.grad(got.sum(), student, retain_graph=True)
    assert torch.allclose(a, torch.autograd.grad(naive.sum(), student)[0], atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: uld(x, teacher), student)
    assert uld(student, student[:, torch.randperm(6)]).abs().max() < 1e-15
