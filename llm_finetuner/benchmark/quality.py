"""Quality on held-out rows: loss, perplexity and its interval, accuracy, calibration, agreement with a teacher.

Shapes: E examples, N positions that count, n of them at once, D hidden width, V vocabulary, R resamples.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.benchmark.enough import CRITICAL, RUN, SEPARATE
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.objectives.supervised import cross_entropy
from llm_finetuner.output import Output, Want, moved
from llm_finetuner.teachers.provider import Provider

POSITIONS = 256  # logits of this many positions exist at a time
BINS = 15  # of equal width, Guo et al. 2017 (arXiv 1706.04599)
RESAMPLES = 2000
DRAWS_AT_ONCE = 2**22  # resampled example numbers in memory


@dataclass(frozen=True)
class Quality:
    """What one pass over the rows found; sums are kept by example, so that models can be compared in pairs."""

    nll: np.ndarray  # [E] float64, loss summed over the counted positions of an example: nats
    tokens: np.ndarray  # [E] counted positions: tokens, texts, tagged words
    accuracy: float | None = None  # share of positions whose most probable answer is the target
    calibration_error: float | None = None  # expected calibration error of its probability, in [0, 1]
    agreement: float | None = None  # share of positions where student and teacher give the same answer
    kl_to_teacher: float | None = None  # KL(teacher || student), nats a position, at temperature 1
    right: np.ndarray | None = None  # [E] positions answered right
    figures: dict[str, float] = field(default_factory=dict)  # that only some tasks have: macro_f1, mcc
    per_label: list[dict] | None = None  # precision, recall, f1 and count of each label
    energy: np.ndarray | None = (
        None  # [E] of the truth, summed as the loss is, where errors are held against it
    )
    span: int = (
        0  # windows of so many steps overlap, so neighbours depend on each other; 0: examples are independent
    )

    @property
    def loss(self) -> float:
        """Nats a position, over all that count: not a mean of means."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss >= 700 else math.exp(self.loss)  # NaN stays NaN

    def interval(self, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float | None, float | None]:
        """95 % interval of the perplexity over examples: see `interval_of`, also for when it is (None, None)."""
        low, high = self.loss_interval(resamples=resamples, seed=seed)
        return (None, None) if low is None else (float(np.exp(low)), float(np.exp(high)))

    def loss_interval(
        self, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> tuple[float | None, float | None]:
        """The same of the loss."""
        return interval_of(self.nll, self.tokens, resamples, seed, self.span)

    def summary(self) -> dict[str, float | int | None]:
        """The figures that do not hang on how a task is judged; its Measure adds that one, with its interval."""
        return {
            "loss": self.loss,
            "tokens": int(self.tokens.sum()),
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            "agreement": self.agreement,
            "kl_to_teacher": self.kl_to_teacher,
            **self.figures,
        }


def evaluate(
    task: Any,
    model: nn.Module,
    rows: Sequence[dict],
    *,
    batch_size: int = 8,
    teacher: nn.Module | Provider | None = None,
    vocabulary: int | None = None,
) -> Quality:
    """Score one model on prepared rows; see `evaluate_all`."""
    options = {"batch_size": batch_size, "teacher": teacher, "vocabulary": vocabulary}
    return evaluate_all(task, {"model": model}, rows, **options)["model"]


@torch.no_grad()
def evaluate_all(
    task: Any,
    models: dict[str, nn.Module],
    rows: Sequence[dict],
    *,
    batch_size: int = 8,
    teacher: nn.Module | Provider | None = None,
    vocabulary: int | None = None,
    tally: Callable[[int, nn.Module], Any] | None = None,
) -> dict[str, Any]:
    """Score several models on the same rows, with one pass of the teacher for all of them: {name: its Quality}.

    Where the teacher is a Provider that gives the answers of one of the models, that one is scored on what it gives.
    `vocabulary` is the number of tokens that are real: logits of padded columns beyond it are left out on both
    sides. tally: made for (examples, model), what sums up in place of the task's own. Raises DataError when no token
    counts, ModelError when a model's vocabulary is not as wide as the teacher's (of numbers it may be).
    """
    tally = tally or functools.partial(task.tally, teacher=teacher)
    tallies = {name: tally(len(rows), model) for name, model in models.items()}
    order = np.argsort(-task.lengths(rows), kind="stable").tolist()
    heard = isinstance(teacher, Provider)
    view = teacher.view if heard else lambda logits_nV: logits_nV
    answered = teacher.model if heard else teacher
    with eval_mode(*models.values(), *([] if heard or teacher is None else [teacher])):
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            batch = task.collate([rows[index] for index in picked])
            said = _answer(task, teacher, batch, models) if teacher else None
            for name, model in models.items():
                output = said if model is answered else _run(task, model, batch)
                numbers = torch.tensor(picked)[output.examples.cpu()]
                _score(output, said, numbers, tallies[name], vocabulary, view)
    return {name: tally.quality(teacher is not None) for name, tally in tallies.items()}


def _answer(task: Any, teacher: nn.Module | Provider, batch: dict[str, Tensor], models: dict) -> Output:
    """What the teacher says, on the device of the first model."""
    if isinstance(teacher, Provider):
        device = next(next(iter(models.values())).parameters()).device
        return teacher(moved(batch, device), Want())
    return _run(task, teacher, batch)


def _run(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> Output:
    device = next(model.parameters()).device
    return task.run(model, moved(batch, device), Want())


def _score(
    student: Output,
    teacher: Output | None,
    examples: Tensor,
    tally: "Tally",
    vocabulary: int | None,
    view: Callable[[Tensor], Tensor],
) -> None:
    """Add one batch to a tally, a slice of positions at a time; examples [N] numbers the rows."""
    for start in range(0, len(student.rows), POSITIONS):
        part = slice(start, start + POSITIONS)
        logits_nV = student.head(student.rows[part])[:, :vocabulary]
        targets_nC = student.targets[part].reshape(len(logits_nV), -1)
        told_n = ~targets_nC.isnan().any(1) if student.numbers else targets_nC.amax(1) >= 0
        targets = student.targets[part][told_n]
        tally.add(*_in_units(student, part, told_n, logits_nV[told_n], targets), examples[part][told_n.cpu()])
        if teacher is not None:
            teacher_nC = teacher.head(teacher.rows[part])[:, :vocabulary].to(logits_nV.device)
            shared_nC = view(logits_nV)
            if teacher_nC.shape != shared_nC.shape and not student.numbers:
                raise ModelError(
                    f"the teacher has {teacher_nC.shape[1]} tokens, the student {shared_nC.shape[1]}",
                    "pass vocabulary= the number of tokens of the tokenizer that they share",
                )
            known_n = None if teacher.known is None else teacher.known[part]
            tally.hear(*_in_units(student, part, slice(None), shared_nC, teacher_nC), known_n)


def _in_units(student: Output, part: slice, picked: Tensor | slice, *numbers: Tensor) -> tuple[Tensor, ...]:
    """Numbers [n, V] of these positions in the units of the data; what has no scale stays as it is."""
    if student.scale is None:
        return numbers
    return tuple(x_nV * student.scale[part][picked] for x_nV in numbers)


class Tally:
    """Running sums in float64, on the CPU."""

    def __init__(self, examples: int, confusion: Any = None):
        """confusion: counts answers by label, where the task has labels (benchmark/classes.py)."""
        self.confusion = confusion
        self.nll = torch.zeros(examples, dtype=torch.float64)
        self.tokens = torch.zeros(examples, dtype=torch.long)
        self.right = torch.zeros(examples, dtype=torch.long)
        self.hits = torch.zeros(BINS, dtype=torch.float64)  # right answers of each bin of confidence
        self.confidence = torch.zeros(BINS, dtype=torch.float64)  # their summed confidence
        self.heard = 0  # positions that the teacher answered
        self.agreed = 0.0
        self.kl = 0.0

    def add(self, logits_nV: Tensor, targets_n: Tensor, examples_n: Tensor) -> None:
        if self.confusion is not None:
            self.confusion.add(logits_nV, targets_n)
        nll_n = cross_entropy(logits_nV, targets_n).double().cpu()
        top_n, said_n = logits_nV.max(-1)
        at_target_n = logits_nV.gather(-1, targets_n[:, None])[:, 0]
        # log p(top) = top - logsumexp, and logsumexp = nll + logit of the target: no second softmax
        confidence_n = (top_n.double().cpu() - at_target_n.double().cpu() - nll_n).exp().clamp(0, 1)
        right_n = (said_n == targets_n).cpu()
        self.nll.index_add_(0, examples_n, nll_n)
        self.tokens.index_add_(0, examples_n, torch.ones_like(examples_n))
        self.right.index_add_(0, examples_n, right_n.long())
        bin_n = (confidence_n * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # bins are (low, high]
        self.hits.index_add_(0, bin_n, right_n.double())
        self.confidence.index_add_(0, bin_n, confidence_n)

    def hear(self, shared_nC: Tensor, teacher_nC: Tensor, known_n: Tensor | None) -> None:
        """What the teacher says of the same positions, where it says anything."""
        known_n = torch.ones(len(shared_nC), dtype=torch.bool) if known_n is None else known_n.cpu()
        agreed_n = (shared_nC.argmax(-1) == teacher_nC.argmax(-1)).cpu()
        self.heard += int(known_n.sum())
        self.agreed += float(agreed_n[known_n].sum())
        self.kl += float(forward_kl(shared_nC, teacher_nC).double().cpu()[known_n].sum())

    def quality(self, with_teacher: bool) -> Quality:
        count = int(self.tokens.sum())
        if not count:
            raise DataError(
                "no token of these rows counts", "their labels are all -100, or there are no rows"
            )
        labels = self.confusion
        return Quality(
            nll=self.nll.numpy(),
            tokens=self.tokens.numpy(),
            accuracy=float(self.hits.sum()) / count,
            calibration_error=float((self.hits - self.confidence).abs().sum()) / count,
            agreement=self.agreed / max(1, self.heard) if with_teacher else None,
            kl_to_teacher=self.kl / max(1, self.heard) if with_teacher else None,
            right=self.right.numpy(),
            figures={} if labels is None else {"macro_f1": labels.macro_f1, "mcc": labels.mcc},
            per_label=None if labels is None else labels.per_class(),
        )


def paired_difference(
    a: Quality, b: Quality, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float | bool | None]:
    """Loss of a minus loss of b, nats a token, with a 95 % interval over examples (`interval_of`).

    Of each example the difference is taken, so what makes it hard for both cancels. significant: the interval leaves
    out 0; low, high: None where there are too few examples for one, and nothing is significant. Raises
    ValueError unless both were scored on the same tokens.
    """
    check_same(a, b)
    low, high = interval_of(a.nll - b.nll, a.tokens, resamples, seed, a.span)
    significant = low is not None and (low > 0 or high < 0)
    return {"difference": a.loss - b.loss, "low": low, "high": high, "significant": significant}


def check_same(a: Quality, b: Quality) -> None:
    """Raise ValueError unless both were scored on the same positions."""
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("a paired difference needs two models scored on the same tokens")


def interval_of(
    sums: np.ndarray, tokens: np.ndarray, resamples: int, seed: int, span: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of sum(sums) / sum(tokens): [E], [E] -> two numbers; (None, None) with too few examples.

    By a bootstrap of examples, or, where windows of `span` steps overlap, from the means of runs of neighbours.
    """
    return of_runs(sums, tokens, span) if span else percentiles(sums, tokens, resamples, seed)


def of_runs(sums: np.ndarray, tokens: np.ndarray, span: int) -> tuple[float, float] | tuple[None, None]:
    """Student's t interval from the means of 4 to 8 equally long runs of neighbours, each of at least RUN spans.

    Means of long runs are all but independent however neighbours depend on each other, and t makes up for their small
    number (Ibragimov and Mueller 2010, doi 10.1198/jbes.2009.08046). A bootstrap of blocks of a span calls noise a
    difference in a fifth of all cases: such a block holds two thirds of the variance. (None, None) for fewer runs.
    """
    if len(sums) < SEPARATE * span:
        return None, None
    runs = min(max(CRITICAL), len(sums) // (RUN * span))
    ratio = sums.sum() / tokens.sum()
    means = [run.mean() for run in np.array_split((sums - ratio * tokens) / tokens.mean(), runs)]
    margin = CRITICAL[runs] * np.std(means, ddof=1) / math.sqrt(runs)
    return float(ratio - margin), float(ratio + margin)


def percentiles(
    sums: np.ndarray, tokens: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """2.5 % and 97.5 % of sum(sums) / sum(tokens) over resampled independent examples: [E], [E] -> two numbers.

    (None, None) with fewer than two examples that count.
    """
    counted = tokens > 0
    sums, tokens = sums[counted], tokens[counted]
    if len(sums) < 2:
        return None, None
    random = np.random.default_rng(seed)
    ratios = []
    rows = max(1, DRAWS_AT_ONCE // len(sums))
    for start in range(0, resamples, rows):
        draw_RE = random.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        ratios.append(sums[draw_RE].sum(1) / tokens[draw_RE].sum(1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


@contextmanager
def eval_mode(*models: nn.Module):
    """Models in eval mode inside; every module gets back its own mode, also after an error."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
