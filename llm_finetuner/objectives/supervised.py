"""Losses against the ground truth."""

import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the target in nats: [n, V], [n] -> [n]."""
    return F.cross_entropy(at_least_float32(student), targets, reduction="none")
