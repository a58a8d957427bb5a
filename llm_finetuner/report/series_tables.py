"""What a report lists of forecasters: errors and skill by channel, intervals, units of the data, seeds, shares."""

from typing import Any

from llm_finetuner.report.table import DASH, Cell, Figure, best_of, decimals, percent

MSE = Figure("MSE", decimals(4), "low")
UNITS = {  # figures in the units of the data, and how they are written
    "mae": ("MAE", decimals(3)), "rmse": ("RMSE", decimals(3)), "smape": ("sMAPE, %", decimals(1)),
    "mase": ("MASE", decimals(3)), "crps": ("CRPS", decimals(3)),
}  # fmt: skip
INTERVALS = {
    "coverage": ("coverage", percent), "width": ("width", decimals(3)),
    "interval_score": ("interval score", decimals(3)),
}  # fmt: skip
Lines = list[tuple[str, list[Cell]]]


def by_channel(verdict: dict[str, Any]) -> Lines:
    """A line a channel, below that of all: the MSE of each model, and its skill."""
    series = verdict["series"]
    names = [model["name"] for model in verdict["models"]]
    overall = {model["name"]: model["mse"] for model in verdict["models"]}
    lines = []
    for channel in (None, *series["channels"]):
        errors = [overall[name] if channel is None else series["by_channel"][name][channel] for name in names]
        best = best_of(MSE, errors)
        cells = []
        for index, (name, error) in enumerate(zip(names, errors, strict=True)):
            skill = series["skill"][name]
            gain = skill["overall"] if channel is None else skill["by_channel"][channel]
            below = DASH if gain is None else f"skill {gain:+.3f}"
            cells.append(Cell(DASH if error is None else MSE.show(error), index in best, below))
        lines.append(("all" if channel is None else channel, cells))
    return lines


def intervals(verdict: dict[str, Any]) -> tuple[list[str], Lines]:
    """(titles of the columns, a line for each model and level): over all; of coverage the worst and best channel."""
    lines = []
    for name, levels in verdict["series"]["intervals"].items():
        for level, told in levels.items():
            shares = [of["coverage"] for of in told["by_channel"].values() if of["coverage"] is not None]
            ends = f"channels {percent(min(shares))} to {percent(max(shares))}"
            cells = [
                Cell(show(told[key]), below=ends if key == "coverage" else "")
                for key, (_, show) in INTERVALS.items()
            ]
            lines.append((f"{name}, {level} % intervals", cells))
    return [title for title, _ in INTERVALS.values()], lines


def in_units(verdict: dict[str, Any]) -> tuple[list[str], list[str], Lines]:
    """(models, titles of the columns of each, a line a channel): errors in the units of the data."""
    original, channels = verdict["series"]["original"], verdict["series"]["channels"]
    lines = []
    for channel in channels:
        told = [(of[channel][key], show) for of in original.values() for key, (_, show) in UNITS.items()]
        lines.append((channel, [Cell(DASH if value is None else show(value)) for value, show in told]))
    return list(original), [title for title, _ in UNITS.values()], lines


def by_seed(seeds: dict[str, Any] | None) -> Lines:
    """A line a seed: distilled, alone, the difference in %."""
    if not seeds:
        return []
    pairs = zip(seeds["seeds"], seeds["distilled"], seeds["alone"], strict=True)
    return [
        (str(seed), [Cell(MSE.show(own), own < other), Cell(MSE.show(other), other < own),
                     Cell(f"{100 * (own / other - 1):+.1f} %")])
        for seed, own, other in pairs
    ]  # fmt: skip


def by_share(share: dict[str, Any] | None) -> Lines:
    """A line for each share of the teacher that was tried; the chosen one is marked."""
    if not share:
        return []
    return [
        (f"{one['share']:g}", [Cell(MSE.show(one["value"]), one["share"] == share["chosen"])])
        for one in share["candidates"]
    ]
