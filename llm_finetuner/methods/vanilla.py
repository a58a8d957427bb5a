"""Learn from what the teacher answers."""

from llm_finetuner.recipe import Term, check_range


def vanilla_distillation(*, temperature: float = 2.0, alpha: float = 0.5) -> tuple[Term, ...]:
    """alpha x cross-entropy + (1 - alpha) x T^2 KL(teacher || student), Hinton et al. 2015 (arXiv 1503.02531).

    alpha weighs the ground truth; much of the literature writes it the other way round.
    """
    check_range("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    return (
        Term("cross_entropy", alpha),
        Term("forward_kl", 1 - alpha, {"temperature": float(temperature)}),
    )
