"""What every task is to the loop: rows, batches, and a model's answer to a batch. A task is a class in tasks/.

What is here most have in common. Each has these of its own: vocabulary(model), the width of the logits;
prepare_rows(rows, tokenizer, data, model) -> text.Prepared; check_packing(model) and check_model(model, name), which
raise; predict(model, tokenizer, texts, max_length); run(model, batch, want) -> Output.

Shapes: B examples, T tokens, D hidden width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.benchmark.quality import Tally
from llm_finetuner.data import columns
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError
from llm_finetuner.models.anatomy import expose_attention
from llm_finetuner.models.loading import blocks_of
from llm_finetuner.output import Want


class Task:
    """A task whose answers are tokens and stand in `labels`, a list as long as it needs to be."""

    auto: str  # the class of transformers that loads its models
    unfit: tuple[str, ...] = ("mse", "huber")  # objectives whose targets are numbers, not tokens or labels
    objectives: dict[str, Callable] = {}  # what stands here for objectives that methods name
    labels = False  # whether the answers are labels with names, and not tokens
    writes = False  # whether the models continue texts
    adapters = False  # whether LoRA and its kin fit
    pooled = False  # whether an answer is read off one vector of a text
    two_stacks = False  # whether an encoder reads a source and a decoder answers
    shapes_of_text = False  # whether rows are texts that a model continues (data/shapes.py)

    def width(self, model: nn.Module) -> int:
        """Width of what the blocks put out: D."""
        return model.config.get_text_config().hidden_size

    def depth(self, model: nn.Module) -> int:
        """Number of blocks; of two stacks the decoder's."""
        return len(blocks_of(model))

    # ---- rows

    def fit(self, model: nn.Module | None, rows: Any, seed: int) -> None:
        """Make the model answer in the labels of the rows, or raise DataError. Tokens are what they are."""

    def check_names(self, model: nn.Module, rows: Any) -> None:
        """Raise DataError where rows are numbered by other labels than the model's. Tokens have no such names."""

    def check_labelled(self, rows: Any) -> None:
        """Raise DataError where nothing in the rows tells what is right. Texts tell it by themselves."""

    def check_rows(self, rows: Any) -> None:
        """Raise DataError where there is nothing to learn."""
        if not any((labels != IGNORED).any() for labels in columns.flat(rows, "labels")):
            raise DataError("no token of the data counts", "labels must hold more than -100")

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """Pad on the right to the longest: {input_ids, attention_mask [B, T], labels [B, their longest]}.

        counted=False masks every label: the stand-in batch of a process that has no example left in a step.
        """
        batch = {
            "input_ids": padded(examples, "input_ids"),
            "attention_mask": padded(examples, "attention_mask"),
            "labels": padded(examples, "labels", IGNORED),
        }
        if not counted:
            batch["labels"].fill_(IGNORED)
        return batch

    def count(self, batch: dict[str, Tensor]) -> int:
        """Positions that count."""
        return int((batch["labels"] != IGNORED).sum())

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """(tokens that a forward pass reads, places that it computes, which padding is the rest of)."""
        return int(batch["attention_mask"].sum()), batch["attention_mask"].numel()

    # ---- models

    def tally(self, examples: int, model: nn.Module) -> Any:
        """What sums up an evaluation."""
        return Tally(examples)

    def prepare(self, model: nn.Module, want: Want) -> None:
        """Make a model ready to be asked for `want`."""
        if want.attention:
            expose_attention(model)


def padded(examples: list[dict], key: str, fill: int = 0) -> Tensor:
    """A list column of the examples, filled up on the right: [B, its longest]."""
    longest = max(len(example[key]) for example in examples)
    return torch.tensor([list(e[key]) + [fill] * (longest - len(e[key])) for e in examples])
