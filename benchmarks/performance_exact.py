"""How far gradients are from those of the loss written out in float64: of the learner, and of whole steps.

The relative error is the largest difference over the largest entry. Letters: N positions, V vocabulary.
"""

import torch
from performance_loss import build, learner_of
from performance_worker import Gate
from torch import Tensor

from llm_finetuner.scheme import Scheme, Term

TOKENS, VOCABULARY, CHUNK = 192, 50257, 80  # the last chunk is a smaller one


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


# each over p, the teacher's distribution, and q, the student's: [N, V] -> [N]
WRITTEN_OUT = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "skew_forward_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.1 * q + 0.9 * p),
}
CASES = [("forward_kl", t, a) for t, a in ((2.0, 0.5), (1.0, 0.5), (1.7, 0.5), (4.0, 0.0))]
CASES += [(name, 2.0, 0.5) for name in WRITTEN_OUT if name != "forward_kl"]


def gradients(gate: Gate, dtype: str) -> None:
    """Of the hidden states and the head, over objectives and temperatures: facts {case: error}, {"worst": error}."""
    gate()
    errors = {}
    for name, temperature, alpha in CASES:
        terms = [Term(name, 1 - alpha, {"temperature": temperature})]
        terms += [Term("cross_entropy", alpha)] if alpha else []
        got = _ours(Scheme(tuple(terms)), getattr(torch, dtype))
        want = _written_out(WRITTEN_OUT[name], temperature, alpha)
        errors[f"{name}, T = {temperature:g}, alpha = {alpha:g}"] = max(map(distance, got, want))
    gate(**errors, worst=max(errors.values()))


def _ours(scheme: Scheme, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    student, teacher, batch, _ = _models(dtype)
    learner = learner_of(student, teacher, scheme, CHUNK)
    loss, _ = learner(batch, learner.provider(batch, learner.teacher_want))
    (loss / TOKENS).backward()
    return batch["rows"].grad, student.layer.weight.grad


def _written_out(divergence, temperature: float, alpha: float) -> tuple[Tensor, Tensor]:
    student, teacher, batch, _ = _models(torch.float64)
    own = student.layer(batch["rows"])
    q, p = (torch.softmax(z / temperature, -1) for z in (own, teacher.layer(batch["teacher_rows"])))
    answer = torch.nn.functional.cross_entropy(own, batch["input_ids"])
    loss = alpha * answer + (1 - alpha) * temperature**2 * divergence(p, q).mean()
    loss.backward()
    return batch["rows"].grad, student.layer.weight.grad


def _models(dtype: torch.dtype):
    """The float32 draws in any dtype, so that float64 is the same point."""
    student, teacher, batch, gradients = build(TOKENS, VOCABULARY)
    with torch.no_grad():
        for name in ("rows", "teacher_rows"):
            batch[name] = batch[name].detach().to(dtype)
    batch["rows"].requires_grad_()
    return student.to(dtype), teacher.to(dtype), batch, gradients


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())
