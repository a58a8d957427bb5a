"""The charts of a report: each loss over the steps, and quality against size and against speed."""

from dataclasses import dataclass
from typing import Any

from llm_finetuner.registry import OBJECTIVES
from llm_finetuner.report import svg

POINTS = 60  # of a line; where a run has more steps, a point is the mean of several
COLOURS = 7  # classes c0 to c6 of the page
LABEL_HEIGHT = 14
NAMES = 185  # room on the right of the last point for its name
FAR = 3  # an untouched student this many times worse than all others would flatten what is of interest
LONGEST = 28  # characters of a name
SHAPES = {
    "teacher": "square",
    "untouched": "ring",
    "distilled": "circle",
    "tuned": "circle",
    "baseline_steps": "triangle",
    "baseline_compute": "diamond",
}
UNITS = {"hidden_mse": "squared units", "hidden_cosine": "1 - cosine"}  # else nats a token


@dataclass(frozen=True)
class Chart:
    title: str
    svg: str
    note: str = ""


def colours(verdict: dict[str, Any], histories: dict[str, list[dict]]) -> dict[str, str]:
    """A class of colour for every model and run, the same in all charts."""
    names = list(dict.fromkeys([*(line["name"] for line in verdict["models"]), *histories]))
    return {name: f"c{index % COLOURS}" for index, name in enumerate(names)}


def loss_charts(histories: dict[str, list[dict]], colour: dict[str, str]) -> list[Chart]:
    """One chart for each term of the loss, as it was trained on; evaluations stand where cross-entropy does."""
    records = [record for history in histories.values() for record in history]
    named = dict.fromkeys(key for record in records for key in record if key in OBJECTIVES or ":" in key)
    terms = sorted(named, key=lambda term: term != "cross_entropy")
    held_out = any(_known(record, "eval_loss") for record in records)
    if held_out and "cross_entropy" not in terms:
        terms.insert(0, "eval_loss")
    if terms != ["cross_entropy"]:
        terms.append("loss")
    charts = [_loss_chart(term, histories, colour) for term in terms]
    return [chart for chart in charts if chart]


def _loss_chart(term: str, histories: dict[str, list[dict]], colour: dict[str, str]) -> Chart | None:
    lines, dots = {}, {}
    for name, history in histories.items():
        known = [(record["step"], record[term]) for record in history if _known(record, term)]
        lines[name] = thinned(known) if term != "eval_loss" else []
        evaluated = term in ("cross_entropy", "eval_loss")
        dots[name] = [(r["step"], r["eval_loss"]) for r in history if evaluated and _known(r, "eval_loss")]
    points = [point for found in (*lines.values(), *dots.values()) for point in found]
    if not points:
        return None
    heights = [height for _step, height in points]
    floor = svg.HEIGHT - svg.BOTTOM
    x = svg.scale([0, max(step for step, _ in points)], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0)
    y = svg.scale(heights, floor, svg.TOP, log=svg.spread(heights, 8))
    parts = svg.frame(x, y, "optimizer steps", "nats a token" if term not in UNITS else UNITS[term])
    for name, found in lines.items():
        if found:
            parts.append(svg.path(f"run {colour[name]}", [(x(step), y(height)) for step, height in found]))
    for name, found in dots.items():
        for step, height in found:
            said = f"{name}, step {step}: held-out loss {height:.4g}"
            parts.append(svg.marker("circle", f"dot {colour[name]}", x(step), y(height), 3.5, said))
    note = {
        "cross_entropy": "Lines: training batches. Dots: held-out rows." if any(dots.values()) else "",
        "eval_loss": "Held-out rows.",
        "loss": "What was differentiated. Runs with other weights are not comparable here.",
    }
    title = {"loss": "weighted total", "eval_loss": "held-out loss"}.get(term, term.replace("_", " "))
    return Chart(title, svg.drawing(parts, f"{title} over optimizer steps"), note.get(term, ""))


def _known(record: dict, key: str) -> bool:
    value = record.get(key)
    return value is not None and abs(value) < float("inf")  # NaN compares false


def thinned(points: list[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of as many neighbours."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(s for s, _ in group) / len(group), sum(h for _, h in group) / len(group)) for group in groups
    ]


def tradeoff_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """Perplexity of each model against its parameters and against its speed."""
    lines = [line for line in verdict["models"] if _known(line, "perplexity")]
    worst = max((line["perplexity"] for line in lines if line["role"] != "untouched"), default=0)
    far = [line for line in lines if line["role"] == "untouched" and line["perplexity"] > FAR * worst > 0]
    near = [line for line in lines if line not in far]
    size = _tradeoff(near, "parameters", "parameters", colour)
    speed = _tradeoff(near, "tokens_per_second", "tokens a second", colour)
    found = [("quality against size", size), ("quality against speed", speed)]
    note = "Perplexity, lower is better; bars are 95 % intervals."
    for line in far:
        note += f" Off the scale: {line['name']}, {line['perplexity']:,.0f}."
    return [Chart(title, drawn, note) for title, drawn in found if drawn]


def _tradeoff(lines: list[dict], key: str, title: str, colour: dict[str, str]) -> str | None:
    shown = [line for line in lines if _known(line, key)]
    if not shown:
        return None
    ends = [
        line[k]
        for line in shown
        for k in ("perplexity", "perplexity_low", "perplexity_high")
        if _known(line, k)
    ]
    floor = svg.HEIGHT - svg.BOTTOM
    x = svg.scale([line[key] for line in shown], svg.LEFT + 10, svg.WIDTH - NAMES, log=True, room=0.1)
    y = svg.scale(ends, floor, svg.TOP, log=svg.spread(ends, 5), room=0.1)
    parts = svg.frame(x, y, title, "perplexity")
    for line in shown:
        at, kind = x(line[key]), colour[line["name"]]
        if _known(line, "perplexity_low"):
            parts.append(
                svg.line(f"bar {kind}", at, y(line["perplexity_low"]), at, y(line["perplexity_high"]))
            )
        said = f"{line['name']}: perplexity {line['perplexity']:.4g}, {title} {svg.label(line[key])}"
        parts.append(svg.marker(SHAPES[line["role"]], f"point {kind}", at, y(line["perplexity"]), 5, said))
    places = [(x(line[key]), y(line["perplexity"]), line["name"]) for line in shown]
    return svg.drawing(parts + _labels(places, svg.TOP + 4, floor - 10), f"perplexity against {title}")


def _labels(places: list[tuple[float, float, str]], top: float, floor: float) -> list[str]:
    """Names on the right of their points, moved up or down where they would overlap."""
    parts = []
    places = sorted(places, key=lambda place: place[1])
    for (x, y, name), height in zip(places, apart([y for _x, y, _name in places], top, floor), strict=True):
        if abs(height - y) > 3:
            parts.append(svg.line("leader", x + 5, y, x + 13, height))
        short = name if len(name) <= LONGEST else name[: LONGEST - 2] + ".."
        parts.append(svg.text(x + 15, height + 4, short, "name"))
    return parts


def apart(heights: list[float], top: float, floor: float) -> list[float]:
    """Sorted heights, moved as little as keeps them LABEL_HEIGHT apart and, if they fit, within top..floor."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LABEL_HEIGHT) if moved else max(height, top))
    limit = floor
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - LABEL_HEIGHT
    return moved
