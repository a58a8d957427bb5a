"""What a report draws of forecasters: forecasts with their fans, errors by step, how much intervals cover."""

from collections.abc import Sequence
from typing import Any

from llm_finetuner.report import svg
from llm_finetuner.report.charts import NAMES, Chart, labels, near

LARGEST, LEAST = 20, 2.5  # radius of a bubble
FAN = ("90", "80")  # the wider one lies below
Lines = dict[str, list[tuple[float, float]]]


def example_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """Each example as each model forecast it: what came before, what came, the forecast and its fan."""
    found = []
    for example in verdict["series"]["examples"]:
        values = [*example["context"], *example["truth"]]
        for told in example["forecasts"].values():
            values += [value for line in told.values() for value in line]
        for name, told in example["forecasts"].items():
            drawn = _example(example, told, values, colour[name])
            says = f"Forecast of {example['channel']} by {name}"
            found.append(
                Chart(f"{example['channel']} from {example['begins']}: {name}", svg.drawing(drawn, says))
            )
    return found


def _example(
    example: dict[str, Any], told: dict[str, list[float]], values: Sequence[float], kind: str
) -> list[str]:
    before, ahead = len(example["context"]), len(example["truth"])
    x = svg.scale([-before, ahead - 1], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0)
    y = svg.scale(values, svg.HEIGHT - svg.BOTTOM, svg.TOP)

    def points(line: Sequence[float], first: int) -> list[tuple[float, float]]:
        return [(x(first + step), y(value)) for step, value in enumerate(line)]

    parts = svg.frame(x, y, "steps from the forecast's first", "units of the data")
    for level in FAN:
        if f"lo-{level}" in told:
            ends = (points(told[f"{end}-{level}"], 0) for end in ("hi", "lo"))
            parts.append(svg.area(f"fan {kind}", *ends))
    past = [*example["context"], example["truth"][0]]
    parts.append(svg.path("run past", points(past, -before)))
    parts.append(svg.path("run truth", points(example["truth"], 0)))
    parts.append(svg.path(f"run {kind}", points(told["point"], 0)))
    return parts


def error_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """The error of each step of the horizon, of all models."""
    by_step = verdict["series"]["by_step"]
    lines = {name: list(enumerate(errors, 1)) for name, errors in by_step.items()}
    simple = {model["name"] for model in verdict["models"] if model["role"] == "simple"}
    kinds = {name: f"run {colour[name]}{' thin' if name in simple else ''}" for name in lines}
    title = "MSE by step of the horizon"
    drawn = _lines(lines, kinds, "steps ahead", "MSE, scaled data", log=True)
    return [Chart(title, svg.drawing(drawn, title), "Dashed: models that learn little or nothing.")]


def interval_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """Coverage against what was wanted; coverage and width of 80 % intervals by step."""
    series = verdict["series"]
    if not series["intervals"]:
        return []
    kinds = {name: f"run {colour[name]}" for name in series["intervals"]}
    wanted: Lines = {
        name: [(float(level), 100 * share) for level, share in of.items()]
        for name, of in series["reliability"].items()
    }
    ends = [min(level for level, _ in next(iter(wanted.values()))), 100.0]
    reliable = _lines(wanted, kinds, "percent wanted", "percent covered", mark=True, between=(ends, ends))
    found = [
        ("coverage against what was wanted", reliable, "Dashed: as much as was wanted. Below it, too little.")
    ]
    steps: dict[str, Lines] = {
        figure: {
            name: list(enumerate(of["80"]["by_step"][figure], 1)) for name, of in series["intervals"].items()
        }
        for figure in ("coverage", "width")
    }
    percents = {
        name: [(step, 100 * share) for step, share in line] for name, line in steps["coverage"].items()
    }
    level = ([1.0, float(series["horizon"])], [80.0, 80.0])
    covered = _lines(percents, kinds, "steps ahead", "percent covered", between=level)
    found.append(("coverage of 80 % intervals by step", covered, ""))
    wide = _lines(steps["width"], kinds, "steps ahead", "width, scaled data")
    found.append(("width of 80 % intervals by step", wide, ""))
    return [Chart(title, svg.drawing(drawn, title), note) for title, drawn, note in found]


def bubble_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """Accuracy, latency and size at once: the area of a bubble is the model's parameters."""
    shown, note = near(verdict, "the area of a bubble is the number of parameters")
    shown = [line for line in shown if line["latency_ms"]]
    if not shown:
        return []
    floor, most = svg.HEIGHT - svg.BOTTOM, max(line["parameters"] for line in shown)
    x = svg.scale(
        [line["latency_ms"] for line in shown], svg.LEFT + 30, svg.WIDTH - NAMES - LARGEST, log=True, room=0.1
    )
    y = svg.scale([line["mse"] for line in shown], floor, svg.TOP, room=0.25)
    parts, places = svg.frame(x, y, "milliseconds a window", "MSE, scaled data"), []
    for line in sorted(shown, key=lambda line: -line["parameters"]):
        at, kind, name = (x(line["latency_ms"]), y(line["mse"])), colour[line["name"]], line["name"]
        size = max(LEAST, LARGEST * (line["parameters"] / most) ** 0.5) if most else LEAST
        said = f"{name}: MSE {line['mse']:.4f}, {line['latency_ms']:.2f} ms, {svg.label(line['parameters'])} parameters"
        parts.append(svg.marker("circle", f"bubble {kind}", *at, round(size, 1), said))
        places.append((at[0] + size - 5, at[1], name))
    title = "accuracy, latency and size"
    column = max(right for right, _, _ in places) + 15  # behind all bubbles, so that no name lies on one
    named = labels(places, svg.TOP + 4, floor - 10, column)
    return [Chart(title, svg.drawing(parts + named, title), note)]


def _lines(
    lines: Lines, kinds: dict[str, str], x_title: str, y_title: str, *, log: bool = False, mark: bool = False,
    between: tuple[Sequence[float], Sequence[float]] | None = None,
) -> list[str]:  # fmt: skip
    """Lines by model; between: xs and ys of the ends of a dashed line beside them."""
    xs = [x for line in lines.values() for x, _ in line] + list(between[0] if between else ())
    ys = [y for line in lines.values() for _, y in line] + list(between[1] if between else ())
    x = svg.scale(xs, svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.02)
    y = svg.scale(ys, svg.HEIGHT - svg.BOTTOM, svg.TOP, log=log and svg.spread(ys, 8))
    parts = svg.frame(x, y, x_title, y_title)
    if between:
        parts.append(svg.path("run ideal", [(x(a), y(b)) for a, b in zip(*between, strict=True)]))
    for name, line in lines.items():
        points = [(x(a), y(b)) for a, b in line]
        parts.append(svg.path(kinds[name], points))
        if mark:
            parts += [
                svg.marker("circle", f"dot {kinds[name]}", *point, 3.5, f"{name}: {a:g} % wanted, {b:.1f} % covered")
                for point, (a, b) in zip(points, line, strict=True)
            ]  # fmt: skip
    return parts
