"""Learn a series from what came and from what a teacher said would come."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import check_range
from llm_finetuner.scheme import Scheme, Term

AUTO = "auto"
HALF = 0.5


def forecast_distillation(
    *,
    alpha: float = HALF,
    beta: float | str = HALF,
    feature_weight: float = 0.0,
    feature_layers: str | list | None = None,
    relation_weight: float = 0.0,
    spectrum_weight: float = 0.0,
    scale_weight: float = 0.0,
) -> Scheme:
    """alpha x error to the truth + beta x error to the teacher's forecast + what else of the teacher is given a weight.

    Errors are squared, or pinball losses where the student forecasts quantiles. Only beta / alpha matters between the
    two (objectives/series.py); with beta: auto both are chosen on validation, and sum to 1 (share.py). feature_weight:
    hidden states of patches; relation_weight: how the channels of a window lie to each other, by their angles;
    spectrum_weight and scale_weight: TimeDistill's terms (arXiv 2502.15016).
    """
    undecided = beta == AUTO
    if undecided:
        if alpha != HALF:
            raise RecipeError(
                f"alpha={alpha} and beta=auto: of the two only the ratio matters, and auto chooses it",
                "leave alpha out, or give beta as a number",
            )
        beta = HALF
    elif isinstance(beta, str):
        raise RecipeError(f"beta must be a number of at least 0, or {AUTO}, got {beta!r}")
    weights = {
        "alpha": alpha, "beta": beta, "feature_weight": feature_weight, "relation_weight": relation_weight,
        "spectrum_weight": spectrum_weight, "scale_weight": scale_weight,
    }  # fmt: skip
    for name, value in weights.items():
        check_range(name, value, 0, None)
    if not any(weights.values()):
        raise RecipeError(
            f"{', '.join(weights)} are all 0: there is nothing to learn from",
            "alpha: 1 learns from the rows alone, beta: 1 from the teacher alone",
        )
    return Scheme(
        (
            Term("mse", alpha),
            Term("output_mse", beta),
            Term("hidden_mse", feature_weight, layers=feature_layers),
            Term("token_relation", relation_weight, layers="pooled"),
            Term("spectrum", spectrum_weight),
            Term("multi_scale", scale_weight),
        ),
        undecided=undecided,
    )
