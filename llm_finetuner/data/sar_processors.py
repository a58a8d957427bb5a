"""What focuses without learning, to hold a model against: [N, L] focused columns of simulated or recorded ones."""

from collections.abc import Callable

import numpy as np

from llm_finetuner.data.sar import Radar, focus
from llm_finetuner.data.sar_scenes import Columns

BLANKED = 8.0  # times the median amplitude of a column: brighter pulses are taken for interference


def exact_filter(radar: Radar, columns: Columns) -> np.ndarray:
    """The matched filter of each column's own range."""
    return focus(radar, columns.echo, columns.slant_range)


def blanked_filter(radar: Radar, columns: Columns, threshold: float = BLANKED) -> np.ndarray:
    """The same after pulses brighter than `threshold` times the column's median amplitude were set to 0."""
    size = np.abs(columns.echo)
    kept = size <= threshold * np.median(size, 1, keepdims=True)
    return focus(radar, columns.echo * kept, columns.slant_range)


PROCESSORS: dict[str, Callable[[Radar, Columns], np.ndarray]] = {
    "matched filter": exact_filter,
    "matched filter, pulses blanked": blanked_filter,
}
