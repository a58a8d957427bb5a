"""What forecasts were worth: errors on the scaled data, as papers give them, and in the units of the data.

Shapes: n windows, H steps, C channels, Q quantiles, N windows of one channel each, L look-back.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_finetuner.benchmark.conformal import Conformal, enough, interval_score, margins, scores, too_few
from llm_finetuner.benchmark.quality import eval_mode, of_runs
from llm_finetuner.data.windows import Frame, Windows
from llm_finetuner.models.forecaster import point

BATCH = 1024  # windows of one channel at a time

Figures = dict[str, float]


@dataclass(frozen=True)
class Said:
    """Forecasts of all windows of one group, on the scaled data, and what came: [n, H, C], forecasts with [..., Q]."""

    group: int
    values: np.ndarray
    truth: np.ndarray
    quantiles: list[float]

    @property
    def point(self) -> np.ndarray:
        """[n, H, C]."""
        return point(self.values, self.quantiles)

    def between(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [n, H, C] of the model itself: its quantiles of that level, else its one number twice."""
        ends = [(1 - level) / 2, (1 + level) / 2]
        found = [i for end in ends for i, q in enumerate(self.quantiles) if abs(q - end) < 1e-9]
        if len(found) == 2:
            return self.values[..., found[0]], self.values[..., found[1]]
        return self.point, self.point


@torch.no_grad()
def forecast(model: nn.Module, windows: Windows, batch: int = BATCH) -> list[Said]:
    """All windows through a forecaster, whatever the batch: each group's in the order of time."""
    said = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with eval_mode(model):
        for group in np.unique(windows.starts[:, 0]):
            part = windows.select(np.flatnonzero(windows.starts[:, 0] == group))
            columns = []
            for context_nL, target_nH in part.blocks():
                pieces = [
                    model(
                        torch.from_numpy(np.ascontiguousarray(context_nL[start : start + batch])).to(device)
                    ).values
                    for start in range(0, len(context_nL), batch)
                ]
                columns.append((torch.cat(pieces).cpu().numpy(), target_nH))
            values, truth = (np.stack(column, 2) for column in zip(*columns, strict=True))
            said.append(Said(int(group), values, truth, list(model.config.quantiles)))
    return said


def scaled(said: Sequence[Said]) -> Figures:
    """MSE and MAE over every window, step and channel of the scaled data."""
    errors = [one.point.astype(np.float64) - one.truth for one in said]
    count = sum(error.size for error in errors)
    return {
        "mse": float(sum(np.square(error).sum() for error in errors) / count),
        "mae": float(sum(np.abs(error).sum() for error in errors) / count),
        "windows": sum(len(error) for error in errors),
    }


def interval(said: Sequence[Said]) -> tuple[float | None, float | None]:
    """95 % interval of the MSE of the scaled data; (None, None) of too few windows (quality.of_runs)."""
    squared = [np.square(one.point.astype(np.float64) - one.truth).mean(1).sum(1) for one in said]  # [n]
    channels = [np.full(len(one.truth), one.truth.shape[2]) for one in said]
    return of_runs(np.concatenate(squared), np.concatenate(channels), said[0].truth.shape[1])


def by_step(said: Sequence[Said]) -> np.ndarray:
    """MSE of each step of the horizon: [H]."""
    return mean([np.square(one.point - one.truth) for one in said], (0, 2))


def mean(parts: Sequence[np.ndarray], over: tuple[int, ...] = (0, 1, 2)) -> Any:
    """Over these axes of the arrays [n, H, C] of all groups, in float64."""
    sums = sum(part.sum(over, dtype=np.float64) for part in parts)
    return sums / sum(math.prod(part.shape[axis] for axis in over) for part in parts)


def by_channel(said: Sequence[Said], frame: Frame) -> dict[str, float]:
    """MSE of each channel on the scaled data."""
    found = {}
    for one in said:
        mse_C = np.square(one.point - one.truth).mean((0, 1), dtype=np.float64)
        found |= dict(zip(frame.groups[one.group].names, mse_C.tolist(), strict=True))
    return found


def original(said: Sequence[Said], frame: Frame) -> dict[str, Figures]:
    """MAE, RMSE, sMAPE (%), MASE and CRPS of each channel, in the units of the data.

    MASE divides by the mean change over a season in the training rows (Hyndman and Koehler 2006), and is NaN where
    there is none; sMAPE is 200 |y - f| / (|y| + |f|), 0 where both are 0. CRPS is twice the mean pinball loss of the
    quantiles, of one number a step the MAE.
    """
    found: dict[str, Figures] = {}
    for one in said:
        group, scale = frame.groups[one.group], frame.scales[one.group]
        truth, guess = scale.up(one.truth.astype(np.float64)), scale.up(one.point.astype(np.float64))
        gap, size = np.abs(truth - guess), np.abs(truth) + np.abs(guess)
        low, high = frame.borders[one.group]["scale"]
        past_TC = group.values[low:high]
        changes = np.abs(past_TC[frame.season :] - past_TC[: -frame.season])
        season_C = changes.mean(0) if len(changes) else np.zeros(len(group.names))
        crps = _crps(one) * scale.spread if one.quantiles else gap.mean((0, 1))
        columns = {
            "mae": gap.mean((0, 1)), "rmse": np.sqrt(np.square(gap).mean((0, 1))),
            "smape": 200 * np.divide(gap, size, out=np.zeros_like(gap), where=size > 0).mean((0, 1)),
            "mase": gap.mean((0, 1)) / np.where(season_C > 0, season_C, np.nan), "crps": crps,
        }  # fmt: skip
        for channel, name in enumerate(group.names):
            found[name] = {key: float(column[channel]) for key, column in columns.items()}
    return found


def _crps(one: Said) -> np.ndarray:
    """On the scaled data: [C]."""
    gap = one.truth[..., None].astype(np.float64) - one.values
    levels = np.asarray(one.quantiles)
    return 2 * np.maximum(levels * gap, (levels - 1) * gap).mean((0, 1, 3))


@dataclass(frozen=True)
class Intervals:
    """Of one level, on the scaled data: low and high [n, H, C] of each group, and what they were worth.

    Ends are NaN in groups with too few windows before; no figure counts those.
    """

    level: float
    low: list[np.ndarray]
    high: list[np.ndarray]
    truth: list[np.ndarray]

    @functools.cached_property
    def parts(self) -> dict[str, list[np.ndarray]]:
        """What the figures are made of: [n, H, C] of each group."""
        ends = list(zip(self.low, self.high, self.truth, strict=True))
        return {
            "coverage": [
                (y >= low) & (y <= high) if _made(low) else np.full_like(low, np.nan) for low, high, y in ends
            ],
            "width": [high - low for low, high, _ in ends],
            "interval_score": [interval_score(*one, self.level) for one in ends],
        }

    def figures(self) -> Figures:
        """coverage, width and interval score over every window, step and channel."""
        return {name: float(mean(self._told(name))) for name in self.parts}

    def by_channel(self, figure: str = "coverage") -> list[float]:
        """One of the figures of each channel, group by group; NaN where there are no intervals."""
        return [float(value) for part in self.parts[figure] for value in part.mean((0, 1), dtype=np.float64)]

    def by_step(self, figure: str = "coverage") -> np.ndarray:
        """One of the figures of each step: [H]."""
        return mean(self._told(figure), (0, 2))

    def _told(self, figure: str) -> list[np.ndarray]:
        return [part for part, low in zip(self.parts[figure], self.low, strict=True) if _made(low)]


def _made(low_nHC: np.ndarray) -> bool:
    return not np.isnan(low_nHC.flat[0])


def intervals(before: Sequence[Said], said: Sequence[Said], level: float) -> Intervals:
    """Conformal intervals of forecasts, learned from those before (of validation) and, as time goes by, from these.

    A group with few windows before gets none. Raises DataError where no group has enough of them.
    """
    earlier = {one.group: one for one in before}
    had = {one.group: len(earlier[one.group].truth) if one.group in earlier else 0 for one in said}
    if not any(enough(had[one.group], one.truth.shape[1]) for one in said):
        raise too_few(max(had.values()))
    lows, highs, truths = [], [], []
    for one in said:
        low, high = one.between(level)
        if enough(had[one.group], one.truth.shape[1]):
            learned, past = Conformal(level), earlier[one.group]
            learned.see(scores(*past.between(level), past.truth))
            added = margins(scores(low, high, one.truth), learned)
        else:
            added = np.full_like(low, np.nan)
        lows.append(low - added)
        highs.append(np.maximum(high + added, low - added))  # a margin below 0 may not turn an interval over
        truths.append(one.truth)
    return Intervals(level, lows, highs, truths)
