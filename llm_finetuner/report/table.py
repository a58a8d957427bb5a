"""The table of a report: one line a measure, one column a model, so that it reads well on a narrow page too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DASH = "-"
ROLES = {
    "teacher": "teacher",
    "untouched": "student, untouched",
    "distilled": "student, distilled",
    "tuned": "student, tuned",
    "baseline_steps": "plain training, equal steps",
    "baseline_compute": "plain training, equal compute",
}


@dataclass(frozen=True)
class Measure:
    """A line of the table. better: which end is good; within: values this near to the best, as a share, are as good."""

    key: str
    title: str
    show: Callable[[float], str]
    better: str | None = None
    within: float = 0.0


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    below: str = ""  # a second line: an interval


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def decimals(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{count}f}"


def significant(value: float) -> str:
    """Three or four digits: 1,234 | 118.9 | 42.10 | 3.21."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def scaled(unit: str) -> Callable[[float], str]:
    """12345678 -> 12.3 M: powers of 1000."""

    def show(value: float) -> str:
        for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g} {prefix}{unit}"
        return f"{value:.0f} {unit}".strip()

    return show


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
    )


MEASURES = {
    "Quality on held-out rows": (
        Measure("perplexity", "perplexity", significant, "low"),
        Measure("loss", "loss, nats a token", decimals(3), "low"),
        Measure("retained", "performance retained", lambda value: f"{value:.1f} %", "high"),
        Measure("accuracy", "top-1 accuracy", percent, "high"),
        Measure("macro_f1", "macro-F1", decimals(3), "high"),
        Measure("mcc", "Matthews' correlation", decimals(3), "high"),
        Measure("agreement", "agreement with the teacher", percent, "high"),
        Measure("kl_to_teacher", "KL to the teacher, nats a token", decimals(3), "low"),
        Measure("calibration_error", "calibration error", decimals(3), "low"),
    ),
    "Completions": tuple(
        Measure(key, title, decimals(3), "high")
        for key, title in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"))
    ),
    "Size and speed": (
        Measure("parameters", "parameters", scaled(""), "low"),
        Measure("bytes", "weights on disk", scaled("B"), "low"),
        Measure("peak_memory_mb", "memory", lambda value: scaled("B")(value * 1e6), "low"),
        Measure("tokens_per_second", "tokens a second", lambda value: f"{value:,.0f}", "high", 0.1),
        Measure("latency_ms", "latency of a token", lambda value: f"{value:.2f} ms", "low", 0.1),
    ),
    "Training": (
        Measure("steps", "optimizer steps", lambda value: f"{value:,}"),
        Measure("seconds", "time", duration),
    ),
}


def groups(models: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """[(group, [(measure, a cell for each model)])]; a measure that no model has is left out."""
    found = []
    for title, measures in MEASURES.items():
        lines = [(measure.title, _cells(measure, models)) for measure in measures]
        lines = [(name, cells) for name, cells in lines if any(cell.text != DASH for cell in cells)]
        if lines:
            found.append((title, lines))
    return found


def _cells(measure: Measure, models: list[dict[str, Any]]) -> list[Cell]:
    best = _best(measure, [model.get(measure.key) for model in models])
    return [_cell(measure, model, index in best) for index, model in enumerate(models)]


def _cell(measure: Measure, model: dict[str, Any], best: bool) -> Cell:
    value = model.get(measure.key)  # some are of labels alone
    if value is None:
        return Cell(DASH)
    below = ""
    if measure.key == "perplexity" and model["perplexity_low"] is not None:
        below = f"{significant(model['perplexity_low'])} to {significant(model['perplexity_high'])}"
    return Cell(measure.show(value), best, below)


def _best(measure: Measure, values: list[float | None]) -> set[int]:
    """Which values are as good as the best; none where all are, or there is only one."""
    known = {index: value for index, value in enumerate(values) if value is not None}
    if measure.better is None or len(known) < 2:
        return set()
    if measure.better == "low":
        bar = min(known.values())
        good = {index for index, value in known.items() if value <= bar * (1 + measure.within)}
    else:
        bar = max(known.values())
        good = {index for index, value in known.items() if value >= bar * (1 - measure.within)}
    return good if len(good) < len(known) else set()


def differences(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """The paired differences, in words and numbers."""
    return [
        {
            "models": f"{pair['name']} minus {pair['other']}",
            "difference": f"{pair['difference']:+.4f}" if pair["difference"] is not None else DASH,
            "interval": f"{pair['low']:+.4f} to {pair['high']:+.4f}" if pair["low"] is not None else DASH,
            "larger": "yes" if pair["significant"] else "no",
        }
        for pair in verdict["differences"]
    ]
