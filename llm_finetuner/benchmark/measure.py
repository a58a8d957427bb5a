"""What the models of a task are judged by: one figure, its uncertainty, and how a difference of it is told.

A task names its measure (`Task.measure`); verdicts, reports and displays take all that differs between tasks from
there. Another kind of figure is one function here, and a line in report/table.py and in cli/console.py that says how
it is spelled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_finetuner.benchmark.classes import ALPHA, paired, wilson
from llm_finetuner.benchmark.quality import RESAMPLES, Quality, check_same, paired_difference, percentiles

PAIRED = "95 % interval by a paired bootstrap: both models are resampled with the same examples"
BESIDE = {  # figures of labels
    "macro_f1": "mean F1 of the labels that occur as a target or as an answer",
    "micro_f1": "F1 over all labels of all texts",
    "mcc": "Matthews' correlation of targets and answers (Gorodkin 2004): 0 for answers by chance",
}
OVER_EXAMPLES = f"a bootstrap over examples ({RESAMPLES} resamples)"


@dataclass(frozen=True)
class Measure:
    """The headline of a task.

    interval: of a Quality and a seed, 95 %, (None, None) where there are too few examples. paired: of two Qualities and
    a seed, {difference, low, high, significant} of the first minus the second in any unit, and whatever tests found.
    change: that difference in the unit that is printed, given the second model's value.
    """

    key: str  # among a model's figures; its interval is <key>_low, <key>_high
    name: str  # in sentences, titles and axes
    unit: str  # what is scored one by one: "a token"
    units: str  # "tokens"
    lower: bool  # whether lower is better
    value: Callable[[Quality], float]
    interval: Callable[..., tuple[float | None, float | None]]
    paired: Callable[..., dict[str, Any]]
    change: Callable[[float, float], float]
    change_unit: str  # "%" or "points"
    show: Callable[[float | None], str]
    formulas: dict[str, str] = field(repr=False)  # how its numbers are made, in words
    beside: tuple[str, ...] = ()  # keys of figures that stand next to it
    alone: str = "cross-entropy"  # what a student without a teacher learns from
    off: str = ""  # the setting that turns a teacher off
    without: tuple[str, ...] = ()  # keys of figures that say nothing here
    over: str = "step"  # or epoch: what a report draws training over
    keeps: Callable[[float, float], float | None] | None = None  # in place of the ratio of two figures, in %
    read: str = "tokens"  # what is counted where speeds are measured

    def summary(self, quality: Quality, *, seed: int = 0) -> dict[str, float | int | None]:
        """The headline with its interval, and all other figures."""
        low, high = self.interval(quality, seed=seed)
        found = {self.key: self.value(quality), f"{self.key}_low": low, f"{self.key}_high": high}
        return {**quality.summary(), **found}

    def compare(self, a: Quality, b: Quality, *, seed: int = 0) -> dict[str, Any]:
        """What `paired` finds, with better: whether a is, if only by chance; change, change_low, change_high."""
        pair, other = self.paired(a, b, seed=seed), self.value(b)
        better = -pair["difference"] if self.lower else pair["difference"]
        changes = {
            name: None if pair[key] is None else self.change(pair[key], other)
            for name, key in (("change", "difference"), ("change_low", "low"), ("change_high", "high"))
        }
        return {**pair, "better": better > 0, **changes}

    def rank(self, quality: Quality) -> tuple[float, float]:
        """The least is best: which weights of a run are kept. The figure itself decides, and of equal ones the loss.

        Of labels the loss alone is a bad judge: it rises as a model grows too sure of itself while its answers still
        get better, and weights kept by it were up to 5 points less accurate than others. Accuracy alone is coarse: on
        few rows evaluations tie, and there the loss knows more. Measured by benchmarks/kept_weights.py, docs/log.md.
        """
        value = self.value(quality)
        return (value if self.lower else -value), quality.loss

    def retained(self, value: float, teacher: float) -> float | None:
        """How much of the teacher's figure a model has, in %; None where that is no number."""
        if self.keeps is not None:
            return self.keeps(value, teacher)
        part, whole = (teacher, value) if self.lower else (value, teacher)
        return 100 * (part / whole) if whole else None

    def about(self) -> dict[str, Any]:
        """What is plain data of it, for metrics.json and the report."""
        names = ("key", "name", "unit", "units", "lower", "change_unit", "over", "read")
        lists = {"beside": list(self.beside), "without": list(self.without)}
        return {name: vars(self)[name] for name in names} | lists


def perplexity(unit: str, units: str, name: str = "perplexity") -> Measure:
    """exp(loss): of models whose answers are tokens."""
    return Measure(
        key="perplexity", name=name, unit=unit, units=units, lower=True,
        value=lambda quality: quality.perplexity, interval=Quality.interval, paired=paired_difference,
        change=lambda nats, _other: percent(nats), change_unit="%", show=number,
        formulas={
            "perplexity": f"exp(loss); its 95 % interval is {OVER_EXAMPLES}",
            "differences": f"100 x (exp(loss of one model - loss of another) - 1), {PAIRED}",
            "retained": "100 x exp(loss of the teacher - loss of the model) = 100 x perplexity of the teacher / "
            "perplexity of the model",
        },
    )  # fmt: skip


def accuracy(
    unit: str,
    units: str,
    beside: Sequence[str] = ("macro_f1", "mcc"),
    name: str = "accuracy",
    **formulas: str,
) -> Measure:
    """Share of right answers: of models whose answers are labels."""
    return Measure(
        key="accuracy", name=name, unit=unit, units=units, lower=False,
        value=lambda quality: float(quality.right.sum() / quality.tokens.sum()), interval=_accuracy_interval,
        paired=_accuracies, change=lambda share, _other: 100 * share, change_unit="points", show=_share,
        beside=tuple(beside),
        formulas={
            "accuracy": f"share of the {units} that are answered right; its 95 % interval is Wilson's where an example "
            f"has one answer, else {OVER_EXAMPLES}",
            "differences": f"{name} of one model minus that of another, in points, {PAIRED}. More than its uncertainty "
            f"is what leaves out 0 and has p below {ALPHA} in McNemar's exact test (where an example has several "
            "answers the sign test over examples): the stricter one where few examples tell two models apart",
            "retained": f"100 x {name} of the model / {name} of the teacher; answering by chance retains something too",
            **{key: BESIDE[key] for key in beside},
            **formulas,
        },
    )  # fmt: skip


def _accuracy_interval(quality: Quality, *, seed: int = 0) -> tuple[float | None, float | None]:
    """Weakness: where an example has several answers, the bootstrap gives models without a mistake no width."""
    if quality.tokens.max() > 1:
        return percentiles(quality.right, quality.tokens, RESAMPLES, seed)
    return wilson(quality.right.sum(), quality.tokens.sum())


def _accuracies(a: Quality, b: Quality, *, seed: int = 0) -> dict[str, Any]:
    check_same(a, b)
    return paired(a.right, b.right, a.tokens, seed=seed)


def percent(difference: float) -> float:
    """Change of the perplexity in % that belongs to a difference of the loss in nats."""
    return 100 * math.expm1(min(difference, 100))


def number(value: float | None) -> str:
    """12,345 | 118.9 | 42.10 | 3.21, or that there is none."""
    if value is None or not math.isfinite(value):
        return "beyond measure"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
