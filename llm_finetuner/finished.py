"""Finished runs from their folders: what was trained, the rows it was trained on, and those it is compared on."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_finetuner import recipe_file
from llm_finetuner.assembly import load_rows
from llm_finetuner.benchmark.verdict import Entry
from llm_finetuner.errors import OrderError
from llm_finetuner.models import loading
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.run import read_log
from llm_finetuner.search.record import digest_of_rows
from llm_finetuner.teaching import role_of


@dataclass
class Finished:
    """A run that was trained to its end."""

    recipe: Recipe  # its output is the folder as it was named
    task: Any
    tokenizer: Any
    model: nn.Module
    train: Any
    held_out: Any  # None where nothing was held out
    history: list[dict]

    @classmethod
    def load(cls, run: str | Path, device: torch.device, note: Callable[[str], None]) -> "Finished":
        """Raises OrderError for a run that was not finished, FinetunerError."""
        run = Path(run)
        if not (run / "training.json").exists():
            raise OrderError(f"{run} holds no finished run", f"train it to its end first: resume {run}")
        recipe = replace(recipe_file.load(run / "recipe.yaml"), output=str(run))
        task = resolve(TASKS, recipe.task)()
        tokenizer = task.tokenizer(str(run))
        bits = {"load_in_4bit": recipe.student.load_in_4bit, "load_in_8bit": recipe.student.load_in_8bit}
        model = loading.load_trained(run, device, auto=task.auto, **bits)
        rows = load_rows(recipe.data, task, model, tokenizer, recipe.train.seed, str(run), note)
        return cls(recipe, task, tokenizer, model, *rows, read_log(run))

    @functools.cached_property
    def rows(self) -> Any:
        """Those it is compared on."""
        return self.task.test_rows(self.train, self.held_out)

    @property
    def name(self) -> str:
        """Of its folder."""
        return Path(self.recipe.output).resolve().name

    def entry(self, name: str) -> Entry:
        """Its line of a table, by this name."""
        seconds = sum(record["seconds"] for record in self.history)
        folder, steps = Path(self.recipe.output), self.history[-1]["step"]
        return Entry(name, role_of(self.recipe), self.model, self.tokenizer, folder, steps, seconds)


def named(runs: Sequence[Finished]) -> list[str]:
    """What runs of one table are called: the names of their folders, whole paths where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.recipe.output) for run in runs]


def check_comparable(first: Finished, other: Finished) -> None:
    """Raise OrderError for runs of other tasks, or that were held against other rows."""
    pair = f"{first.recipe.output} and {other.recipe.output}"
    if first.recipe.task != other.recipe.task:
        raise OrderError(
            f"{pair} are runs of different tasks: {first.recipe.task} and {other.recipe.task}",
            "compare each by itself",
        )
    ours, theirs = (digest_of_rows(run.task, run.rows) for run in (first, other))
    if ours != theirs:
        raise OrderError(
            f"{pair} are compared on different rows: their figures do not stand beside each other",
            "compare runs with the same data, tokenizer and, where rows were held out by chance, seed",
        )
