"""Any number of weighted terms, by name."""

import re
from typing import Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.ramp import ends
from llm_finetuner.recipe_sections import check_ramp
from llm_finetuner.registry import OBJECTIVES, unknown
from llm_finetuner.scheme import Scheme, Term

DEFAULT = {"cross_entropy": 0.5, "forward_kl": {"weight": 0.5, "temperature": 2.0}}
OF_TERM = ("weight", "layers", "tokens", "projection")
_AGAIN = re.compile(r"(.+)_\d+$")  # forward_kl_2


def distillation(*, objectives: dict[str, Any] | None = None, layers: str | list | None = None) -> Scheme:
    """The sum of named objectives: {"cross_entropy": 0.5, "skew_forward_kl": {"weight": 0.5, "lam": 0.1}}.

    An objective is a weight, or a mapping of weight, layers, tokens, projection and the objective's own options;
    weights and temperatures may change over the run ("1..0"). The same objective a second time is called forward_kl_2,
    as in the log. layers: the pairs of blocks of the terms that name none. tokens: first compares hidden states of each
    text's first token, [CLS] of encoders, where models are read at all of them. None takes half cross-entropy, half
    forward KL at temperature 2.
    """
    terms = []
    if objectives is not None and not isinstance(objectives, dict):
        raise RecipeError(f"objectives must be a mapping of names, got {objectives!r}", f"such as {DEFAULT}")
    for name, given in (DEFAULT if objectives is None else objectives).items():
        again = _AGAIN.match(name)
        objective = again[1] if again and again[1] in OBJECTIVES else name
        if objective not in OBJECTIVES and ":" not in objective:
            raise unknown("objective", name, OBJECTIVES)
        given = given if isinstance(given, dict) else {"weight": given}
        weight = given.get("weight", 1.0)
        check_ramp(f"weight of {name}", weight, 0, None)
        if "temperature" in given:
            check_ramp(f"temperature of {name}", given["temperature"], 0.1, 100)
        options = {key: value for key, value in given.items() if key not in OF_TERM}
        placed = given.get("layers", layers)
        projection, tokens = given.get("projection", "linear"), given.get("tokens", "all")
        if projection not in ("linear", "orthogonal"):
            raise RecipeError(f"projection of {name} must be linear or orthogonal, got {projection!r}")
        if tokens not in ("all", "first"):
            raise RecipeError(f"tokens of {name} must be all or first, got {tokens!r}")
        terms.append(Term(objective, weight, options, placed, projection, tokens))
    if not any(any(ends(term.weight)) for term in terms):
        given = (
            f"objectives: {', '.join(objectives or ())} have weight 0"
            if objectives
            else "objectives is empty"
        )
        raise RecipeError(f"no objective has a weight ({given})", f"the default is objectives: {DEFAULT}")
    return Scheme(tuple(terms))
