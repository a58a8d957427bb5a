"""Evaluations of sequence regression, summed up: the error against the energy of the truth, row by row.

Shapes: E rows, n samples of any row, V real numbers a sample.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.quality import RESAMPLES, Quality, check_same, percentiles
from llm_finetuner.errors import DataError

OVER_ROWS = f"a bootstrap over rows ({RESAMPLES} resamples)"


class SignalTally:
    """As quality.Tally, of squared errors in the units of the data; of rows without targets nothing is added."""

    def __init__(self, rows: int, complex_valued: bool):
        self.complex_valued = complex_valued
        self.squared, self.energy = torch.zeros(
            2, rows, dtype=torch.float64
        )  # of a sample the mean over its numbers
        self.samples = torch.zeros(rows, dtype=torch.long)
        self.said, self.inner, self.peak = 0.0, 0j, 0.0
        self.heard, self.apart = 0, 0.0

    def add(self, values_nV: Tensor, targets_nV: Tensor, rows_n: Tensor) -> None:
        values_nV, targets_nV = values_nV.double().cpu(), targets_nV.double().cpu()
        self.squared.index_add_(0, rows_n, (values_nV - targets_nV).square().mean(1))
        self.energy.index_add_(0, rows_n, targets_nV.square().mean(1))
        self.samples.index_add_(0, rows_n, torch.ones_like(rows_n))
        said, told = self._numbers(values_nV), self._numbers(targets_nV)
        self.said += float(values_nV.square().mean(1).sum())
        self.inner += complex((told.conj() * said).sum()) / values_nV.shape[1]
        if len(told):
            self.peak = max(self.peak, float(told.abs().max()))

    def hear(self, own_nV: Tensor, teacher_nV: Tensor, known_n: Tensor | None) -> None:
        """What the teacher answers to the same samples."""
        self.heard += len(own_nV)
        self.apart += float((own_nV.double() - teacher_nV.double()).square().mean(1).sum())

    def _numbers(self, pairs_nV: Tensor) -> Tensor:
        return (
            torch.view_as_complex(pairs_nV.unflatten(1, (-1, 2)).contiguous())
            if self.complex_valued
            else pairs_nV
        )

    def quality(self, with_teacher: bool) -> Quality:
        """Raises DataError where nothing can be held against a truth."""
        count, energy, error = int(self.samples.sum()), float(self.energy.sum()), float(self.squared.sum())
        if not count:
            raise DataError("no row has targets to score against", "name rows with targets")
        if not energy:
            raise DataError(
                "the truth is zero everywhere: nothing can be held against it", "look at the targets"
            )
        parts = 1 + self.complex_valued
        figures = {
            "psnr": 10 * math.log10(self.peak**2 * count / (parts * error)) if error else math.inf,
            "coherence": abs(self.inner) / math.sqrt(self.said * energy) if self.said else 0.0,
        }
        if with_teacher:
            figures["mse_to_teacher"] = self.apart / max(1, self.heard)
        return Quality(
            nll=self.squared.numpy(), tokens=self.samples.numpy(), accuracy=None, calibration_error=None,
            figures=figures, energy=self.energy.numpy(),
        )  # fmt: skip


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def retained(own_db: float, teacher_db: float) -> float | None:
    """Energy retention in %: 100 (1 - NMSE) / (1 - NMSE of the teacher), 0 for an answer of zeros."""
    own, teacher = (1 - 10 ** (value / 10) for value in (own_db, teacher_db))
    return 100 * own / teacher if teacher > 0 else None


def _interval(quality: Quality, *, seed: int = 0) -> tuple[float | None, float | None]:
    low, high = percentiles(quality.nll, quality.energy, RESAMPLES, seed)
    return (None, None) if low is None else (decibels(low), decibels(high))


def _paired(a: Quality, b: Quality, *, seed: int = 0) -> dict[str, Any]:
    """dB between the errors of two models, both resampled with the same rows."""
    check_same(a, b)
    difference = decibels(a.nll.sum()) - decibels(b.nll.sum())
    low, high = percentiles(a.nll, np.maximum(b.nll, np.finfo(float).tiny), RESAMPLES, seed)
    if low is None:
        return {"difference": difference, "low": None, "high": None, "significant": False}
    low, high = decibels(low), decibels(high)
    return {"difference": difference, "low": low, "high": high, "significant": low > 0 or high < 0}


def _show(value: float | None) -> str:
    return "beyond measure" if value is None or not math.isfinite(value) else f"{value:.2f} dB"


NMSE = Measure(
    key="nmse_db", name="NMSE", unit="a sample", units="samples", lower=True,
    value=lambda quality: decibels(quality.nll.sum() / quality.energy.sum()), interval=_interval, paired=_paired,
    change=lambda gap, _other: gap, change_unit="dB", show=_show, keeps=retained,
    formulas={
        "nmse_db": "10 log10 of the energy of the error over that of the truth, in the units of the data, over the "
        f"samples that count and all channels: an answer of zeros has 0 dB; its 95 % interval is {OVER_ROWS}",
        "differences": "10 log10 of the error of one model over that of another, in dB, 95 % interval by a paired "
        "bootstrap: both models are resampled with the same rows",
        "retained": "100 x (1 - NMSE of the model) / (1 - NMSE of the teacher): an answer of zeros retains 0 %",
        "psnr": "10 log10 of the squared peak of the truth over the mean squared error, of complex numbers; beware: an "
        "answer of zeros has a high one where the truth is mostly dark",
        "coherence": "|<answer, truth>| over their norms, 1 for the truth",
    },
    beside=("psnr", "coherence"), alone="the truth", off="beta = 0 and gamma = 0", read="samples", over="epoch",
    without=("loss", "tokens", "accuracy", "agreement", "kl_to_teacher", "calibration_error"),
)  # fmt: skip
