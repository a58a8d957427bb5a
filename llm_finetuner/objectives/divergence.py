"""Divergences between the teacher's distribution and the student's."""

import torch
from torch import Tensor

from llm_finetuner.output import at_least_float32


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q): [n, V], [n, V] -> [n]. Where p is 0 the term is 0, also when q is 0 there."""
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0)).sum(-1)


def forward_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) in nats, Hinton et al. 2015 (arXiv 1503.02531): [n, V], [n, V] -> [n]."""
    return temperature**2 * _kl(_log_probs(teacher, temperature), _log_probs(student, temperature))
