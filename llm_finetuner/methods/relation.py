"""Learn how the teacher's hidden states stand to each other, which compares models of any width."""

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import check_ramp, check_range
from llm_finetuner.scheme import Scheme, Term

RELATIONS = {  # name -> objectives with their weights
    "distance_angle": {"distance": 1.0, "angle": 2.0},
    "similarity": {"similarity": 1.0},
    "token_relation": {"token_relation": 1.0},
}


def relation_distillation(
    *,
    temperature: float | str = 2.0,
    alpha: float = 0.5,
    relation: str = "distance_angle",
    feature_layers: str | list | None = "final",
    output_weight: float = 0.0,
) -> Scheme:
    """alpha x cross-entropy + (1 - alpha) x relation loss + output_weight x T^2 KL(teacher || student).

    relation: distance_angle (Park et al. 2019, arXiv 1904.05068, distances once and angles twice as there), similarity
    (Tung and Mori 2019, 1907.09682) or token_relation, each over the positions of a sequence.
    """
    check_ramp("temperature", temperature, 1, 10)
    check_range("alpha", alpha, 0, 1)
    check_range("output_weight", output_weight, 0, None)
    if relation not in RELATIONS:
        raise RecipeError(f"relation must be one of {', '.join(RELATIONS)}, got {relation!r}")
    terms = [
        Term(name, (1 - alpha) * weight, layers=feature_layers)
        for name, weight in RELATIONS[relation].items()
    ]
    answers = Term("forward_kl", output_weight, {"temperature": temperature})
    return Scheme((Term("cross_entropy", alpha), *terms, answers))
