"""Losses between hidden states of one pair of blocks, or between embeddings.

Shapes: N positions that count, D hidden width, Ds and Dt the student's and the teacher's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32
from llm_finetuner.sequences import Sequences, inner, unit


def hidden_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over the width, FitNets (arXiv 1412.6550): [N, D], [N, D] -> [N]."""
    return (at_least_float32(student_features) - at_least_float32(teacher_features)).square().mean(-1)


def hidden_cosine(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 - cosine, DistilBERT (arXiv 1910.01108): [N, D], [N, D] -> [N]."""
    return 1 - F.cosine_similarity(
        at_least_float32(student_features), at_least_float32(teacher_features), dim=-1
    )


def hidden_normalized(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared distance of the states brought to length 1, Patient KD (arXiv 1908.09355): [N, D], [N, D] -> [N].

    Within [0, 4]: twice hidden_cosine, without its cancellation near 0.
    """
    own, other = unit(at_least_float32(student_features)), unit(at_least_float32(teacher_features))
    return (own - other).square().sum(-1)


def hidden_nmse(student_features: Tensor, teacher_features: Tensor, examples: Tensor) -> Tensor:
    """Squared error over the mean square of the teacher's states in that sequence: [N, D], [N, D], [N] -> [N].

    So it is the same for states of any size, and hangs on no other sequence of the batch. Complex states are compared
    as pairs of real numbers.
    """
    own, other = at_least_float32(student_features), at_least_float32(teacher_features)
    sizes = other.new_zeros(int(examples.max()) + 1 if len(examples) else 0)
    counts = sizes.index_add(0, examples, torch.ones_like(other[:, 0]))
    power = sizes.index_add(0, examples, other.square().mean(-1)) / counts.clamp(min=1)
    return (own - other).square().mean(-1) / power.clamp(min=torch.finfo(other.dtype).tiny)[examples]


def embedding_mse(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Mean squared error over the width, TinyBERT (arXiv 1909.10351): [N, D], [N, D] -> [N]."""
    return (at_least_float32(student_embeddings) - at_least_float32(teacher_embeddings)).square().mean(-1)


def cka(student_hidden: Tensor, teacher_hidden: Tensor, examples: Tensor) -> Tensor:
    """1 - linear CKA (arXiv 1905.00414) of each sequence, its positions as samples: [N, Ds], [N, Dt], [N] -> [N].

    Every position carries its sequence's value, within [0, 1]. Blind to rotations and to scale, so no projection is
    needed. A sequence whose states do not vary (one position) has loss 0. Known weakness: with fewer positions than
    the width CKA is close to 1 for unrelated states too; with two it is 1.
    """
    groups = Sequences(examples)
    own, own_varies = _normed_gram(groups, student_hidden)
    other, other_varies = _normed_gram(groups, teacher_hidden)
    loss = 1 - (own * other).sum((1, 2))
    return groups.spread(torch.where(own_varies & other_varies, loss, 0)[:, None])


def _normed_gram(groups: Sequences, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices of Frobenius norm 1 of the centred positions [B, L, L], and which sequences vary at all [B]."""
    x = groups.pad(hidden)
    centered = groups.center(x)
    size, spread = x.square().sum((1, 2)), centered.square().sum((1, 2))
    varies = spread > (32 * torch.finfo(x.dtype).eps) ** 2 * size  # what is below is rounding of the mean
    centered = centered * torch.where(varies, spread, 1).rsqrt()[:, None, None]
    gram = inner(centered, centered)
    return gram * torch.where(varies, gram.square().sum((1, 2)), 1).rsqrt()[:, None, None], varies
