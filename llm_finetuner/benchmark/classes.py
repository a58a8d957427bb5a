"""Metrics of classification from running counts: accuracy, F1, Matthews correlation, intervals and comparisons.

Shapes: n examples (or tokens) at once, E all of them, C classes or labels, B bins, R resamples.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_finetuner.benchmark.quality import BINS, RESAMPLES
from llm_finetuner.errors import DataError, ModelError

IGNORED = -100  # a target that is not known, as in the labels of text
Z = 1.959963984540054  # 97.5 % quantile of the normal distribution: intervals of 95 %
ALPHA = 0.05  # what goes with them

Scores = dict[str, float | int | None]


class Confusion:
    """Of examples with one class each: how often the answer to target i was class j."""

    def __init__(self, classes: int):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)  # [C, C] target, said

    def add(self, logits_nC: Tensor, targets_n: Tensor) -> None:
        """Count the most probable classes; targets of -100 are left out.

        Of equal logits the device picks one. Raises DataError for a target that is no class, ModelError for NaN.
        """
        classes = len(self.counts)
        assert logits_nC.shape == (len(targets_n), classes), f"{logits_nC.shape} for {classes} classes"
        targets_n = targets_n.cpu()
        known_n = targets_n != IGNORED
        _refuse_nan(logits_nC.detach().cpu()[known_n])
        said_n, targets_n = logits_nC.argmax(-1).cpu()[known_n], targets_n[known_n]
        strange_n = targets_n[(targets_n < 0) | (targets_n >= classes)]
        if len(strange_n):
            raise DataError(
                f"the data has class {int(strange_n[0])}, the model has classes 0 to {classes - 1}",
                "give the model as many classes as the data has, or leave these rows out",
            )
        pairs_CC = torch.bincount(targets_n.long() * classes + said_n, minlength=classes**2)
        self.counts += pairs_CC.view(classes, classes)

    @property
    def accuracy(self) -> float:
        return int(self.counts.trace()) / self._count()

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur as a target or as an answer.

        This is scikit-learn's f1_score(average="macro") without labels=, which takes the classes it sees on either
        side. With labels= it counts classes absent from both as 0, which makes the mean hang on the label map.
        """
        self._count()
        return _macro_f1(self.per_class())

    @property
    def mcc(self) -> float:
        """Matthews correlation for C classes, in [-1, 1] (Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006).

        0 where it is not defined: one class alone among the targets, or among the answers.
        """
        count, right = self._count(), int(self.counts.trace())
        true_C, said_C = self.counts.sum(1).tolist(), self.counts.sum(0).tolist()
        # Python's whole numbers: the product of two variances overflows int64 from some 50,000 examples on
        covariance = right * count - sum(t * s for t, s in zip(true_C, said_C, strict=True))
        spread = (count**2 - sum(t * t for t in true_C)) * (count**2 - sum(s * s for s in said_C))
        return covariance / math.sqrt(spread) if spread else 0.0

    def per_class(self) -> list[Scores]:
        """precision, recall, f1 and count (of targets) of each class; a ratio of 0 to 0 is None."""
        return _scores(self.counts.diag(), self.counts.sum(0), self.counts.sum(1))

    def _count(self) -> int:
        return _at_least_one(int(self.counts.sum()))


class MultiLabel:
    """Of examples with any number of C labels: a label is said where its sigmoid is above 0.5."""

    def __init__(self, labels: int):
        self.count = 0  # examples
        self.exact = 0  # examples with all labels right
        self.hits = torch.zeros(labels, dtype=torch.int64)  # [C] said and true
        self.said = torch.zeros(labels, dtype=torch.int64)
        self.true = torch.zeros(labels, dtype=torch.int64)
        self.found = torch.zeros(BINS, dtype=torch.float64)  # [B] true labels of each bin of probability
        self.expected = torch.zeros(BINS, dtype=torch.float64)  # [B] their summed probability

    def add(self, logits_nC: Tensor, targets_nC: Tensor) -> Tensor:
        """Count one batch; returns whether all labels of a row are right, [n] on the CPU.

        Rows whose targets are all -100 are left out of both. Raises DataError for a target that is neither 0 nor 1,
        also in a row known in part; ModelError for NaN.
        """
        labels = len(self.hits)
        assert logits_nC.shape == targets_nC.shape == (len(logits_nC), labels), f"not {labels} labels"
        targets_nC = targets_nC.cpu()
        known_n = (targets_nC != IGNORED).any(1)
        logits_nC, targets_nC = logits_nC.detach().cpu()[known_n].double(), targets_nC[known_n]
        _refuse_nan(logits_nC)
        true_nC = targets_nC == 1
        strange = targets_nC[~true_nC & (targets_nC != 0)]
        if len(strange):
            raise DataError(
                f"a label of a multi-label row is {float(strange[0]):g}",
                "each label must be 0 or 1; a row without labels has -100 in all places",
            )
        said_nC = logits_nC > 0  # sigmoid above 0.5, without rounding
        right_n = (said_nC == true_nC).all(1)
        self.count += len(true_nC)
        self.exact += int(right_n.sum())
        self.hits += (said_nC & true_nC).sum(0)
        self.said += said_nC.sum(0)
        self.true += true_nC.sum(0)
        probability = logits_nC.sigmoid().flatten()
        bins = (probability * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # (low, high], as in quality.py
        self.found.index_add_(0, bins, true_nC.flatten().double())
        self.expected.index_add_(0, bins, probability)
        return right_n

    @property
    def subset_accuracy(self) -> float:
        """Share of examples with all labels right."""
        return self.exact / _at_least_one(self.count)

    @property
    def micro_f1(self) -> float:
        """F1 over all labels of all examples; 0 where no label is true and none is said."""
        _at_least_one(self.count)
        places = int(self.said.sum() + self.true.sum())
        return 2 * int(self.hits.sum()) / places if places else 0.0

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that occur as a target or as an answer; 0 where none does.

        The rule of `Confusion.macro_f1`. scikit-learn counts labels absent from both as 0 here (zero_division).
        """
        _at_least_one(self.count)
        return _macro_f1(self.per_class())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the probability that a label is true, over all labels, in [0, 1].

        In 15 bins of equal width: mean probability against the share of true labels. It is of the probability
        itself, not of the answer's confidence max(p, 1 - p).
        """
        places = _at_least_one(self.count) * len(self.hits)
        return float((self.found - self.expected).abs().sum()) / places

    def per_class(self) -> list[Scores]:
        """precision, recall, f1 and count (of examples that have it) of each label; a ratio of 0 to 0 is None."""
        return _scores(self.hits, self.said, self.true)


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953); count is at least 1.

    Examples are taken to be independent. Tokens of one sentence are not: of them it is too narrow.
    """
    share, z2 = right / count, Z**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(
    right_a: Sequence[bool] | np.ndarray | Tensor,
    right_b: Sequence[bool] | np.ndarray | Tensor,
    positions: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float | bool | None]:
    """Accuracy of a minus that of b on the same examples: [E], [E] right answers of [E] positions, or of one each.

    Means over several seeds will do; examples without a position are left out. low, high: 95 % percentile interval by
    a paired bootstrap over examples, None with fewer than two. p: exact two-sided McNemar test; where examples hold
    several positions the sign test of the examples, for words of one sentence are not independent. significant: the
    interval leaves out 0 and p is below 0.05. Where few examples tell a from b the interval alone is too narrow (5
    against 0 of 100: it leaves out 0, p is 0.063); p alone may disagree with the interval that is printed beside it,
    and does not know by how many words two sentences differ. Raises ValueError unless both have the same examples, at
    least one.
    """
    positions_E = np.ones(len(right_a)) if positions is None else positions
    if not len(right_a) == len(right_b) == len(positions_E) or not (positions_E > 0).any():
        raise ValueError(
            f"a paired difference needs the same examples, got {len(right_a)} and {len(right_b)}"
        )
    gaps_E = _right(right_a, positions_E) - _right(right_b, positions_E)
    gaps_E, positions_E = gaps_E[positions_E > 0], positions_E[positions_E > 0]
    low = high = None
    if len(gaps_E) > 1:
        # resampled examples matter only by how many of each kind were drawn: that is multinomial
        kinds_K2, count_K = np.unique(np.stack([gaps_E, positions_E], 1), axis=0, return_counts=True)
        shares_K = count_K / len(gaps_E)
        draws_RK = np.random.default_rng(seed).multinomial(len(gaps_E), shares_K, size=resamples)
        gaps_R, positions_R = (draws_RK @ kinds_K2).T
        low, high = map(float, np.percentile(gaps_R / positions_R, [2.5, 97.5]))
    p = mcnemar(int((gaps_E > 0).sum()), int((gaps_E < 0).sum()))
    return {
        "difference": float(gaps_E.sum() / positions_E.sum()),
        "low": low,
        "high": high,
        "significant": low is not None and (low > 0 or high < 0) and p < ALPHA,
        "p": p,
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of the examples that a alone, and that b alone, got right (McNemar 1947).

    2 P(X <= the smaller) for X ~ Binomial(only_a + only_b, 1/2), at most 1.
    """
    count, few = only_a + only_b, min(only_a, only_b)
    top = math.lgamma(count + 1) - math.lgamma(few + 1) - math.lgamma(count - few + 1) - count * math.log(2)
    j = np.arange(few)
    falling = np.cumprod((few - j) / (count - few + 1 + j))  # P(few - 1), P(few - 2), ... in units of P(few)
    return min(1.0, 2 * math.exp(top) * (1 + float(falling.sum())))


def _scores(hits_C: Tensor, said_C: Tensor, true_C: Tensor) -> list[Scores]:
    return [
        {
            "precision": hits / said if said else None,
            "recall": hits / true if true else None,
            "f1": 2 * hits / (said + true) if said + true else None,
            "count": true,
        }
        for hits, said, true in zip(hits_C.tolist(), said_C.tolist(), true_C.tolist(), strict=True)
    ]


def _macro_f1(scores: list[Scores]) -> float:
    f1 = [score["f1"] for score in scores if score["f1"] is not None]
    return math.fsum(f1) / len(f1) if f1 else 0.0


def _at_least_one(count: int) -> int:
    if not count:
        raise DataError("no row here has a class", "their labels are all -100, or there are no rows")
    return count


def _refuse_nan(logits_nC: Tensor) -> None:
    """argmax calls NaN an answer, and the accuracy of a broken model would look like one."""
    if logits_nC.isnan().any():
        raise ModelError(
            "the model's scores are NaN", "it diverged: take an earlier checkpoint or train slower"
        )


def _right(right: Sequence[bool] | np.ndarray | Tensor, most: int | np.ndarray) -> np.ndarray:
    """[E] right answers out of at most so many, on the CPU -> [E] float64."""
    right_E = np.asarray(right, dtype=np.float64)
    if right_E.ndim != 1 or ((right_E < 0) | (right_E > most)).any():
        raise ValueError("of each example there is a number of right answers, no more than it has positions")
    return right_E
