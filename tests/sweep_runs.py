"""Small runs for the tests of the sweep, on rows that a tiny model learns in a few steps."""

import random
from pathlib import Path

import datasets
from conftest import build_gpt2

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train

RATE = "train.learning_rate"


def recipe_in(folder: Path, method: str = "fine_tuning", **train) -> Recipe:
    teacher = Teacher("t") if method != "fine_tuning" else None
    plan = {
        "steps": 4,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "eval_every": 2,
    }
    return Recipe(
        method=method, student=Model("s"), teacher=teacher, output=str(folder), train=Train(**{**plan, **train})
    )  # fmt: skip


def counting(rows: int, seed: int = 0) -> datasets.Dataset:
    """Rows that count upwards from anywhere: what is learned of some holds for others."""
    draw = random.Random(seed)
    starts = [(draw.randrange(8), draw.randint(5, 9)) for _ in range(rows)]
    ids = [list(range(start, start + length)) for start, length in starts]
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": ids}
    )


def parts_of(held_out: int = 12, **more) -> Parts:
    rows = {"train": counting(16), "held_out": counting(held_out, seed=9)}
    return Parts(**{"student": build_gpt2(64), **rows, "device": "cpu", **more})


class Heard:
    """Remembers the events; `at(kind, count)` is called when that many of a kind came."""

    def __init__(self, at=None):
        self.events, self.at = [], at or (lambda kind, count: None)

    def __call__(self, kind: str, record: dict) -> None:
        self.events.append((kind, record))
        self.at(kind, len(self.of(kind)))

    def of(self, kind: str) -> list[dict]:
        return [record for name, record in self.events if name == kind]

    @property
    def tried(self) -> list[int]:
        return [record["number"] for record in self.of("trial")]


def losses(result: dict) -> dict[int, float]:
    return {line["number"]: line["loss"] for line in result["trials"]}
