"""Learn from what the teacher answers."""

from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term


def vanilla_distillation(*, temperature: float | str = 2.0, alpha: float = 0.5) -> Scheme:
    """alpha x cross-entropy + (1 - alpha) x T^2 KL(teacher || student), Hinton et al. 2015 (arXiv 1503.02531).

    alpha weighs the ground truth; much of the literature writes it the other way round. The temperature may change
    over the run: "4..1".
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    return Scheme((Term("cross_entropy", alpha), Term("forward_kl", 1 - alpha, {"temperature": temperature})))
