"""What a report lists of sequences: likeness of the images, and of radar columns the responses to single points."""

from typing import Any

from llm_finetuner.report.signal_charts import IDEAL
from llm_finetuner.report.table import DASH, Cell, Figure, best_of, decimals

SSIM = Figure("SSIM", decimals(3), "high")
POINTS = {
    "width": Figure("3 dB width, times the ideal", decimals(2)),
    "pslr": Figure("PSLR, dB", decimals(1), "low"),
    "islr": Figure("ISLR, dB", decimals(1), "low"),
    "phase": Figure("phase error, degrees", decimals(1), "low"),
    "location": Figure("off by, samples", decimals(2), "low"),
}
Lines = list[tuple[str, list[Cell]]]


def likeness(verdict: dict[str, Any]) -> tuple[list[str], Lines]:
    """(titles, a line a model): SSIM, and the figures of responses where there are any."""
    told = verdict["signals"]
    points = told["points"]
    columns = {"ssim": SSIM, **(POINTS if points else {})}
    rows = {name: {"ssim": value, **_of(points, name)} for name, value in told["ssim"].items()}
    if points:
        rows = {IDEAL: points["ideal"], **rows}
    lines: Lines = [(name, []) for name in rows]
    for key, figure in columns.items():
        values = [row.get(key) for row in rows.values()]
        best = best_of(figure, [None if name == IDEAL else row.get(key) for name, row in rows.items()])
        for index, value in enumerate(values):
            below = ""
            if key == "width" and value is not None:
                below = f"{list(rows.values())[index]['samples']:.2f} samples"
            lines[index][1].append(
                Cell(DASH) if value is None else Cell(figure.show(value), index in best, below)
            )
    return [figure.title for figure in columns.values()], lines


def _of(points: dict[str, Any] | None, name: str) -> dict[str, float]:
    return {} if points is None else points["of"][name] or {}
