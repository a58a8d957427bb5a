"""What every teacher is to the loop: something that answers a batch. A kind of teacher is one file and one registry line.

A registered builder is called as `builder(spec, context, **options)` and returns a Provider.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.output import Columns, Output, Want


@dataclass
class Context:
    """What a teacher is built for. `models` are live ones that stand in for those that the recipe names."""

    task: Any
    student: nn.Module
    tokenizer: Any  # the student's, or None where the rows came prepared
    device: torch.device
    note: Callable[[str], None]  # tells the user something
    want: Want = Want()  # what the terms will read of the teacher, where that is known before it is built
    seed: int = 0
    folder: str = ""  # of the run
    models: list[nn.Module] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)  # of those models


class Provider:
    """Answers batches: callable as (batch, want) -> Output, without gradients. The positions are the student's.

    Its rows slice by position, and its head gives [n, C] logits (or log-probabilities) for `columns` of the student's.
    """

    columns: Columns = None  # the student's logits that it speaks of
    width: int = 0  # D of its hidden states; 0: it has none
    depth: int = 0  # blocks
    parameters: int = 0  # held in memory

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        raise NotImplementedError

    def check(self, rows: Any) -> None:
        """Raise DataError where prepared rows cannot be answered."""

    def follow(self) -> None:
        """Called after every optimizer step, for teachers that move with the student."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
