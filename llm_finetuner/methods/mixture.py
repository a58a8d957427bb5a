"""Any number of weighted terms, by name."""

from typing import Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.ramp import ends
from llm_finetuner.recipe import check_ramp
from llm_finetuner.registry import OBJECTIVES, unknown
from llm_finetuner.scheme import Scheme, Term

DEFAULT = {"cross_entropy": 0.5, "forward_kl": {"weight": 0.5, "temperature": 2.0}}
OF_TERM = ("weight", "layers", "projection")


def distillation(*, objectives: dict[str, Any] | None = None, layers: str | list | None = None) -> Scheme:
    """The sum of named objectives: {"cross_entropy": 0.5, "skew_forward_kl": {"weight": 0.5, "lam": 0.1}}.

    An objective is a weight, or a mapping of weight, layers, projection and the objective's own options; weights and
    temperatures may change over the run ("1..0"). layers: the pairs of blocks of the terms that name none. None takes
    half cross-entropy, half forward KL at temperature 2.
    """
    terms = []
    for name, given in (DEFAULT if objectives is None else objectives).items():
        if name not in OBJECTIVES and ":" not in name:
            raise unknown("objective", name, OBJECTIVES)
        given = given if isinstance(given, dict) else {"weight": given}
        weight = given.get("weight", 1.0)
        check_ramp(f"weight of {name}", weight, 0, None)
        if "temperature" in given:
            check_ramp(f"temperature of {name}", given["temperature"], 0.1, 100)
        options = {key: value for key, value in given.items() if key not in OF_TERM}
        placed = given.get("layers", layers)
        terms.append(Term(name, weight, options, layers=placed, projection=given.get("projection", "linear")))
    if not any(any(ends(term.weight)) for term in terms):
        raise RecipeError("no objective has a weight", f"the default is objectives: {DEFAULT}")
    return Scheme(tuple(terms))
