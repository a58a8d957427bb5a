"""Losses between the relations that a sequence's positions have to one another: widths may differ.

Shapes: N positions that count, Ds and Dt hidden widths, B sequences, L positions of the longest, P chosen ones.
All take [N, Ds], [N, Dt], [N] and return [N]. Pairs and triples are taken within a sequence. Over a sequence the
losses of its positions sum to their number times the mean over its pairs (triples), so nothing depends on how the
batch was made up. A sequence of one position has loss 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.ranges import check_count
from llm_finetuner.sequences import Sequences, distances, inner, unit


def distance(student_hidden: Tensor, teacher_hidden: Tensor, examples: Tensor) -> Tensor:
    """Huber loss of the distances of all pairs, RKD-D of Park et al. 2019 (arXiv 1904.05068): -> [N].

    Distances are divided by their mean over the sequence. A position carries the mean over its pairs.
    """
    groups = Sequences(examples)
    pairs = groups.pairs()
    own, other = (
        _scaled_distances(groups, pairs, student_hidden),
        _scaled_distances(groups, pairs, teacher_hidden),
    )
    return groups.spread(_mean(F.huber_loss(own, other.to(own.dtype), reduction="none"), pairs, (2,)))


def _scaled_distances(groups: Sequences, pairs: Tensor, hidden: Tensor) -> Tensor:
    """[B, L, L] distances over their mean."""
    apart = distances(groups.center(groups.pad(hidden)))
    mean = _mean(apart, pairs, (1, 2))[:, None, None]
    return torch.where(pairs, apart / torch.where(mean > 0, mean, 1), 0)


def angle(student_hidden: Tensor, teacher_hidden: Tensor, examples: Tensor, *, positions: int = 32) -> Tensor:
    """Huber loss of the cosines of the angles of all triples, RKD-A of Park et al. 2019 (arXiv 1904.05068): -> [N].

    Triples grow with the cube and memory with P^2 D, so a sequence gives at most `positions` of its own, evenly
    chosen with both ends. Every position carries its sequence's mean. Raises RecipeError for fewer than 3.
    """
    check_count("positions", positions, 3)
    groups = Sequences(examples)
    k = torch.arange(min(positions, len(groups.places)), device=examples.device)
    count = groups.lengths.clamp(max=positions)[:, None]  # [B, 1]
    chosen = (k * (groups.lengths[:, None] - 1) // (count - 1).clamp(min=1)).clamp(
        max=max(len(groups.places) - 1, 0)
    )
    exists, apart = k < count, k[:, None] != k  # [B, P], [P, P]
    triples = exists[:, :, None, None] & exists[:, None, :, None] & exists[:, None, None, :]
    triples = triples & apart[:, :, None] & apart[:, None, :] & apart  # [B, P, P, P], the vertex first
    own, other = _cosines(groups, student_hidden, chosen), _cosines(groups, teacher_hidden, chosen)
    loss = F.huber_loss(own, other.to(own.dtype), reduction="none")
    return groups.spread(_mean(loss, triples, (1, 2, 3))[:, None])


def _cosines(groups: Sequences, hidden: Tensor, chosen: Tensor) -> Tensor:
    """At vertex j the cosine between the directions to i and to k: [B, P, P, P]; 0 where two are one point."""
    x = groups.pad(hidden)
    x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))  # [B, P, D]
    directions = unit(x[:, None, :, :] - x[:, :, None, :])
    return inner(directions, directions)


def similarity(student_hidden: Tensor, teacher_hidden: Tensor, examples: Tensor) -> Tensor:
    """Squared error of Gram matrices with rows of length 1, Tung and Mori 2019 (arXiv 1907.09682): -> [N].

    The mean goes over all pairs, a position with itself too, as in the paper.
    """
    groups = Sequences(examples)
    own, other = _gram_rows(groups, student_hidden), _gram_rows(groups, teacher_hidden)
    return groups.spread((own - other).square().sum(-1) / groups.lengths[:, None])


def _gram_rows(groups: Sequences, hidden: Tensor) -> Tensor:
    x = groups.pad(hidden)
    return unit(inner(x, x))


def token_relation(student_hidden: Tensor, teacher_hidden: Tensor, examples: Tensor) -> Tensor:
    """Squared error of the cosines of a position with the others of its sequence, averaged over them: -> [N].

    Compare the correlations among instances of CCKD (arXiv 1904.01802).
    """
    groups = Sequences(examples)
    own, other = unit(groups.pad(student_hidden)), unit(groups.pad(teacher_hidden))
    error = (inner(own, own) - inner(other, other)).square()
    return groups.spread(_mean(error, groups.pairs(), (2,)))


def _mean(x: Tensor, where: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over what exists; 0 where nothing does."""
    return torch.where(where, x, 0).sum(dims) / where.sum(dims).clamp(min=1)
