"""How files of sequences will be read: parts, sizes, and the first samples of a few rows. No torch."""

import functools
from collections.abc import Iterator
from typing import Any

from llm_finetuner.recipe import Recipe

SHOWN, SAMPLES = 2, 4  # rows, and samples of each


def look(recipe: Recipe, stamp: tuple) -> tuple[str, list, int, float]:
    """(a sentence, rows to show, rows to train on, samples of each), read again only where they changed (stamp)."""
    return _look(recipe.data.source, recipe.data.eval_fraction, recipe.data.samples, stamp)


@functools.lru_cache(maxsize=4)
def _look(source: str, share: float, samples: int | None, _stamp: tuple) -> tuple[str, list, int, float]:
    from llm_finetuner.data import signals

    found = signals.read(source, share)
    train = found.part("train")
    rows = [list(_spelled(train[number], number)) for number in range(min(SHOWN, len(train)))]
    return found.describe(), rows, min(len(train), samples or len(train)), train.length


def _spelled(row: dict[str, Any], number: int) -> Iterator[tuple[str, bool]]:
    """A row's size and first samples that count; what is learned as counted."""
    counted = row["counted"].nonzero()[0]
    some = slice(int(counted[0]), int(counted[0]) + SAMPLES)
    for name, channels in (("inputs", row["inputs"]), ("targets", row["targets"])):
        size = float((abs(channels) ** 2).mean() ** 0.5) if channels.size else 0.0
        first = ", ".join(f"{value:.3g}" for value in channels[some, 0]) if channels.size else "none"
        of = f"row {number}, from sample {some.start} " if name == "inputs" else " "
        yield f"{of}{name} (RMS {size:.3g}): {first} ...", name == "targets"
