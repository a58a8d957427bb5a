"""The tables of a report. In that of the models a figure is a line and a model a column, for narrow pages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_finetuner.benchmark.judge import JUDGED

DASH = "-"
ROLES = {
    "teacher": "teacher",
    "untouched": "student, untouched",
    "simple": "learns little or nothing",
    "distilled": "student, distilled",
    "tuned": "student, tuned",
    "baseline_steps": "plain training, equal steps",
    "baseline_compute": "plain training, equal compute",
}


@dataclass(frozen=True)
class Figure:
    """A line of the table. title: {unit} is what the task's measure scores, {read} what a model reads.

    better: which end is good; within: values this near to the best, as a share, are as good.
    """

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


QUALITY, COMPLETIONS, SIZE, TRAINING = (
    "Quality on held-out rows", "Completions", "Size and speed", "Training",
)  # fmt: skip
FIGURES = {
    QUALITY: {
        "nmse_db": Figure("NMSE", lambda value: f"{value:.2f} dB", "low"),
        "psnr": Figure("PSNR of complex numbers", lambda value: f"{value:.1f} dB", "high"),
        "coherence": Figure("coherence with the truth", decimals(3), "high"),
        "mse": Figure("MSE, scaled data", decimals(4), "low"),
        "mae": Figure("MAE, scaled data", decimals(4), "low"),
        "perplexity": Figure("perplexity", significant, "low"),
        "loss": Figure("loss, nats {unit}", decimals(3), "low"),
        "retained": Figure("performance retained", lambda value: f"{value:.1f} %", "high"),
        "accuracy": Figure("top-1 accuracy", percent, "high"),
        "macro_f1": Figure("macro-F1", decimals(3), "high"),
        "micro_f1": Figure("micro-F1", decimals(3), "high"),
        "mcc": Figure("Matthews' correlation", decimals(3), "high"),
        "agreement": Figure("agreement with the teacher", percent, "high"),
        "mse_to_teacher": Figure("MSE to the teacher", decimals(4), "low"),
        "kl_to_teacher": Figure("KL to the teacher, nats {unit}", decimals(3), "low"),
        "calibration_error": Figure("calibration error", decimals(3), "low"),
    },
    COMPLETIONS: {
        "rouge1": Figure("ROUGE-1", decimals(3), "high"),
        "rouge2": Figure("ROUGE-2", decimals(3), "high"),
        "rougeL": Figure("ROUGE-L", decimals(3), "high"),
    },
    SIZE: {
        "parameters": Figure("parameters", scaled(""), "low"),
        "bytes": Figure("weights on disk", scaled("B"), "low"),
        "peak_memory_mb": Figure("memory", lambda value: scaled("B")(value * 1e6), "low"),
        "flops": Figure("FLOPs by {read} read", scaled(""), "low"),
        "tokens_per_second": Figure("{read} a second", lambda value: f"{value:,.0f}", "high", 0.1),
        "latency_ms": Figure("latency", lambda value: f"{value:.2f} ms", "low", 0.1),
    },
    TRAINING: {
        "steps": Figure("optimizer steps", lambda value: f"{value:,}"),
        "seconds": Figure("time", duration),
    },
}


def groups(
    models: list[dict[str, Any]], measure: dict[str, Any]
) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """[(group, [(figure, a cell for each model)])]; a figure that no model has is left out.

    What the task is judged by comes first, then what stands beside it.
    """
    found = []
    for group, figures in FIGURES.items():
        first = [key for key in (measure["key"], *measure["beside"]) if key in figures]
        keys = [key for key in dict.fromkeys([*first, *figures]) if key not in measure["without"]]
        lines = [(_title(key, figures[key], measure), _cells(key, figures[key], models)) for key in keys]
        lines = [(name, cells) for name, cells in lines if any(cell.text != DASH for cell in cells)]
        if lines:
            found.append((group, lines))
    return found


def headline(measure: dict[str, Any]) -> Figure:
    """The figure that the task is judged by."""
    return next(figures[measure["key"]] for figures in FIGURES.values() if measure["key"] in figures)


def _title(key: str, figure: Figure, measure: dict[str, Any]) -> str:
    return measure["name"] if key == measure["key"] else figure.title.format(**measure)


def _cells(key: str, figure: Figure, models: list[dict[str, Any]]) -> list[Cell]:
    best = best_of(figure, [model.get(key) for model in models])
    return [_cell(key, figure, model, index in best) for index, model in enumerate(models)]


def _cell(key: str, figure: Figure, model: dict[str, Any], best: bool) -> Cell:
    value, low = model.get(key), model.get(f"{key}_low")  # some are of some tasks alone
    if value is None:
        return Cell(DASH)
    below = "" if low is None else f"{figure.show(low)} to {figure.show(model[f'{key}_high'])}"
    return Cell(figure.show(value), best, below)


def best_of(figure: Figure, values: list[float | None]) -> set[int]:
    """Which values are as good as the best; none where all are, or there is only one."""
    known = {index: value for index, value in enumerate(values) if value is not None}
    if figure.better is None or len(known) < 2:
        return set()
    if figure.better == "low":
        bar = min(known.values())
        good = {index for index, value in known.items() if value <= bar * (1 + figure.within)}
    else:
        bar = max(known.values())
        good = {index for index, value in known.items() if value >= bar * (1 - figure.within)}
    return good if len(good) < len(known) else set()


def differences(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """The paired differences in the unit that the measure gives them in; p where a test gave one."""
    return [
        {
            "models": f"{pair['name']} against {pair['other']}",
            "difference": _signed(pair["change"]),
            "interval": DASH
            if pair["change_low"] is None
            else f"{_signed(pair['change_low'])} to {_signed(pair['change_high'])}",
            "p": _p(pair.get("p")),
            "larger": "yes" if pair["significant"] else "no",
        }
        for pair in verdict["differences"]
    ]


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def by_label(verdict: dict[str, Any]) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """(the models, [(label, its count, precision, recall and F1 by each of them)]): teacher and what is judged.

    The best F1 of a line is marked.
    """
    if not verdict["labels"]:
        return [], []
    scores = verdict["labels"]["scores"]
    names = [m["name"] for m in verdict["models"] if m["role"] == "teacher" or m["role"] in JUDGED]
    figure, lines = Figure("F1", decimals(3), "high"), []
    for number, label in enumerate(verdict["labels"]["names"]):
        of_models = [scores[name][number] for name in names]
        best = best_of(figure, [score["f1"] for score in of_models])
        cells = []
        for index, score in enumerate(of_models):
            for key in ("precision", "recall", "f1"):
                value = score[key]
                marked = key == "f1" and index in best
                cells.append(Cell(DASH) if value is None else Cell(figure.show(value), marked))
        lines.append((label, f"{of_models[0]['count']:,}", cells))
    return names, lines
