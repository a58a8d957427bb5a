"""Probabilities as their logarithms: float32 at least, finite where a probability is 0 or 1.

Shapes: n positions, V columns of the vocabulary, or any others whose last axis is a distribution.
"""

import math

import torch
from torch import Tensor

from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_number

# A token of probability 0 under the distribution in the denominator makes a KL infinite. It counts as one of the
# smallest normal float32: a finite loss, whose gradient still says to leave the token. Nothing else is changed.
LOG_TINY = math.log(torch.finfo(torch.float32).tiny)  # -87.3
MASKED = -1e30  # masks are written as -inf, or as the most negative number of the dtype


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T): [n, V] -> [n, V]; -inf stays. Raises RecipeError for a temperature not above 0."""
    check_number("temperature", temperature, 0)
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def floored(log_p: Tensor) -> Tensor:
    """What a mask ruled out becomes LOG_TINY, with gradient 0."""
    return torch.nn.functional.threshold(log_p, MASKED, LOG_TINY)  # one pass; NaN stays NaN


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q): [..., V], [..., V] -> [...]. Where p is 0 the term is 0; where q alone is 0 it is LOG_TINY there."""
    return (log_p.exp() * (floored(log_p) - floored(log_q))).sum(-1)


def mix(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight p + (1 - weight) q), weight within (0, 1): [..., V], [..., V] -> [..., V]."""
    neither = (log_p == -math.inf) & (log_q == -math.inf)  # logaddexp has NaN for a gradient there
    a = torch.where(neither, 0, log_p) + math.log(weight)
    b = torch.where(neither, 0, log_q) + math.log(1 - weight)
    return torch.where(neither, -math.inf, torch.logaddexp(a, b))
