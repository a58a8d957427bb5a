"""All that is told of forecasts: errors by step and channel, skill against the naive forecast, intervals, examples.

Plain data, for programs and for the report. Shapes: n windows, H steps, C channels of a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from llm_finetuner.benchmark import forecasts
from llm_finetuner.benchmark.forecasts import Intervals, Said
from llm_finetuner.data.windows import Frame
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models.naive import Naive, NaiveConfig
from llm_finetuner.ranges import check_number

MOST_CHANNELS = 24  # that a report tells of one by one
FAN = (80, 90)  # percent: the intervals that a report shows
NOMINAL = (50, 65, 80, 90, 95)  # percent: those of which it asks how much they cover
EXAMPLES = 4  # windows that it draws
Place = tuple[int, int, int]  # of a group, a window of it, and a channel
PAST = 2  # horizons of the look-back that are drawn before a forecast, where there are as many


def figures(model: nn.Module, frame: Frame, levels: Sequence[float] = ()) -> dict[str, Any]:
    """What a forecaster is worth on the test part of a frame; levels: of intervals, in percent.

    mse, mse_low, mse_high, mae (scaled data), windows, lookback, horizon; by_step, by_channel: MSE; original: what
    forecasts.original gives; naive: the forecast that skill = 1 - MSE / its MSE is against; intervals: see
    `interval_figures`.
    """
    said = forecasts.forecast(model, frame.part("test"))
    reference = naive(frame)
    against = forecasts.forecast(reference, frame.part("test"))
    low, high = forecasts.interval(said)
    found = {
        **forecasts.scaled(said),
        "mse_low": low,
        "mse_high": high,
        "lookback": frame.plan.lookback,
        "horizon": frame.plan.horizon,
        "by_step": forecasts.by_step(said).tolist(),
        "by_channel": forecasts.by_channel(said, frame),
        "original": forecasts.original(said, frame),
        "naive": naive_name(reference),
        "skill": skill(said, against, frame),
    }
    if levels:
        before = forecasts.forecast(model, frame.part("validation"))
        found["intervals"] = interval_figures(before, said, frame, levels)
    return found


def naive(frame: Frame) -> Naive:
    """The last season again and again; the last value where no season is known, or it is longer than the look-back."""
    plan = frame.plan
    season = frame.season if frame.season <= plan.lookback else 1
    return Naive(NaiveConfig(lookback=plan.lookback, horizon=plan.horizon, season=season))


def naive_name(model: Naive) -> str:
    """What it is called in tables."""
    season = model.config.season
    return "last value" if season == 1 else f"last season ({season} steps)"


def skill(said: Sequence[Said], against: Sequence[Said], frame: Frame) -> dict[str, Any]:
    """1 - MSE / MSE of the other forecast: overall, by_channel; None where the other makes no error."""
    overall = [forecasts.scaled(of)["mse"] for of in (said, against)]
    own, other = (forecasts.by_channel(of, frame) for of in (said, against))
    return {"overall": _gain(*overall), "by_channel": {name: _gain(own[name], other[name]) for name in own}}


def _gain(own: float, other: float) -> float | None:
    return 1 - own / other if other > 0 else None


def interval_figures(
    before: Sequence[Said], said: Sequence[Said], frame: Frame, levels: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """By level in percent ("80"): coverage, width and interval_score, over all, by_channel and by_step."""
    return {f"{level:g}": told_of(made, frame) for level, made in of_levels(before, said, levels)}


def of_levels(
    before: Sequence[Said], said: Sequence[Said], levels: Sequence[float]
) -> Iterator[tuple[float, Intervals]]:
    """Intervals of each level in percent; one after the other, for they are large."""
    check_percents(levels)
    for level in levels:
        yield level, forecasts.intervals(before, said, level / 100)


def told_of(made: Intervals, frame: Frame) -> dict[str, Any]:
    """The figures of intervals as plain data."""
    by_channel = {figure: made.by_channel(figure) for figure in made.parts}
    return {
        **made.figures(),
        "by_channel": {
            name: {figure: values[number] for figure, values in by_channel.items()}
            for number, name in enumerate(frame.names)
        },
        "by_step": {figure: made.by_step(figure).tolist() for figure in made.parts},
    }


def check_percents(levels: Sequence[float]) -> None:
    """Raise RecipeError unless these are percentages of intervals."""
    if isinstance(levels, int | float | str):
        raise RecipeError(f"level must be a list of percentages, got {levels!r}", "such as [80, 90]")
    for level in levels:
        check_number("level", level, 0, 100, hint="in percent, such as 80")
        if level < 1:
            raise RecipeError(
                f"level is in percent, got {level!r}", f"{100 * level:g} is the share of {level:g}"
            )


# ---- of a report


def details(models: dict[str, nn.Module], frame: Frame, shown: Sequence[str]) -> dict[str, Any]:
    """What a report tells of several forecasters on the test part; shown: those whose intervals and examples it has.

    Of many channels some, evenly spaced: `of_channels` says of how many.
    """
    total, frame = len(frame.names), frame.narrowed(MOST_CHANNELS)
    test, validation = frame.part("test"), frame.part("validation")
    reference = naive(frame)
    against = forecasts.forecast(reference, test)
    said = {name: forecasts.forecast(model, test) for name, model in models.items()}
    places, made, why = [_place(number, frame, against) for number in range(EXAMPLES)], {}, None
    try:
        for name in shown:
            made[name] = _shown(forecasts.forecast(models[name], validation), said[name], frame, places)
    except DataError as error:  # the errors are told all the same
        made, why = {}, f"{error.what}: {error.hint}"
    return {
        "lookback": frame.plan.lookback, "horizon": frame.plan.horizon, "windows": len(test),
        "channels": frame.names, "of_channels": total, "naive": naive_name(reference), "season": frame.season,
        "by_step": {name: forecasts.by_step(of).tolist() for name, of in said.items()},
        "by_channel": {name: forecasts.by_channel(of, frame) for name, of in said.items()},
        "skill": {name: skill(of, against, frame) for name, of in said.items()},
        "original": {name: forecasts.original(said[name], frame) for name in shown},
        "intervals": {name: of.figures for name, of in made.items()},
        "reliability": {name: of.reliability for name, of in made.items()},
        "without_intervals": why,
        "examples": [_example(number, place, frame, said, made, shown) for number, place in enumerate(places)],
    }  # fmt: skip


@dataclass
class _Shown:
    """What is kept of the intervals of a model: their figures, and the ends of the windows that are drawn."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # by level: FAN
    reliability: dict[str, float] = field(default_factory=dict)  # by level: NOMINAL
    ends: list[dict[str, np.ndarray]] = field(default_factory=lambda: [{} for _ in range(EXAMPLES)])  # [H]


def _shown(before: Sequence[Said], said: Sequence[Said], frame: Frame, places: Sequence[Place]) -> _Shown:
    found = _Shown()
    for level, made in of_levels(before, said, sorted({*FAN, *NOMINAL})):  # large: none is kept
        name = f"{level:g}"
        if level in NOMINAL:
            found.reliability[name] = made.figures()["coverage"]
        if level in FAN:
            found.figures[name] = told_of(made, frame)
            for ends, (place, window, channel) in zip(found.ends, places, strict=True):
                for end, values in (("lo", made.low), ("hi", made.high)):
                    ends[f"{end}-{name}"] = values[place][window, :, channel].copy()
    return found


def _place(number: int, frame: Frame, said: Sequence[Said]) -> Place:
    """Windows and channels that are drawn are evenly spaced, none is picked."""
    place = number % len(frame.groups)
    windows, channels = len(said[place].truth), len(frame.groups[place].names)
    return place, (2 * number + 1) * windows // (2 * EXAMPLES), number * channels // EXAMPLES


def _example(
    number: int, at: Place, frame: Frame, said: dict[str, list[Said]], made: dict[str, _Shown], shown: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    """One window of one channel, in the units of the data."""
    place, window, channel = at
    group, scale = frame.groups[place], frame.scales[place]
    begins = max(0, frame.borders[place]["test"][0] - frame.plan.lookback) + window + frame.plan.lookback
    before = min(frame.plan.lookback, PAST * frame.plan.horizon)

    def up(values_H: np.ndarray) -> list[float]:
        scaled = values_H.astype(np.float64)
        return (scaled * scale.spread[channel] + scale.mean[channel]).tolist()

    told: dict[str, dict[str, list[float]]] = {}
    for name in shown:
        told[name] = {"point": up(said[name][place].point[window, :, channel])}
        if name in made:  # a series with too few windows has no ends
            ends = made[name].ends[number].items()
            told[name] |= {end: up(values_H) for end, values_H in ends if not np.isnan(values_H).any()}
    return {
        "channel": group.names[channel], "begins": str(group.times[begins]),
        "context": group.values[begins - before : begins, channel].tolist(),
        "truth": group.values[begins : begins + frame.plan.horizon, channel].tolist(),
        "forecasts": told,
    }  # fmt: skip
