"""A control: every position hears the answer meant for another. What still helps then is not what the teacher knows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.output import Output, Want
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.provider import Provider


class Shuffled(Provider):
    """Rolls all that a teacher says by half the positions of a batch, so mostly into another sequence."""

    def __init__(self, inner: Provider):
        self.inner = inner
        self.columns, self.width, self.depth = inner.columns, inner.width, inner.depth
        self.parameters, self.stored = inner.parameters, inner.stored
        self.positions, self.mixes = inner.positions, inner.mixes

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        said = self.inner(batch, want)
        order_N = torch.arange(len(said.targets)).roll(len(said.targets) // 2).to(said.targets.device)
        order_M = None if said.tokens is None else _by_kind(said.first_tokens)

        def roll(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: roll(item) for key, item in value.items()}
            if order_M is not None and len(value) == len(order_M):  # not what stands for a whole text
                return value[order_M.to(value.device)]
            return value.roll(len(value) // 2, 0)

        told = {name: roll(getattr(said, name)) for name in ("features", "attention", "states")}
        if said.embeddings is not None:
            told["embeddings"] = roll(said.embeddings)
        if said.known is not None:
            told["known"] = said.known.roll(len(said.known) // 2)
        return replace(said, rows=_reordered(said.rows, order_N), spans=None, **told)

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        self.inner.prepare(want, terms)

    def view(self, logits_nV: Tensor) -> Tensor:
        return self.inner.view(logits_nV)

    def place(self, targets_n: Tensor) -> Tensor:
        return self.inner.place(targets_n)

    def check(self, rows: Any) -> None:
        self.inner.check(rows)

    def meet(self, rows: Any) -> None:
        self.inner.meet(rows)

    def follow(self, epoch_ends: bool = False) -> None:
        self.inner.follow(epoch_ends)

    def flush(self) -> None:
        self.inner.flush()

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.inner.load_state(state)


def _by_kind(first_M: Tensor) -> Tensor:
    """An order of all tokens that puts the first of a text where another text's stands, and the others likewise."""
    order_M = torch.arange(len(first_M), device=first_M.device)
    for of_a_kind in (first_M, ~first_M):
        places = order_M[of_a_kind]
        order_M[of_a_kind] = places.roll(len(places) // 2)
    return order_M


def _reordered(rows: Any, order_N: Tensor) -> Any:
    """Rows stand where the teacher does, which may be another device."""
    return rows[order_N.to(rows.device) if isinstance(rows, Tensor) else order_N]
