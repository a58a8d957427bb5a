"""Forecasters on a table: how good they are on its test windows, and what they say of the steps beyond its end.

Shapes: T times, C channels, L look-back, H horizon, n windows, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from llm_finetuner.benchmark import forecasts
from llm_finetuner.benchmark.conformal import LEAST, Conformal, margins, scores
from llm_finetuner.benchmark.forecasts import Intervals, Said
from llm_finetuner.benchmark.verdict import finite
from llm_finetuner.data.series import Group, Layout
from llm_finetuner.data.windows import Frame, Scale, Windows
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models import build
from llm_finetuner.models.linear_forecaster import fit_closed_form

if TYPE_CHECKING:
    import pandas as pd

SIMPLE = ("repeat-last", "seasonal-naive", "linear")  # forecasters that no run has to train
RENEWED = 24  # windows after which intervals are learned anew, where there is no season
ROW = "row"  # the column of times of a table that has none

Columns = dict[str, np.ndarray]  # "", "-lo-80", "-hi-80": H numbers


def simple(name: str, frame: Frame) -> nn.Module:
    """One of SIMPLE for these series: the season is theirs, and a line is fitted to the training windows."""
    sizes = {"lookback": frame.plan.lookback, "horizon": frame.plan.horizon}
    if name == "seasonal-naive":
        return build.seasonal_naive(**sizes, season=frame.season)
    if name == "repeat-last":
        return build.repeat_last(**sizes)
    line = build.linear(**sizes)
    fit_closed_form(line, frame.part("train").blocks())
    return line


# ---- the test windows


def evaluate(model: nn.Module, frame: Frame, levels: Sequence[float] = ()) -> dict[str, Any]:
    """Figures over all test windows, as plain data. levels: of intervals, in percent.

    mse, mae (of the scaled data, as papers give them), windows, lookback, horizon, season, by_step and by_channel (MSE),
    original: mean and channels {name: {mae, rmse, smape, mase, crps}} in the units of the data (the mean is over the
    channels), and with levels intervals {"80": {coverage, width, interval_score, by_step and channels}} of the scaled
    data. Raises DataError where the validation windows are too few to learn intervals from.
    """
    percent = check_levels(levels)
    said = forecasts.forecast(model, frame.part("test"))
    own = forecasts.original(said, frame)
    names = ("mae", "rmse", "smape", "mase", "crps")
    known = {name: [one[name] for one in own.values() if np.isfinite(one[name])] for name in names}
    found = {
        **forecasts.scaled(said),
        "lookback": frame.plan.lookback,
        "horizon": frame.plan.horizon,
        "season": frame.season,
        "by_step": forecasts.by_step(said).tolist(),
        "by_channel": forecasts.by_channel(said, frame),
        "original": {
            "mean": {name: float(np.mean(values)) if values else None for name, values in known.items()},
            "channels": own,
        },
    }
    if percent:
        before = forecasts.forecast(model, frame.part("validation"))
        found["intervals"] = {
            f"{level:g}": _of_intervals(
                forecasts.intervals(before, said, level / 100, every=renewed(frame.season)), said, frame
            )
            for level in percent
        }
    return finite(found)


def _of_intervals(found: Intervals, said: Sequence[Said], frame: Frame) -> dict[str, Any]:
    parts = zip(said, found.low, found.high, found.truth, strict=True)
    channels = {
        name: Intervals(found.level, *([part[..., channel : channel + 1]] for part in (low, high, truth)))
        for one, low, high, truth in parts
        for channel, name in enumerate(frame.groups[one.group].names)
    }
    return {
        **found.figures(),
        "by_step": found.by_step().tolist(),
        "channels": {name: one.figures() for name, one in channels.items()},
    }


def check_levels(levels: Sequence[float]) -> list[float]:
    """Percent of intervals, ascending, each once. Raises RecipeError."""
    for level in levels:
        if not 0 < level < 100:
            raise RecipeError(
                f"an interval of {level:g} % is none", "give percent between 0 and 100, such as 80 90"
            )
    return sorted({float(level) for level in levels})


def renewed(season: int) -> int:
    """Windows after which intervals are learned anew: once a season, such as a day of hours."""
    return season if season > 1 else RENEWED


# ---- beyond the end


@dataclass(frozen=True)
class Ahead:
    """What comes next: a table like the history's, and of each group how many windows its intervals rest on."""

    table: "pd.DataFrame"
    windows: list[int]


def forecast(
    model: nn.Module, groups: Sequence[Group], layout: Layout, levels: Sequence[float] = (), *,
    seen: Sequence[int] | None = None, season: int = 1,
) -> Ahead:  # fmt: skip
    """Forecast the steps after the last one of each series; a table as wide or long as the history was.

    levels: in percent; they add columns NAME-lo-80 and NAME-hi-80, conformal intervals learned on the history's own last
    windows, those whose steps come after the first `seen` rows of each group, which the model was trained on. Raises
    DataError for a history that is too short.
    """
    percent, parts, counts = check_levels(levels), [], []
    for number, group in enumerate(groups):
        columns, count = _beyond(model, group, percent, seen[number] if seen else 0, renewed(season))
        parts.append((group, columns))
        counts.append(count)
    return Ahead(_table(parts, layout), counts)


def rows_seen(groups: Sequence[Group], trained: Frame) -> list[int]:
    """How many first rows of each group are not after the training rows of the same series in another table."""
    ends = {
        name: group.times[borders["train"][1] - 1]
        for group, borders in zip(trained.groups, trained.borders, strict=True)
        for name in group.names
    }
    last = [[ends[name] for name in group.names if name in ends] for group in groups]
    return [
        int((group.times <= max(times)).sum()) if times and type(group.times[0]) is type(times[0]) else 0
        for group, times in zip(groups, last, strict=True)
    ]


def _beyond(
    model: nn.Module, group: Group, levels: Sequence[float], seen: int, every: int
) -> tuple[list[Columns], int]:
    """(the columns of each channel, windows that the intervals rest on) of one group."""
    rows, (lookback, horizon) = len(group.values), (model.config.lookback, model.config.horizon)
    if rows < lookback:
        raise DataError(
            f"{group.names[0]} has {rows} rows, and the model reads {lookback}", "give a longer history"
        )
    spread_C = group.values.std(0)
    scale = Scale(group.values.mean(0), np.where(spread_C > 0, spread_C, 1.0))
    conformal = [Conformal(level / 100) for level in levels]
    back = max((learned.window for learned in conformal), default=-horizon) + horizon
    first = min(rows, max(lookback, seen, rows - back))  # the first step that is forecast
    padded_TC = np.pad(scale.down(group.values), ((0, horizon), (0, 0)), constant_values=np.nan)
    starts = np.stack([np.zeros(rows - first + 1, int), np.arange(first, rows + 1) - lookback], 1)
    windows = Windows([padded_TC.astype(np.float32)], starts, lookback, horizon, None)
    (said,) = forecasts.forecast(model, windows)  # the last one is of what comes
    found = {"": said.point[-1].astype(np.float64)}
    low_HC, high_HC = np.inf, -np.inf
    for level, learned in zip(levels, conformal, strict=True):
        own_low_nHC, own_high_nHC = said.between(learned.level)
        margin_HC = _margin(
            learned, scores(own_low_nHC, own_high_nHC, said.truth)[:-1], every, group.names[0]
        )
        # a margin below 0 may not turn an interval over, and a wider one holds the narrower
        low_HC = np.minimum(low_HC, own_low_nHC[-1] - margin_HC)
        high_HC = np.maximum(high_HC, np.maximum(own_high_nHC[-1] + margin_HC, low_HC))
        found |= {f"-lo-{level:g}": low_HC, f"-hi-{level:g}": high_HC}
    units = {suffix: scale.up(values_HC) for suffix, values_HC in found.items()}
    channels = [{suffix: values_HC[:, c] for suffix, values_HC in units.items()} for c in range(len(spread_C))]
    return channels, min(len(said.truth) - 1, back - horizon)


def _margin(learned: Conformal, scores_nHC: np.ndarray, every: int, name: str) -> np.ndarray:
    """What is added to the interval of the next window, all earlier ones having gone by in their order: [H, C]."""
    enough = LEAST + scores_nHC.shape[1]
    if len(scores_nHC) < enough:
        raise DataError(
            f"{name} has {len(scores_nHC)} windows that the model was not trained on, and intervals take {enough}: "
            f"{LEAST} and one for each step of the horizon",
            "give a longer history, or leave --level out",
        )
    learned.see(scores_nHC[:enough])
    margins(scores_nHC[enough:], learned, every)
    return learned.margin()


def _table(parts: Sequence[tuple[Group, list[Columns]]], layout: Layout) -> "pd.DataFrame":
    import pandas as pd

    time, tables = layout.time or ROW, []
    for group, channels in parts:
        later = group.later(len(channels[0][""]))
        named = list(zip(group.names, channels, strict=True))
        if layout.series is None:
            wide = {f"{name}{suffix}": values for name, own in named for suffix, values in own.items()}
            tables.append(pd.DataFrame({time: later, **wide}))
            continue
        for name, own in named:
            columns = {f"{layout.targets[0]}{suffix}": values for suffix, values in own.items()}
            tables.append(pd.DataFrame({layout.series: name, time: later, **columns}))
    return pd.concat(tables, ignore_index=True)
