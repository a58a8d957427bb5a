"""What focuses without learning, to hold a model against: [N, L] focused columns of simulated or recorded ones."""

from collections.abc import Callable

import numpy as np

from llm_finetuner.data.sar import Radar, focus
from llm_finetuner.data.sar_scenes import Columns

BLANKED = 8.0  # times the median amplitude of a column: brighter pulses are taken for interference


def zeros(_radar: Radar, columns: Columns) -> np.ndarray:
    """Nothing at all: what "retains" energy must be held against this."""
    return np.zeros_like(columns.echo)


def unfocused(_radar: Radar, columns: Columns) -> np.ndarray:
    """The echo itself, times the one complex number that suits the truth best: as good as it can look."""
    echo, truth = columns.echo[:, columns.rows], columns.truth[:, columns.rows, 0]
    return columns.echo * (np.vdot(echo, truth) / np.vdot(echo, echo))


def exact_filter(radar: Radar, columns: Columns) -> np.ndarray:
    """The matched filter of each column's own range."""
    return focus(radar, columns.echo, columns.slant_range)


def blanked_filter(radar: Radar, columns: Columns, threshold: float = BLANKED) -> np.ndarray:
    """The same after pulses brighter than `threshold` times the column's median amplitude were set to 0."""
    size = np.abs(columns.echo)
    kept = size <= threshold * np.median(size, 1, keepdims=True)
    return focus(radar, columns.echo * kept, columns.slant_range)


PROCESSORS: dict[str, Callable[[Radar, Columns], np.ndarray]] = {
    "zeros": zeros,
    "unfocused": unfocused,
    "matched filter": exact_filter,
    "matched filter, pulses blanked": blanked_filter,
}
