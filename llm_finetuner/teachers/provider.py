"""What every teacher is to the loop: something that answers a batch. A kind is one file and one line.

A registered builder is called as `builder(spec, context, **options)` and returns a Provider.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.output import Columns, Output, Want, select
from llm_finetuner.scheme import Term


@dataclass
class Context:
    """What a teacher is built for."""

    task: Any  # an instance of a class of tasks/
    student: nn.Module
    tokenizer: Any  # the student's, or None where the rows came prepared
    device: torch.device
    note: Callable[[str], None]  # tells the user something
    seed: int = 0
    folder: str = ""  # of the run
    about: dict[str, Any] = field(default_factory=dict)  # how the rows were prepared: max_length, loss_on
    rank: int = 0  # of this process


class Provider:
    """Answers batches: callable as (batch, want) -> Output, without gradients. The positions are the student's.

    Its rows can be indexed by a slice or a tensor of positions, and its head gives [n, C] logits (or
    log-probabilities) for `columns` of the student's.
    """

    columns: Columns = None  # the student's logits that it speaks of
    width: int = 0  # D of its hidden states; 0: it has none
    depth: int = 0  # blocks
    parameters: int = 0  # held in memory
    positions: int | None = None  # tokens that it reads at most
    mixes: bool = (
        True  # whether its answers are of the student's own columns, so that they mix with another's
    )
    stored: bool = False  # answers only the rows that it was made for
    model: nn.Module | None = None  # the one model whose answers it gives, as they are
    noted: Mapping[str, Any] = MappingProxyType({})  # what of it a cache notes beside the weights

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        raise NotImplementedError

    def view(self, logits_nV: Tensor) -> Tensor:
        """The student's logits as the teacher's answers are: [n, V] -> [n, C]."""
        return select(logits_nV, self.columns)

    def place(self, targets_n: Tensor) -> Tensor:
        """Where the target tokens stand in the answers, -100 for those that do not: [n] -> [n]."""
        if not isinstance(self.columns, Tensor):
            return targets_n
        columns = self.columns.to(targets_n.device)
        order = columns.argsort()
        found = torch.searchsorted(columns[order], targets_n.clamp(min=0)).clamp(max=len(order) - 1)
        return torch.where(torch.isin(targets_n, columns), order[found], -100)

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        """Called once, with what will be read. Raises RecipeError where these terms cannot be answered."""

    def check(self, rows: Any) -> None:
        """Raise DataError where prepared rows cannot be answered."""

    def meet(self, rows: Any) -> None:
        """Called once, before the first batch, with the rows to be learned from."""

    def follow(self, epoch_ends: bool = False) -> None:
        """Called after every optimizer step, for teachers that move with the student or with the epochs."""

    def flush(self) -> None:
        """Called when a run ends: what is held back is written down."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
