"""Log-probabilities over the whole vocabulary from a few tokens of each position: the tail is kept, never dropped.

Shapes: n positions, k listed tokens, V vocabulary.
"""

import torch
from torch import Tensor

LEAST_TAIL = 1e-7  # about what float32 can tell of 1 - sum; above 0, so that every divergence stays finite
LEAST_REST = 1e-12


def spread(ids_nk: Tensor, log_probs_nk: Tensor, vocabulary: int, prior_V: Tensor | None = None) -> Tensor:
    """Dense float32 log-probabilities at temperature 1: [n, k], [n, k] -> [n, V], each row summing to 1.

    The listed tokens keep theirs; the others share what is left over, 1 - sum, in proportion to `prior_V` (a positive
    distribution, such as the teacher's mean over the data; None: evenly). Where the listed ones sum to more than 1,
    by the rounding of who sent them, they are scaled down to 1. An entry of -inf is missing: its id says nothing and
    may be any number from 0 to V - 1. The ids of a position's other entries must differ.
    """
    missing = log_probs_nk == -torch.inf
    log_probs = log_probs_nk.double()
    log_probs = log_probs - log_probs.logsumexp(1, keepdim=True).clamp(min=0)
    tail_n = (1 - log_probs.exp().sum(1)).clamp(min=LEAST_TAIL)
    if prior_V is None:
        log_prior = torch.zeros(1, vocabulary, device=ids_nk.device)
        rest_n = vocabulary - (~missing).sum(1).double()
    else:
        log_prior = prior_V.to(ids_nk.device, torch.float32).log()[None]
        rest_n = 1 - prior_V.to(ids_nk.device, torch.float64)[ids_nk].masked_fill(missing, 0).sum(1)
    # the last column takes the missing ones
    dense = torch.empty(len(ids_nk), vocabulary + 1, device=ids_nk.device)
    dense[:, :vocabulary] = log_prior
    dense += offset(tail_n.log(), rest_n)[:, None]
    places = ids_nk.masked_fill(missing, vocabulary)
    return dense.scatter_(1, places.long(), log_probs.float())[:, :vocabulary]


def offset(log_tail_n: Tensor, rest_n: Tensor) -> Tensor:
    """What a tail's shape is raised by where `rest` of it is not listed: [n] float32."""
    return (log_tail_n - rest_n.clamp(min=LEAST_REST).log()).float()
