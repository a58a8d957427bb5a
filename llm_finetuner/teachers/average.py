"""The moving average of the student's weights as its teacher: Mean Teacher (arXiv 1703.01780)."""

import copy
from typing import Any

import torch
from torch import nn

from llm_finetuner.teachers.live import Live


class Average(Live):
    """average <- decay x average + (1 - decay) x student, after every step; begun as the student."""

    def __init__(self, task, student: nn.Module, decay: float):
        self.student, self.decay = student, decay
        super().__init__(task, copy.deepcopy(student))

    @torch.no_grad()
    def follow(self, epoch_ends: bool = False) -> None:
        """Only what trains moves; the average of the first steps leans on the newest weights, as in the paper."""
        self.steps += 1
        decay = min(self.decay, 1 - 1 / (self.steps + 1))
        own = dict(self.model.named_parameters())
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                own[name].lerp_(parameter.to(own[name].dtype), 1 - decay)

    steps = 0

    def state(self) -> dict[str, Any]:
        moving = {name for name, p in self.student.named_parameters() if p.requires_grad}
        weights = {name: p.detach() for name, p in self.model.named_parameters() if name in moving}
        return {"steps": self.steps, "weights": weights}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        own = dict(self.model.named_parameters())
        for name, weights in state["weights"].items():
            own[name].data.copy_(weights)
