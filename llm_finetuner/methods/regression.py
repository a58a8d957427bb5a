"""Learn numbers from the truth, from what a teacher answers, and from its hidden states."""

from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term


def regression_distillation(
    *,
    alpha: float = 0.3,
    beta: float = 0.5,
    gamma: float = 0.2,
    feature_layers: str | list | None = None,
    temperature: float | str | None = None,
) -> Scheme:
    """alpha x squared error to the truth + beta x that to the teacher + gamma x that between hidden states.

    Where every row has targets only the mixture of truth and teacher matters (objectives/series.py); rows without
    targets are heard from the teacher alone. Hidden states are compared at matched blocks through learned projections,
    their error over the teacher's mean square (hidden_nmse). feature_layers: as of feature_distillation. temperature is
    accepted and has no effect: it cancels in a squared error, (s/T - t/T)^2 T^2 = (s - t)^2.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        check_range(name, value, 0, None)
    if temperature is not None:
        check_ramp("temperature", temperature, 0, None)
    return Scheme(
        (
            Term("mse", alpha),
            Term("output_mse", beta),
            Term("hidden_nmse", gamma, layers=feature_layers, projection="identity"),
        )
    )
