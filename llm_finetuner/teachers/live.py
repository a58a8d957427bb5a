"""A frozen model that answers each batch as it comes."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from llm_finetuner.output import Output, Want


class Live:
    """Eval mode, no gradients, no cache, no dropout, in its own dtype whatever autocast the student runs under."""

    def __init__(self, task, model: nn.Module):
        self.task = task
        self.model = model.eval().requires_grad_(False)
        self.device_type = next(model.parameters()).device.type

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        self.model.eval()
        with torch.autocast(self.device_type, enabled=False):
            said = self.task.run(self.model, batch, want)

        def head(rows_nD: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
                return said.head(rows_nD)

        return replace(said, head=head)
