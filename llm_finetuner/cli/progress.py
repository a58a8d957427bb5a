"""Training as it happens: a live view in a terminal, a plain line every few seconds elsewhere."""

import collections
import logging
import sys
import time
import warnings
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_finetuner.cli import imports
from llm_finetuner.cli.console import Screen, evaluated, text
from llm_finetuner.cli.plain import count, duration, listed, size

EVERY = 5.0  # seconds between plain lines
SHOWN = 4  # terms of a loss in one line
BESIDE = 9  # lines of the live view that are no terms
KEPT = 2000  # steps whose losses are drawn
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
ASCII_BLOCKS = "_.-=+*#@"
NOT_TERMS = {
    "step", "epoch", "loss", "teacher_nll", "agreement", "tokens_per_second", "learning_rate", "grad_norm",
    "seconds", "padding",
}  # fmt: skip


def sparkline(values: list[float], width: int, blocks: str = BLOCKS) -> str:
    """At most `width` characters whose heights follow the values; values that are no number are left out."""
    values = [v for v in values if v == v and abs(v) != float("inf")]
    if not values or width < 1:
        return ""
    cells = min(width, len(values))
    edges = [round(i * len(values) / cells) for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def memory() -> str:
    """Peak memory of this process, and of the GPU where one is in use; nothing on Windows, which does not tell."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    used = f", memory {size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}"
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        used += f", GPU {size(torch.cuda.max_memory_allocated())}"
    return used


def quiet_libraries() -> None:
    """No bars for reading files that are on this disk; the hub's bars for downloads stay."""
    imports.wait()
    import datasets
    import transformers
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # theirs, to each other
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    hub_logging.set_verbosity_error()
    enable_progress_bars()


class View:
    """`on_event` of a run. Use as a context manager; `checkpoint` is the newest one written."""

    def __init__(self, screen: Screen):
        self.screen = screen
        self.live = None
        self.checkpoint: str | None = None
        self.resumed_from = 0
        self._reset({})

    def __enter__(self) -> "View":
        quiet_libraries()
        self.screen.say("Loading ...", "dim")
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def _start(self) -> None:
        """From the first step on: while models are loaded, the hub's own bars need the terminal."""
        if self.screen.console.is_terminal and not self.screen.quiet and not self.screen.as_json:
            self.live = Live(
                console=self.screen.console, get_renderable=self.draw, refresh_per_second=4, transient=True
            )
            self.live.start()

    def _stop(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        known = {
            "plan": self._plan, "step": self._step, "evaluation": self._evaluation,
            "checkpoint": self._checkpoint, "note": self._note, "done": self._done, "stage": self._stage,
            "trial": self._trial, "trial_done": self._trial_done, "cache": self._cache,
        }  # fmt: skip
        if kind in known:
            known[kind](record)

    # ---- events

    def _reset(self, plan: dict[str, Any]) -> None:
        self.plan, self.record = plan, {}
        self.read = plan.get("read", "tokens")  # what is counted where speeds are told
        self.history: dict[str, collections.deque] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.started = self.spoke = time.monotonic()
        self.resumed_from = plan.get("resumed_from") or 0

    def _plan(self, plan: dict[str, Any]) -> None:
        self._stop()
        self._reset(plan)
        for words in plan.get("warnings", []):
            self.screen.warn(words)
        share = ""
        if plan.get("trainable_parameters") != plan.get("parameters"):
            share = f" ({count(plan.get('trainable_parameters'))} trained)"
        teacher = f", teacher {count(plan['teacher_parameters'])}" if plan.get("teacher_parameters") else ""
        self.screen.say(
            f"{plan.get('steps')} steps over {plan.get('examples')} examples, "
            f"{count(plan.get('parameters'))} parameters{share}{teacher}, "
            f"{plan.get('device')}, {plan.get('precision')}"
        )
        if plan.get("class_weights"):
            self.screen.say(f"class weights: {listed(plan['class_weights'])}")
        if self.resumed_from:
            self.screen.say(f"resumed from step {self.resumed_from}")
        self._start()

    def _step(self, record: dict[str, Any]) -> None:
        self.record = record
        for name in ("loss", *self._terms(record)):
            self.history.setdefault(name, collections.deque(maxlen=KEPT)).append(float(record[name]))
        if not self.live and not self.screen.quiet and time.monotonic() - self.spoke >= EVERY:
            self.spoke = time.monotonic()
            self.screen.say(self.line())

    def _evaluation(self, record: dict[str, Any]) -> None:
        self.evaluations.append(record)
        if not self.live:
            self.screen.say(f"{evaluation_line(record)}")

    def _checkpoint(self, record: dict[str, Any]) -> None:
        self.checkpoint = str(record.get("path"))

    def _note(self, record: dict[str, Any]) -> None:
        self.screen.say(record.get("text", ""))

    def _stage(self, record: dict[str, Any]) -> None:
        self.checkpoint = None
        self.screen.heading(f"Stage {record['number']} of {record['of']}: student {record['student']}")

    def _trial(self, record: dict[str, Any]) -> None:
        settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
        self.screen.heading(f"Trial {record['number']}: {settings or 'the recipe as given'}")

    def _trial_done(self, record: dict[str, Any]) -> None:
        self._stop()  # one that failed or was given up has no other end
        loss = "" if record["loss"] is None else f", loss {record['loss']:.4f}"
        why = f": {record['error']}" if record["error"] else ""
        self.screen.show(f"trial {record['number']} {record['state']}{loss}{why}")

    def _cache(self, record: dict[str, Any]) -> None:
        whole = record["rows"] == record["of"]
        if not self.screen.quiet and (whole or time.monotonic() - self.spoke >= EVERY):
            self.spoke = time.monotonic()
            self.screen.say(f"{record['rows']:,} of {record['of']:,} rows, {record['tokens']:,} tokens")

    def _done(self, record: dict[str, Any]) -> None:
        if self.live:
            self._stop()
            for evaluation in self.evaluations[-3:]:
                self.screen.say(evaluation_line(evaluation))
        best = f", best at step {record['best_step']}" if record.get("best_step") else ""
        self.screen.show(
            f"done: {record.get('steps')} steps in {duration(record.get('seconds'))}{best}{memory()}, "
            f"saved in {record.get('output')}"
        )
        self._reset({})

    # ---- what is shown

    @staticmethod
    def _terms(record: dict[str, Any]) -> list[str]:
        numbers = {k for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return [name for name in record if name in numbers - NOT_TERMS and not name.startswith("eval_")]

    def eta(self) -> float | None:
        """Seconds left at the pace so far, evaluations included."""
        done = self.record.get("step", 0) - self.resumed_from
        if done < 1 or not self.plan.get("steps"):
            return None
        return (time.monotonic() - self.started) / done * (self.plan["steps"] - self.record["step"])

    def line(self) -> str:
        """The last step in one line."""
        names = self._terms(self.record)
        told = [f"{name} {self.record[name]:.4f}" for name in names[:SHOWN]]
        more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
        terms = ", ".join(told + more)
        speed = self.record.get("tokens_per_second")
        return (
            f"step {self.record.get('step')}/{self.plan.get('steps')}, loss {self.record.get('loss'):.4f}"
            f"{f' ({terms})' if terms else ''}, {count(speed)} {self.read}/s, {duration(self.eta())} left"
        )

    def draw(self) -> Group:
        """The live view: progress, one line a term with its sparkline, the newest evaluations."""
        if not self.record:
            return Group(text(f"first step: {duration(time.monotonic() - self.started)}", "dim"))
        width = self.screen.console.width
        step, steps = self.record["step"], self.plan.get("steps") or self.record["step"]
        speed = count(self.record.get("tokens_per_second"))
        head = f"step {step}/{steps}  epoch {self.record.get('epoch', 0):.2f}  {speed} {self.read}/s"
        blocks = BLOCKS if "utf" in self.screen.console.encoding else ASCII_BLOCKS
        losses = Table.grid(padding=(0, 1))
        losses.add_column(no_wrap=True, overflow="ellipsis")
        losses.add_column(justify="right", no_wrap=True)
        losses.add_column(no_wrap=True, overflow="crop")
        shown_terms = max(self.screen.console.height - BESIDE, SHOWN)
        for name, values in list(self.history.items())[: 1 + shown_terms]:
            style = "bold" if name == "loss" else ""
            line = sparkline(list(values), max(min(width - 32, 40), 4), blocks)
            losses.add_row(Text(name, style), Text(f"{values[-1]:.4f}", style), Text(line, "cyan"))
        hidden = len(self.history) - 1 - shown_terms
        if hidden > 0:
            losses.add_row(Text(f"and {hidden} more", "dim"), Text(), Text())
        tail = f"{duration(self.eta())} left, {duration(time.monotonic() - self.started)} so far{memory()}"
        shown = [text(evaluation_line(record), "green") for record in self.evaluations[-2:]]
        bar = Table.grid()  # by itself it would not end its line
        bar.add_row(ProgressBar(total=steps, completed=step, width=max(min(width - 2, 60), 10)))
        return Group(text(head), bar, text(tail, "dim"), losses, *shown)


def evaluation_line(record: dict[str, Any]) -> str:
    """An evaluation in one line."""
    best = ", the best so far" if record.get("best") else ""
    figures = f"loss {record['eval_loss']:.4f}, {evaluated(record)}"
    return f"evaluation at step {record.get('step')}: {figures}{best}"
