"""What a forecaster says of series: the steps after their end, those after earlier cut-offs, and what it is worth.

Tables that are returned are long: unique_id, ds, then a column called as the kind of the model (patch, time_llm, ...)
and, for each level in percent, its interval: patch-lo-80, patch-hi-80. Shapes: T rows, C channels, L look-back, H
horizon, n origins, the rows that a forecast begins at.

Ends of intervals are NaN where too few forecasts lie before; `warn` is told which series that is.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from llm_finetuner.benchmark import forecast_figures, forecasts
from llm_finetuner.benchmark.conformal import LEAST, Conformal, enough, margins, scores
from llm_finetuner.benchmark.seen import after_training, before
from llm_finetuner.data.series import Group, Layout
from llm_finetuner.data.windows import Frame, Scale, Windows
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.ranges import check_count

WINDOWS = 1000  # before a forecast, that intervals are learned from at most
ID, TIME, CUTOFF, TRUTH = "unique_id", "ds", "cutoff", "y"

Warn = Callable[[str], None]


def _warn(said: str) -> None:
    warnings.warn(said, stacklevel=4)  # where LLMFineTuner was called


def forecast(
    model: nn.Module, groups: Sequence[Group], levels: Sequence[float] = (), *, horizon: int | None = None,
    windows: int = WINDOWS, warn: Warn = _warn,
) -> pd.DataFrame:  # fmt: skip
    """The steps after the last row of each series, up to the model's horizon.

    levels: of intervals, in percent, learned from the forecasts of the last windows of each history by adaptive
    conformal prediction; windows that reach into the rows that the model was trained on are left out, as its errors
    there are too small. Raises DataError for a history that is shorter than a look-back, RecipeError.
    """
    steps = _steps(model, horizon)
    found = []
    for doubt in _doubts(model, groups, [len(group.values) for group in groups], levels):
        warn(doubt)
    for group in groups:
        end = len(group.values)
        said = _Said.of(model, group, [end], levels, windows)
        for channel, name in enumerate(group.names):
            columns = said.columns(model, end, channel, steps)
            found.append(pd.DataFrame({ID: name, TIME: group.later(steps), **columns}))
    return pd.concat(found, ignore_index=True)


def backtest(
    model: nn.Module, groups: Sequence[Group], levels: Sequence[float] = (), *, cutoffs: int = 1,
    step: int | None = None, horizon: int | None = None, windows: int = WINDOWS, warn: Warn = _warn,
) -> pd.DataFrame:  # fmt: skip
    """Forecasts from earlier ends of the series, beside what came: also cutoff (the last time known) and y.

    The last of the `cutoffs` leaves one horizon of rows, each other one `step` rows more (None: a horizon). Each row is
    what `forecast` says of the history up to its cut-off. The model is not trained anew: `warn` is told of cut-offs
    within its training rows. Raises DataError, RecipeError.
    """
    steps = _steps(model, horizon)
    check_count("n_windows", cutoffs, 1)
    step = steps if step is None else step
    check_count("step_size", step, 1)
    found, back = [], steps + (cutoffs - 1) * step
    for doubt in _doubts(model, groups, [len(group.values) - back for group in groups], levels):
        warn(doubt)
    seen = [group for group in groups if len(group.values) - back < (after_training(group, model) or 0)]
    if seen:
        warn(
            f"some cut-offs of {_names(seen)} lie within the rows that the model was trained on: it knows what came "
            "after them"
        )
    for group in groups:
        last = len(group.values) - steps
        ends = list(range(last - (cutoffs - 1) * step, last + 1, step))
        said = _Said.of(model, group, ends, levels, windows)
        for channel, name in enumerate(group.names):
            for end in ends:
                part = slice(end, end + steps)
                found.append(
                    pd.DataFrame(
                        {
                            ID: name,
                            TIME: group.times[part],
                            CUTOFF: group.times[end - 1],
                            TRUTH: group.values[part, channel],
                            **said.columns(model, end, channel, steps),
                        }
                    )  # fmt: skip
                )
    return pd.concat(found, ignore_index=True)


def evaluate(
    model: nn.Module, frame: Frame, levels: Sequence[float] = (), warn: Warn = _warn, name: str = "the model"
) -> dict[str, Any]:
    """What a forecaster is worth on the test part of a frame: see forecast_figures.figures.

    name: what the model is called where `warn` is told that it was trained on these rows.
    """
    if said := before(model, frame, "test", name):
        warn(said)
    found = forecast_figures.figures(model, frame, levels)
    for figures in list(found.get("intervals", {}).values())[:1]:  # of all levels the same series
        lacking = [name for name, of in figures["by_channel"].items() if math.isnan(of["coverage"])]
        if lacking:
            warn(
                f"{_listed(lacking)}: too few windows of validation for intervals, so that coverage, width and "
                "interval score leave them out"
            )
    return found


def as_given(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Forecasts in the shape of the table that they continue: long, or wide with a column (and its ends) a channel."""
    time = layout.time or TIME
    if layout.series is not None:
        return table.rename(columns={ID: layout.series, TIME: time})
    model, *ends = (column for column in table.columns if column not in (ID, TIME))
    wide: dict[str, Any] = {}
    for name, rows in table.groupby(ID, sort=False):
        wide[time] = rows[TIME].to_numpy()
        wide |= {f"{name}{column.removeprefix(model)}": rows[column].to_numpy() for column in (model, *ends)}
    return pd.DataFrame(wide)


def _steps(model: nn.Module, horizon: int | None) -> int:
    most = model.config.horizon
    if horizon is None:
        return most
    check_count("horizon", horizon, 1)
    if horizon > most:
        raise RecipeError(
            f"horizon={horizon} is more than the {most} steps that this model forecasts",
            "take fewer, or train one with a longer horizon",
        )
    return horizon


@dataclass(frozen=True)
class _Said:
    """Forecasts of one group in the units of the data, by the row that they begin at: [H, C] each."""

    point: dict[int, np.ndarray]
    ends: dict[float, dict[int, tuple[np.ndarray, np.ndarray]]]  # level -> row -> (low, high)

    @classmethod
    def of(
        cls, model: nn.Module, group: Group, rows: Sequence[int], levels: Sequence[float], windows: int,
    ) -> "_Said":  # fmt: skip
        """Raises DataError for a group that is too short."""
        config = model.config
        if rows[0] < config.lookback:
            raise DataError(
                f"{_names([group])}: {max(0, rows[0])} rows before the first forecast, where the look-back is "
                f"{config.lookback}",
                "give a longer history" + ", or fewer cut-offs (n_windows, step_size)" * (len(rows) > 1),
            )
        first = max(_first(group, model), rows[0] - windows - config.horizon)
        learned = range(first, rows[-1]) if levels and enough(rows[-1] - first, config.horizon) else ()
        begins = sorted({*rows, *learned})
        said, scale = _all(model, group, begins)
        place = {row: number for number, row in enumerate(begins)}
        point = {row: scale.up(said.point[place[row]].astype(np.float64)) for row in rows}
        found: dict[float, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        for level in levels:
            low, high = said.between(level / 100)
            scored = scores(low, high, said.truth)
            found[level] = {}
            for row in rows:
                at, margin_HC = place[row], np.nan
                if enough(row - first, config.horizon):
                    had = slice(max(place[first], at - windows - config.horizon), at)
                    margin_HC = _margin(scored[had], level / 100, windows)
                below = scale.up(low[at] - margin_HC)
                found[level][row] = below, np.maximum(scale.up(high[at] + margin_HC), below)
        return cls(point, found)

    def columns(self, model: nn.Module, row: int, channel: int, steps: int) -> dict[str, np.ndarray]:
        name = model.config.model_type
        columns = {name: self.point[row][:steps, channel]}
        for level, of in self.ends.items():
            for way, values_HC in zip(("lo", "hi"), of[row], strict=True):
                columns[f"{name}-{way}-{level:g}"] = values_HC[:steps, channel]
        return columns


def _first(group: Group, model: nn.Module) -> int:
    """The first row that a forecast may begin at whose errors intervals are learned from."""
    return max(model.config.lookback, after_training(group, model) or 0)


def _doubts(
    model: nn.Module, groups: Sequence[Group], rows: Sequence[int], levels: Sequence[float]
) -> list[str]:
    """Warnings of intervals that are too narrow, and of series without any before these rows. Raises RecipeError."""
    forecast_figures.check_percents(levels)
    config, found = model.config, []
    if levels and any(after_training(group, model) is None for group in groups):
        found.append(
            f"it is not known up to when {config.model_type} was trained; on rows it has learned intervals are too "
            "narrow"
        )
    ends = list(zip(groups, rows, strict=True))
    lacking = [group for group, row in ends if not enough(row - _first(group, model), config.horizon)]
    if levels and lacking:
        found.append(
            f"{_names(lacking)}: too few rows for intervals, whose ends are left empty: it takes "
            f"{LEAST + config.horizon} behind the first {config.lookback} and behind the training rows; give a longer "
            "history, or no level (--level left out; level=[] in Python)"
        )
    return found


def _names(groups: Sequence[Group]) -> str:
    return _listed([name for group in groups for name in group.names])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _all(model: nn.Module, group: Group, rows: Sequence[int]) -> tuple[forecasts.Said, Scale]:
    """Forecasts that begin at these rows, scaled; NaN stands for what had not come by the end."""
    look, ahead = model.config.lookback, model.config.horizon
    spread = group.values.std(0)
    scale = Scale(group.values.mean(0), np.where(spread > 0, spread, 1.0))
    unknown = np.full((ahead, len(group.names)), np.nan)
    scaled = np.concatenate([scale.down(group.values), unknown]).astype(np.float32)
    begins = np.asarray(rows) - look
    starts = np.stack([np.zeros_like(begins), begins], 1)
    (said,) = forecasts.forecast(model, Windows([scaled], starts, look, ahead, None))
    return said, scale


def _margin(scored_nHC: np.ndarray, level: float, windows: int) -> np.ndarray:
    """What is added to the forecast right after these windows: begun with half of them, adapted along the others."""
    conformal = Conformal(level, windows)
    begun = max(LEAST + scored_nHC.shape[1], len(scored_nHC) // 2)
    conformal.see(scored_nHC[:begun])
    if len(scored_nHC) > begun:
        margins(scored_nHC[begun:], conformal)
    return conformal.margin()
