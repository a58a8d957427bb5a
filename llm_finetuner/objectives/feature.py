"""Losses between hidden states of one pair of blocks."""

import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32


def hidden_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over the width, FitNets (arXiv 1412.6550): [N, D], [N, D] -> [N]."""
    return (at_least_float32(student_features) - at_least_float32(teacher_features)).square().mean(-1)


def hidden_cosine(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 - cosine, DistilBERT (arXiv 1910.01108): [N, D], [N, D] -> [N]."""
    return 1 - F.cosine_similarity(
        at_least_float32(student_features), at_least_float32(teacher_features), dim=-1
    )
