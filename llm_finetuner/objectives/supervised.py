"""Losses against the ground truth.

Shapes: n positions, V columns of the vocabulary, D numbers a position.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_number


def cross_entropy(student: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of the target in nats: [n, V], [n] -> [n]; 0 where the target is -100, not known.

    label_smoothing is the share of the target that is spread evenly over the vocabulary (arXiv 1512.00567), less
    columns of -inf. Raises RecipeError for a share outside [0, 1).
    """
    return weighted_cross_entropy(student, targets, None, label_smoothing=label_smoothing)


def weighted_cross_entropy(
    student: Tensor, targets: Tensor, weights: Tensor | None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The same with a weight for each column [V]: - sum over c of w_c q_c log p_c, q the target, smoothed or not.

    As torch defines it for both together.
    """
    check_number("label_smoothing", label_smoothing, 0, 1, closed=True)
    logits = at_least_float32(student)
    weights = None if weights is None else weights.to(logits)
    loss = F.cross_entropy(logits, targets, weights, reduction="none")
    if label_smoothing == 0:
        return loss
    log_p, known = logits.log_softmax(-1), logits > -math.inf
    log_p = log_p if weights is None else log_p * weights
    even = -torch.where(known, log_p, 0).sum(-1) / known.sum(-1)
    return (1 - label_smoothing) * loss + label_smoothing * torch.where(targets == -100, 0, even)


def mse(student: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over the numbers of a position: [n, D], [n, D] -> [n]; 0 where a target is NaN, not known."""
    return (at_least_float32(student) - _or_itself(targets, student)).square().mean(-1)


def huber(student: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """Squared error / 2 up to delta, linear beyond, averaged over the numbers of a position: [n, D], [n, D] -> [n].

    0 where a target is NaN, not known. Raises RecipeError for a delta not above 0.
    """
    check_number("delta", delta, 0)
    student = at_least_float32(student)
    wanted = _or_itself(targets, student).to(student.dtype)
    return F.huber_loss(student, wanted, reduction="none", delta=delta).mean(-1)


def _or_itself(targets: Tensor, student: Tensor) -> Tensor:
    """The targets; where a position has none what the student says, so that neither value nor gradient comes of it."""
    known = ~targets.isnan().any(-1, keepdim=True)
    return torch.where(known, at_least_float32(targets), at_least_float32(student.detach()))
