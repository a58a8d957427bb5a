"""Writes a verdict down three times: report.html and report.md for people, metrics.json for programs."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from llm_finetuner.benchmark.judge import JUDGED
from llm_finetuner.benchmark.phrases import listed, times
from llm_finetuner.benchmark.verdict import finite
from llm_finetuner.recipe import Recipe
from llm_finetuner.report import charts, series_charts, series_tables, signal_charts, signal_tables, table

TEMPLATES = Path(__file__).parent / "templates"
BESIDE = ("baseline_steps", "baseline_compute", "untouched")  # the first there is stands beside the student
PAID = {"yes": "It paid", "no": "It did not pay", "unclear": "It is unclear", "unknown": "It is not known"}


def write(
    verdict: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    folder: str | Path,
    recipe: Recipe | None = None,
) -> Path:
    """Write report.html, report.md and metrics.json (the verdict itself) into folder; returns the path of the first.

    histories: {name of the run: its records}, drawn in the colour of the model of that name. The page needs no network
    and no other file; every text in it is escaped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    verdict = finite(verdict)
    content = _content(verdict, histories, recipe)
    for name, escaped in (("report.html", True), ("report.md", False)):
        page = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=escaped, trim_blocks=True, lstrip_blocks=True
        )
        page.filters |= {"md": markdown, "fenced": fenced, "tight": tight}
        (folder / name).write_text(page.get_template(f"{name}.j2").render(content), encoding="utf-8")
    (folder / "metrics.json").write_text(
        json.dumps(verdict, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    return folder / "report.html"


def _content(
    verdict: dict[str, Any], histories: dict[str, list[dict]], recipe: Recipe | None
) -> dict[str, Any]:
    colour = charts.colours(verdict, histories)
    price_charts = series_charts.bubble_charts if verdict["series"] else charts.tradeoff_charts
    measure = verdict["measure"]
    roles = {model["role"] for model in verdict["models"]}
    plain = next((role for role in BESIDE if role in roles), None)
    shown = [m["name"] for m in verdict["models"] if m["role"] in ("teacher", plain, *JUDGED)]
    labelled, labels = table.by_label(verdict)
    return {
        "verdict": verdict,
        "title": title(verdict),
        "question": question(verdict),
        "others": verdict["findings"][1:],
        "compared": compared(verdict),
        "scored": scored(verdict),
        "roles": table.ROLES,
        "groups": table.groups(verdict["models"], measure),
        "dash": table.DASH,
        "differences": table.differences(verdict),
        "forecasts": _forecasts(verdict, colour) if verdict["series"] else None,
        "signals": _signals(verdict, colour) if verdict["signals"] else None,
        "labelled": labelled,
        "labels": labels,
        "colour": colour,
        "runs": [name for name, history in histories.items() if history],
        "by_model": _drawn([charts.model_chart(verdict, colour)]),
        "losses": _drawn(charts.loss_charts(histories, colour, measure)),
        "tradeoffs": _drawn(price_charts(verdict, colour)),
        "samples": [
            (sample, [(name, sample["completions"][name]) for name in shown]) for sample in verdict["samples"]
        ],
        "shown": shown,
        "answers": verdict["answers"],
        "settings": recipe and settings(recipe, verdict.get("share")),
    }


def _forecasts(verdict: dict[str, Any], colour: dict[str, str]) -> dict[str, Any]:
    """What the pages show of forecasters alone."""
    return {
        "shown": list(verdict["series"]["original"]),
        "examples": _drawn(series_charts.example_charts(verdict, colour)),
        "errors": _drawn(series_charts.error_charts(verdict, colour)),
        "intervals": _drawn(series_charts.interval_charts(verdict, colour)),
        "by_channel": series_tables.by_channel(verdict),
        "interval_table": series_tables.intervals(verdict),
        "units": series_tables.in_units(verdict),
        "seeds": series_tables.by_seed(verdict.get("seeds")),
        "shares": series_tables.by_share(verdict.get("share")),
    }


def _signals(verdict: dict[str, Any], colour: dict[str, str]) -> dict[str, Any]:
    """What the pages show of sequences alone."""
    examples = verdict["signals"]["examples"]
    return {
        "shown": list(examples[0]["answers"]),
        "images": _drawn(signal_charts.image_charts(verdict)),
        "profiles": _drawn(signal_charts.profile_charts(verdict, colour)),
        "responses": _drawn(signal_charts.response_charts(verdict, colour)),
        "likeness": signal_tables.likeness(verdict),
        "ideal": signal_charts.IDEAL,
    }


def _drawn(found: list[charts.Chart | None]) -> list[tuple[charts.Chart, Markup]]:
    """The charts there are, with our own drawings, whose texts are escaped in svg.py."""
    return [(chart, Markup(chart.svg)) for chart in found if chart]


def question(verdict: dict[str, Any]) -> str:
    """What the page answers."""
    roles = {model["role"] for model in verdict["models"]}
    return f"Did {'distilling' if 'distilled' in roles or 'untaught' in verdict else 'fine-tuning'} pay?"


def title(verdict: dict[str, Any]) -> str:
    """The answer in a few words, with what it must not be told without: simple models that are better."""
    said, simpler = PAID[verdict["paid"]], verdict["simpler"]
    if "untaught" in verdict:
        said += f": {verdict['untaught']}"
    if simpler:
        join, verb = "and" if verdict["paid"] == "no" else "but", "is" if len(simpler) == 1 else "are"
        said += f", {join} {listed(simpler)} {verb} better"
    return said


def settings(recipe: Recipe, share: dict[str, Any] | None) -> str:
    """The recipe, and above it what was tried where beta was left open."""
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    if not share:
        return text
    tried = ", ".join(f"{one['share']:g}: {one['value']:.4f}" for one in share["candidates"])
    return (
        f"# beta: auto chose a share of {share['chosen']:g} for the teacher, which alpha and beta below come to.\n"
        f"# Validation {share['measure']} of each share that was tried: {tried}\n{text}"
    )


def scored(verdict: dict[str, Any]) -> str:
    """What the models were scored on."""
    units, tokens, examples = verdict["measure"]["units"], verdict["tokens"], verdict["examples"]
    series = verdict["series"]
    if series:
        channels = f"{series['of_channels']} channel{'s' if series['of_channels'] > 1 else ''}"
        return (
            f"Scored on all {examples:,} windows of the test part, {channels}, look-back {series['lookback']}, horizon "
            f"{series['horizon']}; errors are of the scaled data unless said otherwise."
        )
    if tokens == examples:
        return f"Scored on {examples:,} held-out {units}."
    return f"Scored on {tokens:,} {units} of {examples:,} held-out examples."


def compared(verdict: dict[str, Any]) -> str:
    """What the judged student is beside its teacher, in one or two sentences; empty without a teacher."""
    said, ratio = [], verdict["compression"]
    for key, few, many in (
        ("parameters", "as many parameters", "fewer parameters"),
        ("bytes", "the bytes on disk", "fewer bytes on disk"),
    ):
        value = ratio[key]
        if value:  # a teacher that only repeats has no parameters
            said.append(f"{times(max(value, 1 / value))} times {many if value >= 1 else few}")
    if ratio["speed"]:
        said.append(f"{times(ratio['speed'])} times the speed")
    judged = next(model for model in verdict["models"] if model["name"] == verdict["findings"][0]["name"])
    if judged["retained"] is not None:
        kept = "performance" if verdict["measure"]["lower"] else verdict["measure"]["name"]
        said.append(f"{judged['retained']:.1f} % of its {kept}")
    if not said:
        return ""
    text = f"Beside the teacher, {judged['name']} has {', '.join(said[:-1])} and {said[-1]}."
    if verdict["cost"]["ratio"] is not None:
        steps = times(verdict["cost"]["ratio"])
        text += f" A step of distillation takes the compute of {steps} steps of plain training."
    return text


def tight(text: str) -> str:
    """A number and its % stay on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", str(text))
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def fenced(text: str) -> str:
    """A code block, its fence longer than any within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
