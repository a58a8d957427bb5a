"""Evaluations of forecasters, summed up: the squared error of each window, and what a forecaster is judged by.

Shapes: E windows of several channels, n windows of one channel each at once, H steps, Q quantiles.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.benchmark.enough import CRITICAL, RUN
from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.quality import Quality, paired_difference
from llm_finetuner.errors import DataError
from llm_finetuner.models.forecaster import point

BY_RUNS = (
    "windows that overlap are no independent examples, so the 95 % interval is Student's t over the means of "
    f"{min(CRITICAL)} to {max(CRITICAL)} runs of neighbouring windows, each at least {RUN} horizons long (Ibragimov "
    "and Mueller 2010); of fewer windows there is none"
)


class ForecastTally:
    """As quality.Tally, of errors on the scaled data; of quantiles the median is the forecast."""

    def __init__(self, windows: int, config: Any, heard: Sequence[float] = ()):
        """heard: the quantiles that the teacher gives."""
        self.horizon, self.quantiles, self.levels = config.horizon, list(config.quantiles), list(heard)
        self.squared = torch.zeros(windows, dtype=torch.float64)  # [E] summed over the channels
        self.absolute = 0.0
        self.channels = torch.zeros(windows, dtype=torch.long)
        self.heard, self.apart = 0, 0.0

    def add(self, values_nV: Tensor, targets_nH: Tensor, windows_n: Tensor) -> None:
        gap_nH = (self._point(values_nV, self.quantiles) - targets_nH).double().cpu()
        self.squared.index_add_(0, windows_n, gap_nH.square().mean(1))
        self.absolute += float(gap_nH.abs().mean(1).sum())
        self.channels.index_add_(0, windows_n, torch.ones_like(windows_n))

    def hear(self, own_nV: Tensor, teacher_nV: Tensor, known_n: Tensor | None) -> None:
        """What the teacher forecasts of the same windows."""
        gap_nH = (self._point(own_nV, self.quantiles) - self._point(teacher_nV, self.levels)).double()
        self.heard += len(gap_nH)
        self.apart += float(gap_nH.square().mean(1).sum())

    def _point(self, values_nV: Tensor, quantiles: list[float]) -> Tensor:
        return point(values_nV.unflatten(1, (self.horizon, -1)), quantiles) if quantiles else values_nV

    def quality(self, with_teacher: bool) -> Quality:
        """Raises DataError where there is no window."""
        count = int(self.channels.sum())
        if not count:
            raise DataError("there is no window to score", "give a longer series")
        figures = {"mae": self.absolute / count}
        if with_teacher:
            figures["mse_to_teacher"] = self.apart / max(1, self.heard)
        return Quality(
            nll=self.squared.numpy(), tokens=self.channels.numpy(), accuracy=None, calibration_error=None,
            figures=figures, span=self.horizon,
        )  # fmt: skip


def _show(value: float | None) -> str:
    return "beyond measure" if value is None or not math.isfinite(value) else f"{value:.4f}"


MSE = Measure(
    key="mse", name="MSE", unit="a window", units="windows", lower=True,
    value=lambda quality: quality.loss, interval=Quality.loss_interval, paired=paired_difference,
    change=lambda gap, other: 100 * gap / other, change_unit="%", show=_show,
    formulas={
        "mse": f"mean squared error over windows, steps and channels of the scaled data; {BY_RUNS}",
        "differences": f"MSE of one model minus that of another, in % of the latter; {BY_RUNS}",
        "retained": "100 x MSE of the teacher / MSE of the model",
        "mae": "mean absolute error over the same",
    },
    beside=("mae",), alone="the truth", off="beta = 0", read="windows", over="epoch",
    without=("loss", "tokens", "accuracy", "agreement", "kl_to_teacher", "calibration_error"),
)  # fmt: skip
