"""Learn from the teacher's hidden states, and from its answers where output_weight says so."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term

FEATURE_LOSSES = (
    "hidden_mse", "hidden_cosine", "hidden_normalized", "hidden_nmse", "attention_mse", "attention_kl",
    "value_relation", "cka", "embedding_mse",
)  # fmt: skip


def feature_distillation(
    *,
    temperature: float | str = 2.0,
    alpha: float = 0.3,
    feature_layers: str | list | None = None,
    output_weight: float = 0.0,
    feature_loss: str = "hidden_mse",
    projection: str = "linear",
) -> Scheme:
    """alpha x cross-entropy + (1 - alpha) x feature loss over layer pairs + output_weight x T^2 KL(teacher || student).

    feature_layers: student block numbers from 0, [student, teacher] pairs, or a named map (uniform, last, skip,
    first-last); None takes four evenly spaced blocks. projection: how the learned map between unlike widths starts,
    linear or orthogonal. FitNets (arXiv 1412.6550), TinyBERT (1909.10351), MiniLM (2002.10957), PKD (1908.09355).
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    check_range("output_weight", output_weight, 0, None)
    if feature_loss not in FEATURE_LOSSES:
        raise RecipeError(f"feature_loss must be one of {', '.join(FEATURE_LOSSES)}, got {feature_loss!r}")
    if projection not in ("linear", "orthogonal"):
        raise RecipeError(f"projection must be linear or orthogonal, got {projection!r}")
    return Scheme(
        (
            Term("cross_entropy", alpha),
            Term(feature_loss, 1 - alpha, layers=feature_layers, projection=projection),
            Term("forward_kl", output_weight, {"temperature": temperature}),
        )
    )
