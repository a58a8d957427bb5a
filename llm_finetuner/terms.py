"""What the terms of a loss read, what they are called, and what they weigh at a point of the run."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace

from llm_finetuner import ramp
from llm_finetuner.registry import OBJECTIVES, fill_options, resolve
from llm_finetuner.scheme import Term

PAIRED = (
    "features",
    "hidden",
    "attention",
    "states",
    "embeddings",
)  # what a term may read of a pair of blocks
PROJECTED = ("features", "embeddings")  # compared number by number, so the widths must agree


def reads(term: Term) -> frozenset[str]:
    """What the objective of a term reads: the names of its parameters. Raises RecipeError."""
    return _parameters(term.objective)


@functools.cache  # asked several times a step
def _parameters(objective: str) -> frozenset[str]:
    return frozenset(inspect.signature(resolve(OBJECTIVES, objective, "objective")).parameters)


def reads_teacher(term: Term) -> bool:
    return any(name.startswith("teacher") for name in reads(term))


def kind_of(term: Term) -> str:
    """What a term compares: "logits", "spans", or one of PAIRED."""
    return next((kind for kind in (*PAIRED, "spans") if f"student_{kind}" in reads(term)), "logits")


def check_options(term: Term) -> None:
    """Raise RecipeError for an option that the objective does not have."""
    fill_options(term.objective, resolve(OBJECTIVES, term.objective, "objective"), term.options)


def names_of(terms: Sequence[Term]) -> list[str]:
    """Each term under its objective's name; a second one of the same objective is objective_2."""
    before = [term.objective for term in terms]
    return [
        name + (f"_{before[:i].count(name) + 1}" if name in before[:i] else "")
        for i, name in enumerate(before)
    ]


def at(term: Term, progress: float) -> Term:
    """The term with the weight and the temperature that it has at this point of the run, 0 to 1."""
    options = term.options
    if "temperature" in options:
        options = {**options, "temperature": ramp.at(options["temperature"], progress)}
    return replace(term, weight=ramp.at(term.weight, progress), options=options)


def scaled(term: Term, factor: float) -> Term:
    return replace(term, weight=term.weight * factor)
