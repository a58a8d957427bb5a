"""How far gradients are from those of the loss written out in float64: of the learner, and of whole steps.

The relative error is the largest difference over the largest entry. Letters: N positions, n those of a row,
V vocabulary.
"""

import copy

import torch
from performance_loss import build, learner_of
from performance_models import gpt2, instructions
from performance_step import recipe_of
from performance_worker import Gate
from torch import Tensor, nn

from llm_finetuner.assembly import Parts
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.trainer import fit

TOKENS, VOCABULARY, CHUNK = 96, 50257, 40  # the last chunk is a smaller one
SMALL = {"vocabulary": 3000, "rows": 8}  # of whole steps


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
PLANS = {
    "padded": {},
    "max_tokens": {"max_tokens": 800},
    "packed": {"max_tokens": 800, "packing": True},
}


def relative_errors(gate: Gate, dtype: str) -> None:
    """Facts: {what: its relative error}, the largest as "worst"."""
    gate()
    dtype, errors = getattr(torch, dtype), {}
    for name, temperature, alpha in CASES:
        terms = [Term(name, 1 - alpha, {"temperature": temperature})]
        terms += [Term("cross_entropy", alpha)] if alpha else []
        got = _by_the_learner(Scheme(tuple(terms)), dtype)
        want = _written_out(WRITTEN_OUT[name], temperature, alpha)
        errors[f"loss: {name}, T = {temperature:g}, alpha = {alpha:g}"] = max(map(distance, got, want))
    student, teacher = (gpt2(SMALL["vocabulary"], 2, width) for width in (64, 128))
    rows = instructions(SMALL["rows"], SMALL["vocabulary"])
    want = _of_rows(student, teacher, rows)
    for name, plan in PLANS.items():
        got = _by_a_step(student, teacher, rows, dtype, plan)
        scale = max(g.abs().max() for g in want.values())
        errors[f"step on instructions, {name}"] = max(
            float((got[weight] - g).abs().max() / scale) for weight, g in want.items()
        )
    gate(**errors, worst=max(errors.values()))


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


# ---- the loss


def _by_the_learner(scheme: Scheme, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    student, teacher, batch = _models(dtype)
    learner = learner_of(student, teacher, scheme, CHUNK)
    loss, _ = learner(batch, learner.provider(batch, learner.teacher_want))
    (loss / TOKENS).backward()
    return batch["rows"].grad, student.layer.weight.grad


def _written_out(divergence, temperature: float, alpha: float) -> tuple[Tensor, Tensor]:
    student, teacher, batch = _models(torch.float64)
    own, told = student.layer(batch["rows"]), teacher.layer(batch["teacher_rows"])
    loss_of(own, told, batch["input_ids"], divergence, temperature, alpha).mean().backward()
    return batch["rows"].grad, student.layer.weight.grad


def loss_of(own_NV, told_NV, targets_N, divergence, temperature: float, alpha: float) -> Tensor:
    """alpha CE + (1 - alpha) T^2 divergence: [N]."""
    p, q = (torch.softmax(z / temperature, -1) for z in (told_NV, own_NV))
    answer = nn.functional.cross_entropy(own_NV, targets_N, reduction="none")
    return alpha * answer + (1 - alpha) * temperature**2 * divergence(p, q)


def _models(dtype: torch.dtype):
    """The float32 draws in any dtype, so that float64 is at the same point."""
    student, teacher, batch, _ = build(TOKENS, VOCABULARY)
    for name in ("rows", "teacher_rows"):
        batch[name] = batch[name].detach().to(dtype)
    batch["rows"].requires_grad_()
    return student.to(dtype), teacher.to(dtype), batch


# ---- whole steps


def sgd(parameters, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """At rate 1 it moves every weight by minus its gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


def _by_a_step(student, teacher, rows, dtype: torch.dtype, plan: dict) -> dict[str, Tensor]:
    """The gradient of one step of `fit`, by weight."""
    student, teacher = (copy.deepcopy(model).to(dtype) for model in (student, teacher))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recipe = recipe_of(
        "vanilla_distillation", {"temperature": 2.0, "alpha": 0.5}, steps=1, batch_size=len(rows) // 2,
        gradient_accumulation_steps=2, learning_rate=1.0, max_grad_norm=0, optimizer="performance_exact:sgd", **plan,
    )  # fmt: skip
    fit(recipe, Parts(student=student, teacher=teacher, train=rows, device="cpu"))
    return {name: before[name].double() - p.detach().double() for name, p in student.named_parameters()}


def _of_rows(student, teacher, rows) -> dict[str, Tensor]:
    """The same in float64, one row at a time without padding."""
    student, teacher = (copy.deepcopy(model).double() for model in (student, teacher))
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        at = [t for t in range(ids.shape[1] - 1) if row["labels"][t + 1] != -100]
        with torch.no_grad():
            told = teacher(ids).logits[0, at]
        loss = loss_of(student(ids).logits[0, at], told, ids[0, 1:][at], kl, 2.0, 0.5)
        total, count = total + loss.sum(), count + len(at)
    (total / count).backward()
    return {name: p.grad for name, p in student.named_parameters()}
