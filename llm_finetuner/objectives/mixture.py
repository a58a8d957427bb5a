"""Divergences from a mixture of the teacher's distribution and the student's: finite whatever either rules out.

Shapes: n positions, V columns of the vocabulary. p is the teacher's distribution and q the student's, both of
softmax(z / T); mixtures are formed with logsumexp. Every loss has the factor T^2.
"""

from torch import Tensor

from llm_finetuner.log_space import kl, log_probs, mix
from llm_finetuner.ranges import check_number

LIMITS = "the ends are forward_kl and reverse_kl, or nothing at all"


def jsd(student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence, GKD (arXiv 2306.13649), times T^2: [n, V], [n, V] -> [n], in nats.

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. Near 0 it leans to the forward KL
    (jsd / beta tends to KL(p || q)), near 1 to the reverse (jsd / (1 - beta) tends to KL(q || p)), and at both ends
    its size tends to 0. Raises RecipeError for a beta outside (0, 1).
    """
    check_number("beta", beta, 0, 1, hint=LIMITS)
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    log_m = mix(log_p, log_q, beta)
    return temperature**2 * (beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m))


def skew_forward_kl(
    student: Tensor, teacher: Tensor, *, lam: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """T^2 KL(p || lam p + (1 - lam) q) in nats, DistiLLM (arXiv 2402.03898): [n, V], [n, V] -> [n].

    At most T^2 log(1 / lam). Raises RecipeError for a lam outside (0, 1).
    """
    check_number("lam", lam, 0, 1, hint=LIMITS)
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return temperature**2 * kl(log_p, mix(log_p, log_q, lam))


def skew_reverse_kl(
    student: Tensor, teacher: Tensor, *, lam: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """T^2 KL(q || lam q + (1 - lam) p) in nats, DistiLLM (arXiv 2402.03898): [n, V], [n, V] -> [n].

    At most T^2 log(1 / lam). Raises RecipeError for a lam outside (0, 1).
    """
    check_number("lam", lam, 0, 1, hint=LIMITS)
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return temperature**2 * kl(log_q, mix(log_q, log_p, lam))
