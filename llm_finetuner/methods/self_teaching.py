"""Learn from oneself: deeper blocks teach early exits, or the moving average of the weights teaches the weights."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term


def self_distillation(
    *,
    temperature: float | str = 2.0,
    alpha: float = 0.5,
    by: str = "exits",
    exits: list[int] | None = None,
    decay: float = 0.999,
) -> Scheme:
    """By exits: cross-entropy at the end; at every exit alpha x cross-entropy + (1 - alpha) x T^2 KL(end || exit).

    exits: block numbers from 0 after which the model can stop; None takes the middle one. Be Your Own Teacher,
    Zhang et al. 2019 (arXiv 1905.08094). By average: alpha x cross-entropy + (1 - alpha) x T^2 KL(average || student),
    the average of the weights over the steps with `decay`; Mean Teacher, Tarvainen and Valpola 2017 (arXiv 1703.01780).
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    check_range("decay", decay, 0, 1)
    terms = (Term("cross_entropy", alpha), Term("forward_kl", 1 - alpha, {"temperature": temperature}))
    if by == "average":
        if exits is not None:
            raise RecipeError("exits have no effect with by=average", "leave them out, or take by=exits")
        return Scheme(terms, teacher="average", teacher_options={"decay": decay})
    if exits is not None and (not isinstance(exits, list) or not exits):
        raise RecipeError(
            f"exits must be a list of block numbers, got {exits!r}", "leave it out for the middle one"
        )
    if by != "exits":
        raise RecipeError(f"by must be exits or average, got {by!r}")
    return Scheme((Term("cross_entropy"),), teacher="none", exits=exits or [], exit_terms=terms)
