"""What a classifier says of a few examples, in the classical form (cat 0.85, dog 0.10, rabbit 0.05), by temperature.

Shapes: n examples, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.ranges import check_number

WIDTH = 100  # columns of the terminal
MOST = 5  # classes with a line of their own; of more, the best of them but one, and "others"
NUMBER = 9  # columns of a probability


def table(
    logits_nC: Tensor,
    names: Sequence[str],
    temperatures: Sequence[float] = (1, 2, 5, 10),
    labels: Tensor | Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Soft labels softmax(logits / T): one {"label": name, "probabilities": {T: {name: probability}}} an example.

    labels: class numbers [n]; the name is None without them, and where one is -100. Names come most probable
    first at T = 1, in float64. Raises ModelError when names and logits differ in number, DataError for a label
    that is no class and for two classes of one name, RecipeError for a temperature that is not above 0.
    """
    if logits_nC.shape[1] != len(names):
        raise ModelError(
            f"the model has {logits_nC.shape[1]} classes, there are {len(names)} names",
            "give one name a class, in the order of the model's label map",
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"two classes are named {twice!r}", "give every class a name of its own")
    for temperature in temperatures:
        check_number("temperature", temperature, 0)
    logits_nC = logits_nC.detach().double().cpu()
    numbers = [-100] * len(logits_nC) if labels is None else torch.as_tensor(labels).tolist()
    softened = {temperature: (logits_nC / temperature).softmax(-1).tolist() for temperature in temperatures}
    rows = []
    for example, (logits_C, number) in enumerate(zip(logits_nC, numbers, strict=True)):
        order = logits_C.argsort(descending=True, stable=True).tolist()  # that of the probabilities at any T
        probabilities = {
            temperature: {names[c]: p_nC[example][c] for c in order} for temperature, p_nC in softened.items()
        }
        rows.append({"label": _name(number, names), "probabilities": probabilities})
    return rows


def render(rows: Sequence[dict[str, Any]], texts: Sequence[str] | None = None) -> str:
    """The rows of `table` in 100 columns: a block an example, a line a class, a column a temperature.

    The frame is ASCII; texts and names keep their letters, without control characters. Beyond nine temperatures
    the lines grow longer than that.
    """
    blocks = [_cells(row) for row in rows]
    temperatures = list(rows[0]["probabilities"]) if rows else []
    room = max(WIDTH - 3 - NUMBER * len(temperatures), 10)
    width = min(max((len(name) for cells in blocks for name, _ in cells), default=0), room)
    lines = []
    for number, (cells, text) in enumerate(zip(blocks, texts or [""] * len(rows), strict=True), 1):
        start = f"{number}. "
        lines.append((start + _line(text, WIDTH - len(start))).rstrip())
        for name, figures in cells:
            numbers = "".join(figure.rjust(NUMBER) for figure in figures)
            lines.append(f"   {_line(name, width).ljust(width)}{numbers}")
        lines.append("")
    return "\n".join(lines[:-1])


def _cells(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """A block's lines: what stands on the left, and one figure a temperature."""
    probabilities = row["probabilities"]
    names = list(next(iter(probabilities.values())))
    shown = names if len(names) <= MOST else names[: MOST - 1]
    label = "no label" if row["label"] is None else f"label: {row['label']}"
    cells = [(label, [f"T = {temperature:g}" for temperature in probabilities])]
    cells += [(name, [f"{p[name]:.3f}" for p in probabilities.values()]) for name in shown]
    rest = names[len(shown) :]
    if rest:
        others = [f"{sum(p[name] for name in rest):.3f}" for p in probabilities.values()]
        cells.append((f"others ({len(rest)})", others))
    return cells


def _name(number: int, names: Sequence[str]) -> str | None:
    if number == -100:
        return None
    if not 0 <= number < len(names):
        raise DataError(
            f"the data has class {number}, the model has classes 0 to {len(names) - 1}",
            "give the model as many classes as the data has",
        )
    return names[number]


def _line(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 3] + "..."
