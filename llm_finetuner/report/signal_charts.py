"""What a report draws of sequences: images of rows, profiles of single rows, responses to a point."""

import base64
from typing import Any

from llm_finetuner.report import svg
from llm_finetuner.report.charts import Chart

IDEAL = "exact matched filter"  # of points without noise
BELOW_PEAK = -50.0  # dB, as far as responses are drawn


def image_charts(verdict: dict[str, Any]) -> list[Chart]:
    """The truth and each answer as a picture, a row a line."""
    told = verdict["signals"]
    image = told["images"]
    if image is None:
        return []
    count, first = image["samples"], told["first"]
    x = svg.Scale(0, count, svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = svg.Scale(0, image["rows"], svg.TOP, svg.HEIGHT - svg.BOTTOM)
    numbered = svg.Scale(first, first + count, x.start, x.end)
    found = []
    for name, grey in image["grey"].items():
        values = base64.b64decode(grey)
        lines = [values[start : start + count] for start in range(0, len(values), count)]
        parts = [*svg.frame(numbered, y, "sample", "row"), svg.pixels(lines, x, y)]
        found.append(Chart(name, svg.drawing(parts, f"Image of {name}")))
    return found


def profile_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """A row as each model answered it, over the truth."""
    told = verdict["signals"]
    title = "dB of the truth's peak" if told["images"] else "units of the data"
    found = []
    for example in told["examples"]:
        values = [value for line in (example["truth"], *example["answers"].values()) for value in line]
        for name, line in example["answers"].items():
            x = svg.scale(
                [told["first"], told["first"] + len(line) - 1], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0
            )
            y = svg.scale(values, svg.HEIGHT - svg.BOTTOM, svg.TOP)
            parts = svg.frame(x, y, "sample", title)
            for kind, of in (("run ideal", example["truth"]), (f"run {colour[name]}", line)):
                points = [(x(told["first"] + step), y(value)) for step, value in enumerate(of)]
                parts.append(svg.path(kind, points))
            says = f"row {example['row']}: {name}"
            found.append(Chart(says, svg.drawing(parts, f"Profile of {says}")))
    return found


def response_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """The response of each model to the same point, over that of the exact matched filter."""
    points = verdict["signals"]["points"]
    if points is None:
        return []
    profiles, found = points["profiles"], []
    offsets = profiles["offsets"]
    x = svg.scale([offsets[0], offsets[-1]], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0)
    y = svg.Scale(BELOW_PEAK, 0.0, svg.HEIGHT - svg.BOTTOM, svg.TOP)
    for name, line in profiles["of"].items():
        if name == "ideal":
            continue
        parts = svg.frame(x, y, "samples from the point", "dB of its own peak")
        for kind, of in ((f"run {colour[name]}", line), ("run ideal", profiles["of"]["ideal"])):
            parts.append(svg.path(kind, [(x(a), y(b)) for a, b in zip(offsets, of, strict=True)]))
        found.append(Chart(name, svg.drawing(parts, f"Response of {name} to a point")))
    return found
