"""The table of a sweep as Markdown: every trial, best first, and what may be said of the winner."""

from pathlib import Path
from typing import Any

from llm_finetuner.benchmark.enough import ENOUGH, SEPARATE, counted, least, told_apart
from llm_finetuner.benchmark.phrases import change
from llm_finetuner.report.table import DASH, duration, headline
from llm_finetuner.report.write import markdown

HEAD = "| | trial | {settings}{loss} | minus the best, 95 % interval | told apart | steps | time | state |"
BELOW = """
Every loss in the table is on the rows that choose; of a trial that did not finish it is the last there was. +- is the
standard deviation over seeds. Told apart: {how} and, with several seeds, the trial
is worse with each of them. The intervals do not know that the best of many was taken.

Each trial's trained model is in its folder; checkpoints are kept of the best and of unfinished trials only.
"""
PAID = {
    "yes": "The search paid: its winner is better than the recipe as given.",
    "no": "The search did not pay: its winner is worse than the recipe as given on rows that chose nothing.",
    "unclear": "That the search paid is not shown.",
}


def write(result: dict[str, Any], folder: str | Path) -> Path:
    """Write folder/sweep.md and return its path."""
    path, span = Path(folder) / "sweep.md", result["report"]["span"]
    path.write_text(
        "\n".join([*_words(result), *_table(result), BELOW.format(how=told_apart(span))]), encoding="utf-8"
    )
    return path


def undecided(result: dict[str, Any]) -> str:
    """How many of the others cannot be told apart from the best, and why where the examples are too few to tell."""
    number = result["best"]["number"]
    also = [line for line in result["trials"] if line["apart"] is False and line["number"] != number]
    said = f"{len(also)} of the others cannot be told apart from the best"
    few = [line for line in also if line["examples"] < least(line["span"])]
    if few:
        examples, span = few[0]["examples"], few[0]["span"]
        needed = f"{SEPARATE} such" if span else f"{ENOUGH}"
        said += f": {counted(examples, span)} chose, and under {needed} no interval is trusted, whatever it leaves out"
    return said


def _table(result: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(name for line in result["trials"] for name in line["values"]))
    settings = "".join(f"{markdown(name)} | " for name in names)
    measure = result["measure"]
    loss = measure["name"] if "loss" in measure["without"] else f"loss, nats {measure['unit']}"
    head = HEAD.format(settings=settings, loss=loss)
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for place, line in enumerate(result["trials"], 1):
        values = line["values"]
        cells = [
            str(place) if line["state"] == "finished" else "",
            f"{line['number']}{' (as given)' if line['given'] else ''}",
            *(DASH if values.get(name) is None else markdown(str(values[name])) for name in names),
            _loss(line),
            _difference(line),
            DASH if line["apart"] is None or line["difference"] == 0 else "yes" if line["apart"] else "no",
            DASH if line["steps"] is None else f"{line['steps']:,}",
            DASH if line["seconds"] is None else duration(line["seconds"]),
            line["state"] + (f": {markdown(line['error'])}" if line["error"] else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _loss(line: dict[str, Any]) -> str:
    if line["loss"] is None:
        return DASH
    return f"{line['loss']:.4f}" + (f" +- {line['sd']:.4f}" if line["sd"] is not None else "")


def _difference(line: dict[str, Any]) -> str:
    if line["low"] is None or line["difference"] == 0:
        return DASH
    return f"{line['difference']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f})"


def _words(result: dict[str, Any]) -> list[str]:
    best, report = result["best"], result["report"]
    winner = " ".join(f"{name}={value}" for name, value in best["settings"].items()) or "nothing changed"
    said = [
        "# Sweep",
        "",
        f"Best: trial {best['number']} ({markdown(winner)}), loss {best['loss']:.4f} on the rows that chose it. "
        f"{undecided(result)}.",
        "",
        _reported(report, best, result["measure"]),
        "",
    ]
    return said + [line for note in result["notes"] for line in (f"- {markdown(note)}", "")]


def _reported(report: dict[str, Any], best: dict[str, Any], measure: dict[str, Any]) -> str:
    where = (
        f"On the same {counted(report['examples'], report['span'])}, so the figure is optimistic"
        if report["optimistic"]
        else f"On {counted(report['examples'], report['span'], 'other held-out ')}, which chose nothing"
    )
    said = f"{where}: {measure['name']} {_shown(report['winner'], measure)}"
    if report["given"] is None:
        return f"{said}. The recipe as given did not finish, so there is nothing to hold it against."
    if best["given"]:
        return f"{said}. The recipe as given is the best of them."
    said += f", the recipe as given {_shown(report['given'], measure)}: the winner's is "
    return f"{said}{change(report['difference'], report['examples'], measure['change_unit'])}. {PAID[report['paid']]}"


def _shown(figures: dict[str, float | None], measure: dict[str, Any]) -> str:
    show, known = headline(measure).show, figures["low"] is not None
    return show(figures[measure["key"]]) + (
        f" ({show(figures['low'])} to {show(figures['high'])})" if known else ""
    )
