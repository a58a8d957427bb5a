"""Divergences between the teacher's distribution and the student's.

Shapes: n positions, V columns of the vocabulary. p is the teacher's distribution and q the student's, both of
softmax(z / T). Every loss has the factor T^2. Columns of -inf on both sides are as if they did not exist; a token
that the denominator alone rules out counts as `log_space.LOG_TINY`. All raise RecipeError for options out of range.
"""

import math

import torch
from torch import Tensor

from llm_finetuner.log_space import floored, kl, log_probs
from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_number


def forward_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) in nats, Hinton et al. 2015 (arXiv 1503.02531): [n, V], [n, V] -> [n]."""
    return kl(log_probs(teacher, temperature), log_probs(student, temperature)) * temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(student || teacher) in nats, MiniLLM (arXiv 2306.08543): [n, V], [n, V] -> [n].

    Seeks the teacher's modes. A teacher with zeros (sampled, sparse) makes it large wherever the student is not zero.
    """
    return kl(log_probs(student, temperature), log_probs(teacher, temperature)) * temperature**2


def adaptive_kl(
    student: Tensor, teacher: Tensor, *, head_mass: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """T^2 (w KL(teacher || student) + (1 - w) KL(student || teacher)), AKL (arXiv 2404.02657): [n, V], [n, V] -> [n].

    w is the share of the gap |p - q| that lies in the teacher's head: its most probable tokens, the fewest whose
    probabilities reach `head_mass`. Forward KL fits the head first and reverse KL the tail. w is a constant for the
    gradient. Known weakness: it sorts the vocabulary, which takes several times as long as the two KLs on a CPU.
    """
    check_number("head_mass", head_mass, 0, 1)
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    p, order = log_p.detach().exp().sort(dim=-1, descending=True, stable=True)
    gap = (p - log_q.detach().exp().gather(-1, order)).abs()
    in_head = p.cumsum(-1) - p < head_mass  # the mass of those before it
    total = gap.sum(-1)
    head = torch.where(in_head, gap, 0).sum(-1)
    w = torch.where(total > 0, head / torch.where(total > 0, total, 1), 0.5)
    return temperature**2 * (w * kl(log_p, log_q) + (1 - w) * kl(log_q, log_p))


def alpha_beta(
    student: Tensor, teacher: Tensor, *, a: float = 0.2, b: float = 0.7, temperature: float = 1.0
) -> Tensor:
    """T^2 times the alpha-beta divergence of teacher and student, ABKD (arXiv 2505.04560): [n, V], [n, V] -> [n].

    1/(a b) sum(a/(a+b) p^(a+b) + b/(a+b) q^(a+b) - p^a q^b), or its limit where a or b is 0: (1, 0) is forward KL,
    (0, 1) is reverse KL, (0, 0) is half the sum of the squared log ratios over the vocabulary, which is large. The
    defaults are the paper's for language models. Negative ones, thus a + b = 0 other than (0, 0), are refused:
    a probability of 0 makes them infinite. So are those in (0, 0.01), where the subtraction loses float32's digits.
    """
    for option, value in (("a", a), ("b", b)):
        if value != 0:
            zero = (
                f"0 is allowed, as the limit; {option} < 0 and a + b = 0 are infinite at a probability of 0"
            )
            check_number(f"{option} of alpha_beta", value, 0.01, closed=True, hint=zero)
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    if a == 0 and b == 0:
        loss = _half_squared_log_ratio(log_p, log_q)
    elif b == 0:
        loss = _power_kl(log_p, log_q, a)
    elif a == 0:
        loss = _power_kl(log_q, log_p, b)
    else:
        loss = _alpha_beta(log_p, log_q, a, b)
    return temperature**2 * loss


def _alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """The general case. Every term is written so that it is at least 0 and nothing large is subtracted:

    m^c (w/c expm1(-c d) - expm1(-w d)) with c = a + b, m the larger of p and q, d = |log p - log q|, and w = a where
    q is the larger one, else b.
    """
    neither = (log_p == -math.inf) & (log_q == -math.inf)
    gap = torch.where(neither, 0, log_q - log_p)
    w, d = torch.where(gap > 0, gap.new_tensor(a), b), gap.abs()
    terms = w / (a + b) * torch.expm1(-(a + b) * d) - torch.expm1(-w * d)
    return (((a + b) * torch.maximum(log_p, log_q)).exp() * terms).sum(-1) / (a * b)


def _power_kl(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """sum(p^k log(p^k / q^k) - p^k + q^k) / k^2."""
    log_p, log_q = power * log_p, power * log_q
    return (kl(log_p, log_q) + (log_q.exp() - log_p.exp()).sum(-1)) / power**2


def _half_squared_log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (floored(log_p) - floored(log_q)).square().sum(-1) / 2


def total_variation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 times half the sum of |p - q|, within [0, T^2]: [n, V], [n, V] -> [n]. Used by f-DISTILL (arXiv 2307.15190).

    Its gradient fades with 1/T alone, not 1/T^2, so the common factor makes it grow with T.
    """
    p, q = log_probs(teacher, temperature).exp(), log_probs(student, temperature).exp()
    return temperature**2 * (p - q).abs().sum(-1) / 2


def logit_mse(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over the vocabulary of the squared difference of the logits, arXiv 2105.08919: [n, V], [n, V] -> [n].

    Softmax leaves a constant a position free, so both sides are centred over the columns first: otherwise the loss
    would ask the student for the teacher's constant, which no cache or endpoint of log-probabilities keeps. Columns
    of -inf on either side are left out. The temperature cancels: T^2 times the squared error of z / T.
    """
    check_number("temperature", temperature, 0)
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    both = (student > -math.inf) & (teacher > -math.inf)
    count = both.sum(-1, keepdim=True).clamp(min=1)
    gap = torch.where(both, student, 0) - torch.where(both, teacher, 0)
    gap = torch.where(both, gap - gap.sum(-1, keepdim=True) / count, 0)  # the difference of the centred ones
    return gap.square().sum(-1) / count.squeeze(-1)
