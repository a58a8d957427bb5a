"""Tiny S4D models and sequences of numbers that tests train on."""

import numpy as np
import torch

from llm_finetuner.data import signals
from llm_finetuner.models.s4d import S4DConfig, S4DModel

SMALL = {"input_dim": 2, "model_dim": 4, "state_dim": 8, "output_dim": 1, "num_layers": 2}
BIG = {**SMALL, "model_dim": 6, "state_dim": 12, "num_layers": 3}


def model(seed: int = 0, double: bool = True, **shape) -> S4DModel:
    torch.manual_seed(seed)
    made = S4DModel(S4DConfig(**{**SMALL, "bidirectional": True, **shape}))
    return made.double() if double else made


def arrays(
    rows: int = 12, length: int = 20, seed: int = 0, labelled: int | None = None, complex_valued: bool = True
):
    """Inputs [N, L, 2] and targets [N, L, 1]: what came a step ago and comes a step later, weighed."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, length, 2))
    x = x + 1j * draw.normal(size=x.shape) if complex_valued else x
    y = 0.5 * np.roll(x[..., :1], 1, 1) - (0.3j if complex_valued else 0.3) * np.roll(x[..., :1], -1, 1)
    if labelled is not None:
        y[labelled:] = np.nan
    return x, y


def rows(
    counted: tuple[int, int] = (3, 16), share: float = 0.0, scaled: bool = False, **options
) -> signals.Signals:
    """Rows to train on, of which some samples count; in the units of the data unless scaled."""
    x, y = arrays(**options)
    found = signals.read({"inputs": x, "targets": y}, share)
    if not scaled:
        vars(found)["scales"] = (np.ones(2), np.ones(1))
    return signals.replace(found.part("train"), counted=slice(*counted))
