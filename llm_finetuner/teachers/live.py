"""A frozen model that answers each batch as it comes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.models import activations
from llm_finetuner.models.loading import entry_device, positions_of
from llm_finetuner.output import Columns, Output, Want, moved
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.provider import Provider


class Live(Provider):
    """Eval mode, no gradients, no cache, no dropout, in its own dtype whatever autocast the student runs under.

    It may stand on another device than the student: batches go there, answers come back.
    """

    def __init__(self, task, model: nn.Module, columns: Columns = None):
        self.task, self.columns = task, columns
        self.model = model.eval().requires_grad_(False)
        self.fused = activations.Fused(model)
        self.device = entry_device(model)
        self.width, self.depth = task.width(model), task.depth(model)
        self.parameters = model.num_parameters()
        self.positions = positions_of(model)

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        self.task.prepare(self.model, want)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        home = next(x.device for x in batch.values() if isinstance(x, Tensor))
        self.model.eval()
        with torch.autocast(self.device.type, enabled=False), self.fused:
            said = self.task.run(self.model, moved(batch, self.device), want)

        def head(rows_nD: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return self.view(said.head(rows_nD)).to(home)

        near = {name: moved(getattr(said, name), home) for name in ("features", "attention", "states")}
        if said.embeddings is not None:
            near["embeddings"] = said.embeddings.to(home)
        return replace(
            said, head=head, targets=said.targets.to(home), examples=said.examples.to(home), **near
        )

    def check(self, rows: Any) -> None:
        self.task.check_inputs(rows, self.model)

    def meet(self, rows: Any) -> None:
        self.task.meet(self.model, rows)
