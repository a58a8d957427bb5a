"""Every loss once more, as its definition says it, for the row-by-row reference of the conformance table.

p is the teacher's distribution and q the student's: [n, V]. Letters: D width, H heads, T tokens.
"""

import conformance_paths  # noqa: F401
import objective_references as naive
import torch
from conformance_step import Loss, said
from torch import Tensor, nn

from llm_finetuner.scheme import Term
from llm_finetuner.terms import kind_of


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def adaptive_kl(p: Tensor, q: Tensor) -> Tensor:
    """The share of |p - q| in the teacher's head, the fewest most probable tokens that hold half of its mass."""
    gap, weights = (p - q).abs().detach(), []
    for row, gaps in zip(p.detach(), gap, strict=True):
        order, mass, head = row.argsort(descending=True, stable=True).tolist(), 0.0, 0.0
        for i in order:
            if mass >= 0.5:
                break
            mass, head = mass + float(row[i]), head + gaps[i]
        weights.append(head / gaps.sum())
    w = torch.stack(weights)
    return w * kl(p, q) + (1 - w) * kl(q, p)


def alpha_beta(p: Tensor, q: Tensor, a: float = 0.2, b: float = 0.7) -> Tensor:
    c = a + b
    return -(p**a * q**b - a / c * p**c - b / c * q**c).sum(-1) / (a * b)


def logit_mse(p: Tensor, q: Tensor) -> Tensor:
    """Of the logits, whose free constant a position is their mean over the vocabulary."""
    gap = p.log() - q.log()
    return (gap - gap.mean(-1, keepdim=True)).square().mean(-1)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    return (p.sort(descending=True).values - q.sort(descending=True).values).abs().sum(-1)


ANSWERS = {  # objectives over two distributions
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "skew_forward_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.1 * q + 0.9 * p),
    "adaptive_kl": adaptive_kl,
    "alpha_beta": alpha_beta,
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "logit_mse": logit_mse,
    "uld": sorted_distance,
}
EXTRA = {"angle": {"positions": 5}}  # options that keep the naive loops short
PAIRS = [[0, 1], [1, 3]]  # student block, teacher block


def heard(model: nn.Module):
    """What a live teacher says: (ids, positions) -> logits [n, V]."""

    def answer(ids: list[int], at: list[int]) -> Tensor:
        with torch.no_grad():
            return said(model.eval(), ids, at).double()

    return answer


def answer_loss(name: str, answer, temperature: float = 1.0, columns: int | None = None) -> Loss:
    """T^2 times the divergence of softmax(z / T) over the first `columns`."""

    def loss(student: nn.Module, ids: list[int], at: list[int]) -> Tensor:
        own, told = said(student, ids, at)[:, :columns], answer(ids, at)[:, :columns]
        q, p = (torch.softmax(z / temperature, -1) for z in (own, told))
        return temperature**2 * ANSWERS[name](p, q).sum()

    return loss


def label_loss(student: nn.Module, ids: list[int], at: list[int]) -> Tensor:
    """Cross-entropy with the tokens that follow."""
    p = torch.softmax(said(student, ids, at), -1)
    return -p[range(len(at)), [ids[t + 1] for t in at]].log().sum()


def pair_loss(name: str, teacher: nn.Module) -> Loss:
    """An objective over what models hold inside, the mean over the pairs of blocks."""
    kind, options = kind_of(Term(name)), EXTRA.get(name, {})
    pairs = [[0, 0]] if kind == "embeddings" else PAIRS

    def loss(student: nn.Module, ids: list[int], at: list[int]) -> Tensor:
        values = []
        for s, t in pairs:
            own = read(student, ids, at, kind, s)
            with torch.no_grad():
                told = read(teacher.eval(), ids, at, kind, t)
            more = [torch.zeros(len(at))] if "examples" in naive.reads(name) else []
            values.append(getattr(naive, name)(own, told, *more, **options).sum())
        return sum(values) / len(pairs)

    return loss


def read(model: nn.Module, ids: list[int], at: list[int], kind: str, block: int):
    """What a term reads of a GPT-2, from the model's own outputs: [n, D], {role: [n, D]} or [n, H, T]."""
    model.set_attn_implementation("eager")
    kept: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, o: kept.append(_first(o))) for layer in model.transformer.h
    ]
    whole = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    if kind == "attention":
        return whole.attentions[block][0].transpose(0, 1)[at]
    before_TD = whole.hidden_states[block][0]  # that of block 0 is what goes into it
    if kind == "embeddings":
        return before_TD[at]
    if kind == "states":
        layer = model.transformer.h[block]
        parts = layer.attn.c_attn(layer.ln_1(before_TD)).split(before_TD.shape[-1], -1)
        return {role: x[at] for role, x in zip(("query", "key", "value"), parts, strict=True)}
    return kept[block][0][at]


def _first(output):
    return output[0] if isinstance(output, tuple) else output
