"""Learn together: students that teach each other, or a teacher that is trained beside the student."""

from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term


def online_distillation(*, temperature: float | str = 2.0, alpha: float = 0.5, mutual: bool = True) -> Scheme:
    """alpha x cross-entropy + (1 - alpha) x T^2 KL(peer || own), for every model of the group, the mean over its peers.

    The recipe's teacher (or teachers) are the peers and are trained too. Deep Mutual Learning, Zhang et al. 2018
    (arXiv 1706.00384). mutual=False: the peers learn from the data alone, as a teacher trained beside its student.
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    terms = (Term("cross_entropy", alpha), Term("forward_kl", 1 - alpha, {"temperature": temperature}))
    return Scheme(terms, teacher="peers", peer_terms=terms if mutual else (Term("cross_entropy"),))
