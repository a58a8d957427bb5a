"""How files of sequences will be read: parts, sizes, and the first samples of a few rows. No torch."""

import functools
from collections.abc import Iterator
from typing import Any

from llm_finetuner.recipe import Recipe

USUAL = {"input_dim": 2, "output_dim": 1, "complex_valued": True}  # of an s4d
SHOWN, SAMPLES = 2, 4  # rows, and samples of each


def look(recipe: Recipe, stamp: tuple) -> tuple[str, list, int, float]:
    """(a sentence, rows to show, rows to train on, samples of each), read again only where they changed (stamp)."""
    return _look(recipe.data.source, recipe.data.eval_fraction, recipe.data.samples, stamp)


def channels(recipe: Recipe, stamp: tuple) -> dict[str, Any]:
    """Settings of an s4d that these rows ask for, where they are not as usual. Raises DataError."""
    import numpy as np

    train = _read(recipe.data.source, recipe.data.eval_fraction, stamp).part("train")
    turned = [np.iscomplexobj(array) for array in (train.inputs, train.targets)]
    whole = turned[1] if train.targets.shape[2] else turned[0]  # complex answers come of a complex model
    wanted = {
        "input_dim": train.inputs.shape[2] * (1 + (turned[0] and not whole)),
        "output_dim": max(1, train.targets.shape[2]),
        "complex_valued": whole,
    }
    return {name: value for name, value in wanted.items() if value != USUAL[name]}


@functools.lru_cache(maxsize=4)
def _read(source: str, share: float, _stamp: tuple) -> Any:
    from llm_finetuner.data import signals

    return signals.read(source, share)


@functools.lru_cache(maxsize=4)
def _look(source: str, share: float, samples: int | None, stamp: tuple) -> tuple[str, list, int, float]:
    found = _read(source, share, stamp)
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
