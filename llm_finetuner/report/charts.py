"""The charts of a report: what models are judged by (each, over the steps, against size and speed), and each loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_finetuner.registry import OBJECTIVES
from llm_finetuner.report import svg, table

POINTS = 60  # of a line; where a run has more steps, a point is the mean of several
COLOURS = 7  # classes c0 to c6 of the page
LABEL_HEIGHT = 14
NAMES = 185  # room on the right of the last point for its name
OUTSIDE = ("untouched", "simple")  # roles that may be left off a scale
FAR = 3  # one of these that is this many times worse than all others would flatten what is of interest
LONGEST = 28  # characters of a name
SHAPES = {
    "teacher": "square",
    "untouched": "ring",
    "simple": "ring",
    "distilled": "circle",
    "tuned": "circle",
    "baseline_steps": "triangle",
    "baseline_compute": "diamond",
}
NATS = {
    "cross_entropy", "eval_loss", "forward_kl", "reverse_kl", "adaptive_kl", "jsd", "skew_forward_kl",
    "skew_reverse_kl", "span_kl", "attention_kl", "value_relation", "spectrum",
}  # fmt: skip
UNITS = {  # of other terms; else those of the loss
    "hidden_mse": "squared units", "embedding_mse": "squared units", "logit_mse": "squared units",
    "mse": "squared units", "output_mse": "squared units", "multi_scale": "squared units", "pinball": "units",
    "hidden_cosine": "1 - cosine", "cka": "1 - CKA", "loss": "weighted sum of the terms",
}  # fmt: skip
OF_TRUTH = ("cross_entropy", "mse", "pinball")
TITLES = {  # of terms; else their names
    "loss": "weighted total", "eval_loss": "held-out loss", "mse": "error to the truth",
    "output_mse": "error to the teacher", "pinball": "pinball loss to the truth",
}  # fmt: skip
OVER = {"step": "optimizer steps", "epoch": "epochs"}  # what training is drawn over
TICKS = {"accuracy": lambda value: f"{100 * value:.3g} %"}  # else a plain number
ROW, ROOM = 26, 200  # height of a model in the chart by model, and room on its left for their names


@dataclass(frozen=True)
class Chart:
    title: str
    svg: str
    note: str = ""


def colours(verdict: dict[str, Any], histories: dict[str, list[dict]]) -> dict[str, str]:
    """A class of colour for every model and run, the same in all charts."""
    names = list(dict.fromkeys([*(line["name"] for line in verdict["models"]), *histories]))
    return {name: f"c{index % COLOURS}" for index, name in enumerate(names)}


def loss_charts(
    histories: dict[str, list[dict]], colour: dict[str, str], measure: dict[str, Any]
) -> list[Chart]:
    """What is judged by, as it was evaluated, and each term of the loss, as it was trained on.

    Evaluations of the loss stand where cross-entropy does.
    """
    records = [record for history in histories.values() for record in history]
    named = dict.fromkeys(key for record in records for key in record if key in OBJECTIVES or ":" in key)
    terms = sorted(named, key=lambda term: term not in OF_TRUTH)
    held_out = any(_known(record, "eval_loss") for record in records)
    if held_out and "cross_entropy" not in terms and "loss" not in measure["without"]:
        terms.insert(0, "eval_loss")
    if terms not in (["cross_entropy"], ["mse"], ["pinball"]):
        terms.append("loss")
    charts = [_headline_chart(histories, colour, measure)]
    charts += [_loss_chart(term, histories, colour, measure) for term in terms]
    return [chart for chart in charts if chart]


def _headline_chart(histories: dict, colour: dict[str, str], measure: dict[str, Any]) -> Chart | None:
    key, name, over = f"eval_{measure['key']}", measure["name"], measure["over"]
    dots = {run: [(r[over], r[key]) for r in of_run if _known(r, key)] for run, of_run in histories.items()}
    if not any(dots.values()):
        return None
    ticks, show = TICKS.get(measure["key"], svg.label), table.headline(measure).show
    drawn = _over_time(over, dots, dots, colour, name, ticks, lambda value: f"{name} {show(value)}")
    return Chart(name, svg.drawing(drawn, f"{name} over {OVER[over]}"), "Held-out rows.")


def _loss_chart(
    term: str, histories: dict[str, list[dict]], colour: dict[str, str], measure: dict[str, Any]
) -> Chart | None:
    lines, dots, over = {}, {}, measure["over"]
    for name, history in histories.items():
        known = [(record[over], record[term]) for record in history if _known(record, term)]
        lines[name] = thinned(known) if term != "eval_loss" else []
        evaluated = term in ("cross_entropy", "eval_loss")
        dots[name] = [(r[over], r["eval_loss"]) for r in history if evaluated and _known(r, "eval_loss")]
    if not any(lines.values()) and not any(dots.values()):
        return None
    y_title = f"nats {measure['unit']}" if term in NATS else UNITS.get(term, "loss")
    drawn = _over_time(over, lines, dots, colour, y_title, svg.label, "held-out loss {:.4g}".format)
    note = {
        "cross_entropy": "Lines: training batches. Dots: held-out rows." if any(dots.values()) else "",
        "eval_loss": "Held-out rows.",
        "loss": "What was differentiated. Runs with other weights are not comparable here.",
    }
    title = TITLES.get(term, term.replace("_", " "))
    return Chart(title, svg.drawing(drawn, f"{title} over {OVER[over]}"), note.get(term, ""))


def _over_time(
    over: str, lines: dict[str, list], dots: dict[str, list], colour: dict[str, str], y_title: str,
    ticks: Callable[[float], str], said: Callable[[float], str],
) -> list[str]:  # fmt: skip
    """Lines and dots (step or epoch, height) of every run. said: of a dot, for its tooltip."""
    points = [point for found in (*lines.values(), *dots.values()) for point in found]
    heights = [height for _step, height in points]
    floor = svg.HEIGHT - svg.BOTTOM
    x = svg.scale([0, max(step for step, _ in points)], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.0)
    y = svg.scale(heights, floor, svg.TOP, log=svg.spread(heights, 8))
    parts = svg.frame(x, y, OVER[over], y_title, ticks)
    for name, found in lines.items():
        if found:
            parts.append(svg.path(f"run {colour[name]}", [(x(step), y(height)) for step, height in found]))
    for name, found in dots.items():
        for step, height in found:
            tip = f"{name}, {over} {step:g}: {said(height)}"
            parts.append(svg.marker("circle", f"dot {colour[name]}", x(step), y(height), 3.5, tip))
    return parts


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


def model_chart(verdict: dict[str, Any], colour: dict[str, str]) -> Chart | None:
    """What is judged by, of each model, with its interval: one below the other."""
    lines, note = near(verdict)
    if not lines:
        return None
    measure = verdict["measure"]
    key, show = measure["key"], table.headline(measure).show
    ends = _ends(lines, key)
    floor = svg.TOP + ROW * len(lines)
    x = svg.scale(ends, ROOM, svg.WIDTH - svg.RIGHT - 50, log=svg.spread(ends, 5), room=0.1)
    parts = svg.floor(x, floor, measure["name"], TICKS.get(key, svg.label), left=ROOM)
    for index, line in enumerate(lines):
        y, kind = svg.TOP + ROW * (index + 0.5), colour[line["name"]]
        if _known(line, f"{key}_low"):
            parts.append(svg.line(f"bar {kind}", x(line[f"{key}_low"]), y, x(line[f"{key}_high"]), y))
        parts.append(svg.marker(SHAPES[line["role"]], f"point {kind}", x(line[key]), y, 5))
        parts.append(svg.text(ROOM - 12, y + 4, _short(line["name"]), "name", "end"))
        parts.append(svg.text(svg.WIDTH - svg.RIGHT, y + 4, show(line[key]), "tick", "end"))
    return Chart(measure["name"], svg.drawing(parts, f"{measure['name']} by model", floor + svg.BOTTOM), note)


def tradeoff_charts(verdict: dict[str, Any], colour: dict[str, str]) -> list[Chart]:
    """What is judged by, of each model, against its parameters and against its speed."""
    shown, note = near(verdict)
    size = _tradeoff(shown, "parameters", "parameters", colour, verdict["measure"])
    read = f"{verdict['measure']['read']} a second"
    speed = _tradeoff(shown, "tokens_per_second", read, colour, verdict["measure"])
    found = [("quality against size", size), ("quality against speed", speed)]
    return [Chart(title, drawn, note) for title, drawn in found if drawn]


def near(verdict: dict[str, Any], marks: str = "bars are 95 % intervals") -> tuple[list[dict], str]:
    """The models that fit on one scale, and what to say below it. marks: what is drawn, in words."""
    measure = verdict["measure"]
    key, lower, show = measure["key"], measure["lower"], table.headline(measure).show
    lines = [line for line in verdict["models"] if _known(line, key)]
    bad = {
        line["name"]: line[key] if lower else 1 - line[key] for line in lines
    }  # of a share: what is missed
    worst = max((bad[line["name"]] for line in lines if line["role"] not in OUTSIDE), default=0)
    far = [line for line in lines if line["role"] in OUTSIDE and bad[line["name"]] > FAR * worst > 0]
    name = measure["name"][:1].upper() + measure["name"][1:]
    note = f"{name}, {'lower' if lower else 'higher'} is better; {marks}."
    for line in far:
        note += f" Off the scale: {line['name']}, {show(line[key])}."
    return [line for line in lines if line not in far], note


def _ends(lines: list[dict], key: str) -> list[float]:
    return [line[k] for line in lines for k in (key, f"{key}_low", f"{key}_high") if _known(line, k)]


def _tradeoff(
    lines: list[dict], price: str, title: str, colour: dict[str, str], measure: dict[str, Any]
) -> str | None:
    shown = [line for line in lines if _known(line, price) and line[price]]  # a scale of powers has no 0
    if not shown:
        return None
    key, name, show = measure["key"], measure["name"], table.headline(measure).show
    ends = _ends(shown, key)
    floor = svg.HEIGHT - svg.BOTTOM
    x = svg.scale([line[price] for line in shown], svg.LEFT + 10, svg.WIDTH - NAMES, log=True, room=0.1)
    y = svg.scale(ends, floor, svg.TOP, log=svg.spread(ends, 5), room=0.1)
    parts = svg.frame(x, y, title, name, TICKS.get(key, svg.label))
    for line in shown:
        at, kind = x(line[price]), colour[line["name"]]
        if _known(line, f"{key}_low"):
            parts.append(svg.line(f"bar {kind}", at, y(line[f"{key}_low"]), at, y(line[f"{key}_high"])))
        said = f"{line['name']}: {name} {show(line[key])}, {title} {svg.label(line[price])}"
        parts.append(svg.marker(SHAPES[line["role"]], f"point {kind}", at, y(line[key]), 5, said))
    places = [(x(line[price]), y(line[key]), line["name"]) for line in shown]
    return svg.drawing(parts + labels(places, svg.TOP + 4, floor - 10), f"{name} against {title}")


def labels(
    places: list[tuple[float, float, str]], top: float, floor: float, column: float | None = None
) -> list[str]:
    """Names on the right of their points (x, y, name), or all at `column`, up or down where they would overlap."""
    parts = []
    places = sorted(places, key=lambda place: place[1])
    for (x, y, name), height in zip(places, apart([y for _x, y, _name in places], top, floor), strict=True):
        at = x + 15 if column is None else column
        if abs(height - y) > 3 or column is not None:
            parts.append(svg.line("leader", x + 5, y, at - 2, height))
        parts.append(svg.text(at, height + 4, _short(name), "name"))
    return parts


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 2] + ".."


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
