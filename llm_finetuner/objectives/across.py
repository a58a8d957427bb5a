"""Losses between models of different tokenizers.

Shapes: n positions, V, Vs, Vt columns of logits, G places that the tokens of both are brought to, S spans of text.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_finetuner.output import at_least_float32

LEAST = math.log(1e-6)  # of a place that one of the two can never reach: the other's divergence stays finite


def fold(logits_nV: Tensor, places_V: Tensor, count: int) -> Tensor:
    """Log-probabilities at temperature 1, added up by place: [n, V or more], [V] -> [n, G], G = count.

    Columns of place -1 (and those beyond V) name no token and are masked. A place without columns says LEAST.
    The sums are formed in log space; nothing is renormalised.
    """
    named = (places_V >= 0).nonzero()[:, 0]
    log_p = torch.log_softmax(at_least_float32(logits_nV)[:, named], dim=-1)
    places = places_V[named].expand(len(log_p), -1)
    lowest = torch.finfo(log_p.dtype).min
    peak = log_p.new_full((len(log_p), count), -torch.inf).scatter_reduce(1, places, log_p.detach(), "amax")
    peak = peak.clamp(min=lowest)
    mass = torch.zeros_like(peak).scatter_add(1, places, (log_p - peak.gather(1, places)).exp())
    folded = mass.clamp(min=torch.finfo(log_p.dtype).tiny).log() + peak
    reached = torch.bincount(places_V[named], minlength=count) > 0
    return torch.where(reached, folded, LEAST)


def span_kl(student_spans: Tensor, teacher_spans: Tensor) -> Tensor:
    """KL between two outcomes, this text or another: log-probabilities of spans [S], [S] -> [S], in nats.

    The probability of a span is the product of those of its tokens, so that "hello" has one whether it is written as
    one token or as three. A product of probabilities at temperature 1 has no other temperature. After ALM, Minixhofer
    et al. 2025 (arXiv 2503.20083).
    """
    log_p, log_q = at_least_float32(teacher_spans), at_least_float32(student_spans)
    this = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0)
    return this - torch.expm1(log_p) * (_log_other(log_p) - _log_other(log_q))


def _log_other(log_p: Tensor) -> Tensor:
    """log(1 - p), finite for p = 1 too."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return torch.where(
        log_p > -math.log(2),
        (-torch.expm1(log_p.clamp(min=-math.log(2)))).log(),
        torch.log1p(-log_p.clamp(max=-math.log(2)).exp()),
    )


def uld(student: Tensor, teacher: Tensor) -> Tensor:
    """L1 distance of the sorted probabilities, ULD, Boizard et al. 2024 (arXiv 2402.12030): [n, Vs], [n, Vt] -> [n].

    The shorter one is filled up with zeros. It compares how sure the two are, not of what: a weak signal beside the
    spans, of use where vocabularies have next to nothing in common. Published without a temperature.
    """
    p, q = (torch.softmax(at_least_float32(x), -1).sort(-1, descending=True)[0] for x in (teacher, student))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(x, (0, width - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(-1)
