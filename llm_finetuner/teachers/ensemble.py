"""Several teachers as one: a weighted mixture of their distributions, or of their logits.

Shapes: N positions that count, n a slice of them, C columns that all know, M members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.chunks import LOGITS_A_CHUNK
from llm_finetuner.errors import RecipeError
from llm_finetuner.output import Columns, Output, Want, at_least_float32, select
from llm_finetuner.ranges import check_shares
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.provider import Provider


@dataclass
class _Rows:
    """The rows of every member, and the log weight of each at each position [N, M], sliced together."""

    parts: list
    log_weights_NM: Tensor

    def __getitem__(self, piece: slice | Tensor) -> "_Rows":
        return _Rows([part[piece] for part in self.parts], self.log_weights_NM[piece])

    def __len__(self) -> int:
        return len(self.log_weights_NM)


class Ensemble(Provider):
    """mixture "probabilities": the mean distribution, log sum of w_m p_m; "logits": that of the mean logits.

    The mixture is one distribution, which a temperature softens as it would a single teacher's. weights "loss" trusts,
    for each example, member m in proportion to exp(-loss of m on that example, nats a token). Hidden states are not
    averaged: an ensemble of several has none.
    """

    def __init__(
        self,
        members: Sequence[Provider],
        weights: list[float] | str | None = None,
        mixture: str = "probabilities",
    ):
        """weights None: all the same. Raises RecipeError."""
        if mixture not in ("probabilities", "logits"):
            raise RecipeError(f"mixture must be probabilities or logits, got {mixture!r}")
        if len(members) > 1 and not all(member.mixes for member in members):
            raise RecipeError(
                "a teacher with another tokenizer cannot be mixed with others",
                "take it alone, or teachers with one tokenizer",
            )
        self.members, self.mixture = list(members), mixture
        self.positions = min((m.positions for m in members if m.positions), default=None)
        self.weights = None if weights == "loss" else _shares(weights, len(members))
        self.columns, self.places = _common([member.columns for member in members])
        self.stored = any(member.stored for member in members)
        self.parameters = sum(member.parameters for member in members)
        if len(members) == 1:
            self.width, self.depth = members[0].width, members[0].depth

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        if len(self.members) > 1 and want != Want():
            raise RecipeError(
                "an ensemble has answers but no hidden states of its own",
                "take response terms only, or one teacher for the feature and relation terms",
            )
        for member in self.members:
            member.prepare(want, terms)

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        said = [member(batch, want) for member in self.members]
        if len(said) == 1:
            return said[0]
        first = said[0]
        log_weights_NM = self._by_loss(said) if self.weights is None else self._fixed(first)
        known = [output.known for output in said if output.known is not None]
        return Output(
            rows=_Rows([output.rows for output in said], log_weights_NM),
            head=lambda rows: self._mix(
                [
                    select(output.head(part), places)
                    for output, part, places in zip(said, rows.parts, self.places, strict=True)
                ],
                rows,
            ),
            targets=first.targets,
            examples=first.examples,
            known=torch.stack(known).all(0) if known else None,
        )

    def view(self, logits_nV: Tensor) -> Tensor:
        alone = len(self.members) == 1
        return self.members[0].view(logits_nV) if alone else super().view(logits_nV)

    def place(self, targets_n: Tensor) -> Tensor:
        return self.members[0].place(targets_n) if len(self.members) == 1 else super().place(targets_n)

    def check(self, rows) -> None:
        for member in self.members:
            member.check(rows)

    def meet(self, rows) -> None:
        for member in self.members:
            member.meet(rows)

    def follow(self, epoch_ends: bool = False) -> None:
        for member in self.members:
            member.follow(epoch_ends)

    def flush(self) -> None:
        for member in self.members:
            member.flush()

    def state(self) -> dict[str, Any]:
        return {str(number): member.state() for number, member in enumerate(self.members)}

    def load_state(self, state: dict[str, Any]) -> None:
        for number, member in enumerate(self.members):
            member.load_state(state[str(number)])

    def _fixed(self, output: Output) -> Tensor:
        return self.weights.log().to(output.targets.device).expand(len(output.targets), -1)

    def _mix(self, answers: list[Tensor], rows: _Rows) -> Tensor:
        """[n, C] of each member -> [n, C], in float32 and log space."""
        weights_nM = rows.log_weights_NM.to(at_least_float32(answers[0]).dtype)
        if self.mixture == "logits":
            return sum(
                at_least_float32(a) * w.exp()[:, None] for a, w in zip(answers, weights_nM.T, strict=True)
            )
        logs = [torch.log_softmax(at_least_float32(answer), -1) for answer in answers]
        return torch.stack([x + w[:, None] for x, w in zip(logs, weights_nM.T, strict=True)]).logsumexp(0)

    def _by_loss(self, said: list[Output]) -> Tensor:
        """Log weights [N, M] from every member's mean loss on each example."""
        examples = said[0].examples
        losses = torch.stack([self._losses(o, p) for o, p in zip(said, self.places, strict=True)], -1)
        return torch.log_softmax(-losses, -1)[examples]

    def _losses(self, output: Output, places: Columns) -> Tensor:
        """Mean nats a token of each example: [B]."""
        targets = self.place(output.targets)
        pieces, start, size = [], 0, 256
        while start < len(targets):
            piece = slice(start, start + size)
            answers_nC = at_least_float32(select(output.head(output.rows[piece]), places))
            pieces.append(torch.nn.functional.cross_entropy(answers_nC, targets[piece], reduction="none"))
            start, size = start + size, max(1, LOGITS_A_CHUNK // answers_nC.shape[-1])
        nll_N = torch.cat(pieces) if pieces else targets.new_zeros(0, dtype=torch.float32)
        count = int(output.examples.max()) + 1 if len(targets) else 0
        sums = nll_N.new_zeros(count).index_add(0, output.examples, nll_N)
        return sums / torch.bincount(output.examples, minlength=count).clamp(min=1)


def _common(spoken: Sequence[Columns]) -> tuple[Columns, list[Columns]]:
    """The student's columns that all members speak of, and where each member's answers have them."""
    chosen = [columns for columns in spoken if isinstance(columns, Tensor)]
    first = min((columns for columns in spoken if isinstance(columns, int)), default=None)
    if not chosen:
        return first, [first] * len(spoken)
    ids_C = chosen[0].sort().values
    for other in chosen[1:]:
        ids_C = ids_C[torch.isin(ids_C, other)]
    ids_C = ids_C if first is None else ids_C[ids_C < first]
    places: list[Columns] = []
    for columns in spoken:
        if isinstance(columns, Tensor):
            order = columns.argsort()
            places.append(order[torch.searchsorted(columns[order], ids_C)])
        else:
            places.append(ids_C)
    return ids_C, places


def _shares(weights: list[float] | str | None, count: int) -> Tensor:
    """Weights that sum to one. Raises RecipeError."""
    weights = [1.0] * count if weights is None else weights
    check_shares(weights, count)
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)
