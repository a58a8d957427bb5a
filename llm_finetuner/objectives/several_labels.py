"""Losses where each label is true or false for itself.

Shapes: n texts, C labels. Averaged over the labels, as transformers does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_number


def binary_cross_entropy(student: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood in nats of labels that are 0 or 1, or of their probabilities: [n, C], [n, C] -> [n].

    0 for a text whose labels are not known (all -100). label_smoothing is the share of each target that is spread
    over its two outcomes. Raises RecipeError for a share outside [0, 1).
    """
    return weighted_binary_cross_entropy(student, targets, None, label_smoothing=label_smoothing)


def weighted_binary_cross_entropy(
    student: Tensor, targets: Tensor, weights: Tensor | None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The same with a weight of each label's being on [C]: - w q log p - (1 - q) log(1 - p), q the target, smoothed or
    not, as torch defines it."""
    check_number("label_smoothing", label_smoothing, 0, 1, closed=True)
    logits, known = at_least_float32(student), targets >= 0
    weights = None if weights is None else weights.to(logits)
    aims = torch.where(known, targets, 0).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, aims, reduction="none", pos_weight=weights)
    return torch.where(known, loss, 0).mean(-1)


def binary_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) in nats of each label's two outcomes, sigmoid(z / T): [n, C], [n, C] -> [n].

    The forward KL of Hinton et al. 2015 (arXiv 1503.02531), label by label.
    """
    check_number("temperature", temperature, 0)
    own, other = at_least_float32(student) / temperature, at_least_float32(teacher) / temperature
    yes = other.sigmoid() * (F.logsigmoid(other) - F.logsigmoid(own))
    no = (-other).sigmoid() * (F.logsigmoid(-other) - F.logsigmoid(-own))
    return temperature**2 * (yes + no).mean(-1)
