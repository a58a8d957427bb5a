"""What is shown in a terminal, by rich. Nothing a user or a file wrote is read as markup or as a control sequence."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from llm_finetuner.cli import shown
from llm_finetuner.cli.plain import clean, count, shorten, size
from llm_finetuner.errors import FinetunerError

METRICS = (  # key of a model's figures, label, how it is spelled; those that a task is judged by come first
    ("perplexity", "perplexity", "{:.3f}".format),
    ("rouge1", "ROUGE-1", "{:.3f}".format),
    ("rouge2", "ROUGE-2", "{:.3f}".format),
    ("rougeL", "ROUGE-L", "{:.3f}".format),
    ("accuracy", "accuracy", "{:.1%}".format),
    ("nmse_db", "NMSE, dB", "{:.2f}".format),
    ("psnr", "PSNR, dB", "{:.1f}".format),
    ("coherence", "coherence", "{:.3f}".format),
    ("mse", "MSE", "{:.4f}".format),
    ("mae", "MAE", "{:.4f}".format),
    ("macro_f1", "macro-F1", "{:.3f}".format),
    ("micro_f1", "micro-F1", "{:.3f}".format),
    ("mcc", "Matthews' correlation", "{:.3f}".format),
    ("retained", "of the teacher's, %", "{:.1f}".format),
    ("agreement", "agreement", "{:.1%}".format),
    ("calibration_error", "calibration error", "{:.3f}".format),
    ("parameters", "parameters", count),
    ("bytes", "on disk", size),
    ("flops", "FLOPs/token", count),
    ("tokens_per_second", "tokens/s", "{:,.0f}".format),
    ("latency_ms", "latency, ms", "{:.1f}".format),
    ("peak_memory_mb", "memory", lambda megabytes: size(1e6 * megabytes)),
)
WIDE = 200  # characters of a table in a file
MEAN_TOKENS = ("mean_tokens", "tokens a completion", "{:.1f}".format)


def text(words: object, style: str = "") -> Text:
    """Text as it is: no markup, no control sequences."""
    return Text(clean(words), style=style)


class Sheet(Console):
    """A console that says when it writes, because answers above that cannot be erased any more."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown.written()
        super().print(*objects, **options)


class Screen:
    """Where a command writes: results to stdout, or to stdout as one JSON value with all else on stderr."""

    def __init__(self, as_json: bool = False, quiet: bool = False):
        self.as_json, self.quiet = as_json, quiet
        self.console = Sheet(stderr=as_json, highlight=False, markup=False, emoji=False)
        if (
            not self.console.is_terminal
        ):  # rich prints nothing wider than its console, whatever it is asked for
            self.console.width = max(self.console.width, WIDE)

    def result(self, value: Any) -> None:
        """The machine-readable result; nothing without --json."""
        if self.as_json:
            print(json.dumps(value, indent=2, default=str))

    def say(self, words: object = "", style: str = "") -> None:
        """A line for people; --quiet leaves it out."""
        if not self.quiet:
            self.show(words, style)

    def show(self, words: object = "", style: str = "") -> None:
        """A line that --quiet keeps; folded at the width of a terminal only."""
        self.console.print(text(words, style), soft_wrap=not self.console.is_terminal)

    def unfolded(self, words: str) -> None:
        """A line that can be copied: the terminal breaks it, not we."""
        self.console.print(text(words), soft_wrap=True)

    def warn(self, words: object) -> None:
        self.show(f"warning: {words}", "yellow")

    def error(self, error: FinetunerError) -> None:
        self.show(f"error: {error.what}", "red")
        if error.hint:
            self.show(f"  {error.hint}")

    def heading(self, words: str) -> None:
        self.say()
        self.say(words, "bold")

    def facts(self, rows: Iterable[tuple[str, object]]) -> None:
        """Names and values in two columns: results, which --quiet keeps."""
        if self.console.is_terminal:
            self.console.print(facts_table(rows))
            return
        for name, value in rows:
            self.show(f"{name}: {value}")

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Cells under their heads, folded in a terminal: results, which --quiet keeps."""
        table = Table(show_edge=False, pad_edge=False)
        for name in head:
            table.add_column(text(name), overflow="fold")
        for row in rows:
            table.add_row(*map(text, row))
        self.console.print(table)

    def scores(self, figures: dict[str, float], against: str) -> None:
        """How near completions came to references, and to which."""
        spelled = {key: (label, spell) for key, label, spell in (*METRICS, MEAN_TOKENS)}
        self.facts((spelled[key][0], spelled[key][1](value)) for key, value in figures.items())
        self.show(f"scored against {against}")

    def preview(self, rows: list[list[tuple[str, bool]]]) -> None:
        """Rows as the model sees them: what is learned in green, what is only read dim."""
        for number, parts in enumerate(rows, 1):
            line = Text(f"row {number}  ", style="bold")
            for words, counted in parts:
                line.append(clean(words), style="green" if counted else "dim")
            self.console.print(line)
        colours = self.console.color_system is not None and not self.console.no_color
        learned = "".join(clean(words) for parts in rows[:1] for words, counted in parts if counted)
        self.say(
            "green is learned, dim is only read" if colours else f"learned in row 1: {shorten(learned, 200)}"
        )

    def verdict(self, verdict: dict[str, Any]) -> None:
        """The table of models, what was retained, two samples, warnings and the one sentence."""
        models = verdict.get("models", [])
        if models:
            measure = verdict.get("measure", {})
            names = {measure.get("key"): measure.get("name")}
            if "read" in measure:
                names |= {
                    "tokens_per_second": f"{measure['read']}/s",
                    "flops": f"FLOPs/{measure['read'][:-1]}",
                }
            self.console.print(models_table(models, self.console.width, names))
        if "memory" in verdict:
            self.say(f"memory: {verdict['memory']}", "dim")
        if not self.quiet:
            self.samples((verdict.get("samples") or verdict.get("answers") or [])[:2])
        for words in verdict.get("warnings", []):
            self.warn(words)
        self.show(verdict.get("sentence", ""), "bold")

    def samples(self, samples: list[Any]) -> None:
        """Completions, or labels, side by side, one block a prompt or text."""
        for sample in samples:
            pairs = sample.items() if isinstance(sample, dict) else [("sample", sample)]
            flat = [
                (k, w)
                for key, words in pairs
                for k, w in (words.items() if isinstance(words, dict) else [(key, words)])
            ]
            self.say()
            self.facts((name, shorten(words, 400)) for name, words in flat)


def facts_table(rows: Iterable[tuple[str, object]]) -> Table:
    """Names and values in two columns, without lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=False, ratio=None)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(text(name), text(value))
    return table


def models_table(models: list[dict[str, Any]], width: int, names: dict[str, str]) -> Table | Group:
    """Models as columns and figures as rows; one block a model where that does not fit.

    names: of figures that a task gives a name of its own.
    """
    rows = [(names.get(key, label), [figure(m, key, spell) for m in models]) for key, label, spell in METRICS]
    rows = [(label, cells) for label, cells in rows if any(cell != "-" for cell in cells)]
    names = [str(model.get("name", "?")) for model in models]
    if width < 20 + 13 * len(models):
        blocks = []
        for index, name in enumerate(names):
            blocks += [text(name, "bold"), facts_table((label, cells[index]) for label, cells in rows)]
        return Group(*blocks)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(text(name), justify="right", overflow="fold")
    for label, cells in rows:
        table.add_row(text(label), *map(text, cells))
    return table


def evaluated(figures: dict[str, Any]) -> str:
    """What an evaluation found beside the loss, in the words of the task: "accuracy 87.5%"; empty without one."""
    found = ((label, spell, figures.get(f"eval_{key}")) for key, label, spell in METRICS)
    return ", ".join(f"{label} {spell(value)}" for label, spell, value in found if value is not None)


def figure(model: dict[str, Any], key: str, spell) -> str:
    """One cell; what a task is judged by has its 95 % interval."""
    value = model.get(key)
    if value is None:
        return "-"
    low, high = model.get(f"{key}_low"), model.get(f"{key}_high")
    if low is None:
        return spell(value)
    return f"{spell(value)} ({spell(low)}{' to ' if low < 0 else '-'}{spell(high)})"
