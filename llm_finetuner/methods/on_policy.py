"""Learn from the teacher on what the student itself writes."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import OnPolicy, Scheme, Term

DIVERGENCES = (
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "alpha_beta",
    "total_variation",
)  # fmt: skip


def on_policy_distillation(
    *,
    divergence: str = "jsd",
    temperature: float | str = 1.0,
    alpha: float = 0.0,
    share: float = 0.5,
    max_new_tokens: int = 64,
    sampling_temperature: float = 1.0,
    replay: int = 0,
) -> Scheme:
    """alpha x cross-entropy on the data + (1 - alpha) x divergence, GKD (Agarwal et al. 2024, arXiv 2306.13649).

    share: of the examples that the student writes itself (GKD's lambda); the rest come from the data. Its own tokens
    are no ground truth, so cross-entropy counts on the data's rows only. Both sums are divided by all positions of the
    step, its own included: with a share of 1 cross-entropy is 0, whatever alpha is. temperature is that of the loss,
    sampling_temperature that of the writing, above 0: what is written is drawn. replay: samples kept and learned from
    again, DistiLLM's buffer (arXiv 2402.03898); 0 uses each once.
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    if alpha == 1:
        raise RecipeError(
            "alpha=1 asks no teacher, and what the student writes itself is no ground truth",
            "method: fine_tuning",
        )
    check_range("share", share, 0, 1)
    check_range("max_new_tokens", max_new_tokens, 1, None)
    check_range("sampling_temperature", sampling_temperature, 0, None, open_low=True)
    check_range("replay", replay, 0, None)
    if divergence not in DIVERGENCES:
        raise RecipeError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    terms = (Term("cross_entropy", alpha), Term(divergence, 1 - alpha, {"temperature": temperature}))
    return Scheme(terms, on_policy=OnPolicy(share, max_new_tokens, sampling_temperature, replay))
