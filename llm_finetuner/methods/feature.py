"""Learn from the teacher's hidden states, and from its answers where output_weight says so."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Term, check_range

FEATURE_LOSSES = ("hidden_mse", "hidden_cosine")


def feature_distillation(
    *,
    temperature: float = 2.0,
    alpha: float = 0.3,
    feature_layers: list | None = None,
    output_weight: float = 0.0,
    feature_loss: str = "hidden_mse",
) -> tuple[Term, ...]:
    """alpha x cross-entropy + (1 - alpha) x feature loss over layer pairs + output_weight x T^2 KL(teacher || student).

    feature_layers: student block numbers from 0, or [student, teacher] pairs; None takes four evenly spaced blocks.
    FitNets (arXiv 1412.6550) with a learned linear projection where widths differ.
    """
    check_range("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    check_range("output_weight", output_weight, 0, None)
    if feature_loss not in FEATURE_LOSSES:
        raise RecipeError(f"feature_loss must be one of {', '.join(FEATURE_LOSSES)}, got {feature_loss!r}")
    return (
        Term("cross_entropy", alpha),
        Term(feature_loss, 1 - alpha, layers=feature_layers),
        Term("forward_kl", output_weight, {"temperature": float(temperature)}),
    )
