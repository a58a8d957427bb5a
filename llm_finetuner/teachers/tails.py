"""What all records of a cache share, fitted once to a sample: shapes of tails, levels of log-probabilities.

A teacher's tail is far from even, and far from the mean of its distributions too: the tail after a verb is not the tail
after a number. A few shapes, one of them named in each record, take most of that error away and cost 6 bits a token.

Shapes: n positions, k listed tokens, V vocabulary, L levels, C shapes of tails.
"""

import torch
from torch import Tensor

from llm_finetuner.teachers.codec import TopK, best, normalised, tail_costs

SHAPES = 64
POSITIONS_A_SHAPE = 24  # at least
ROUNDS = 10
PRIOR = 0.02  # weight of the mean tail in each shape, as a share of the mass that chose it
EVEN = 0.01  # weight of the even distribution in each shape
BINS = 4096


def fit(log_probs_nV: Tensor, k: int) -> TopK:
    """A codec for distributions like these."""
    ids, listed, tails = best(log_probs_nV.float(), k)
    count = 2 ** min(SHAPES.bit_length() - 1, max(0, (len(ids) // POSITIONS_A_SHAPE).bit_length() - 1))
    log_shapes = fit_shapes(tails, ids, count).log().half().float()  # as it is stored
    levels = fit_levels(listed, TopK.levels_for(k, tails.shape[1], count))
    return TopK(k, tails.shape[1], levels, log_shapes)


def fit_shapes(tails_nV: Tensor, ids_nk: Tensor, count: int) -> Tensor:
    """Clusters of tails under the Kullback-Leibler divergence: [C, V], positive rows that sum to 1.

    Each is the distribution whose part outside of the listed tokens fits best; what it holds on a token where that is
    listed is filled in by its own expectation (EM), or tokens that are often listed would come out too small.
    """
    vocabulary = tails_nV.shape[1]
    mean_V = _to_shape(tails_nV.sum(0), torch.full_like(tails_nV[0], 1 / vocabulary))
    at = torch.arange(count, device=tails_nV.device) * len(tails_nV) // count
    shapes = torch.stack([_to_shape(tail / tail.sum().clamp(min=1e-12), mean_V) for tail in tails_nV[at]])
    shapes = (shapes + mean_V) / 2
    mass = tails_nV.sum(1)
    for _ in range(ROUNDS):
        near = tail_costs(tails_nV, ids_nk, shapes.log(), shapes.T.contiguous()).argmin(1)
        held = shapes[near[:, None], ids_nk]
        unseen = held * (mass / (1 - held.sum(1)).clamp(min=1e-6))[:, None]
        sums = torch.zeros_like(shapes).index_add_(0, near, tails_nV)
        sums.view(-1).index_add_(0, (near[:, None] * vocabulary + ids_nk).flatten(), unseen.flatten())
        shapes = torch.stack([_to_shape(row, mean_V) for row in sums])
    return shapes


def _to_shape(sums_V: Tensor, mean_V: Tensor) -> Tensor:
    smooth = sums_V + (PRIOR * sums_V.sum() + 1e-3) * mean_V
    return (1 - EVEN) * smooth / smooth.sum() + EVEN / len(sums_V)


def fit_levels(listed_nk: Tensor, count: int) -> Tensor:
    """Lloyd's quantiser (1982) for normalised log-probabilities, errors weighted by probability: [L] ascending."""
    x, span, _ = normalised(listed_nk)
    weight = (listed_nk.exp() * span.square()).double()
    bins = (x * (BINS - 1)).round().long().flatten()
    mass = torch.zeros(BINS, dtype=torch.float64, device=x.device).index_add_(0, bins, weight.flatten())
    mass += 1e-6 * mass.sum() / BINS
    centres = torch.linspace(0, 1, BINS, dtype=torch.float64, device=x.device)
    density = mass.pow(1 / 3).cumsum(0)  # where the best levels lie if they are many (Panter and Dite 1951)
    wanted = (torch.arange(count, device=x.device) + 0.5) / count * density[-1]
    levels = centres[torch.searchsorted(density, wanted).clamp(max=BINS - 1)]
    for _ in range(50):
        levels[-1] = 1.0  # the best token is where most of the mass is
        cell = torch.bucketize(centres, (levels[1:] + levels[:-1]) / 2)
        total = torch.zeros_like(levels).index_add_(0, cell, mass)
        moved = torch.zeros_like(levels).index_add_(0, cell, mass * centres) / total.clamp(min=1e-300)
        levels = torch.where(total > 0, moved, levels)
    levels[-1] = 1.0
    return levels.sort().values.float()
