"""The models that a recipe names, loaded as it says."""

from dataclasses import replace

import torch
from torch import nn

from llm_finetuner.models import loading
from llm_finetuner.recipe import Model, Teacher


def load_student(model: Model, device: torch.device | str, seed: int, frozen: bool = False) -> nn.Module:
    """Raises ModelError."""
    return loading.load_causal_lm(
        model.name, device=device, dtype=model.dtype, load_in_4bit=model.load_in_4bit,
        load_in_8bit=model.load_in_8bit, from_scratch=model.from_scratch, seed=seed, frozen=frozen,
    )  # fmt: skip


def load_teacher(model: Teacher, device: torch.device | str) -> nn.Module:
    """A frozen model in eval mode, on the device that the recipe gives it. Raises ModelError."""
    found = load_student(replace(model, from_scratch=False), model.device or device, 0, frozen=True)
    return found.eval().requires_grad_(False)
