"""Metrics of classification against brute force over plain lists, published figures, and what may not change them."""

import math
import random

import pytest
import torch

from llm_finetuner.benchmark.classes import Confusion, MultiLabel, wilson
from llm_finetuner.benchmark.quality import Tally
from llm_finetuner.errors import DataError, ModelError


def one_hot(said: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(said, dtype=torch.long), classes).float()


def confusion(targets: list[int], said: list[int], classes: int) -> Confusion:
    counted = Confusion(classes)
    counted.add(one_hot(said, classes), torch.tensor(targets, dtype=torch.long))
    return counted


def multi_label(logits: torch.Tensor, targets: torch.Tensor) -> MultiLabel:
    counted = MultiLabel(logits.shape[1])
    counted.add(logits, targets)
    return counted


def naive_f1(targets: list[bool], said: list[bool]) -> float | None:
    """From precision and recall, one class against the rest; None where the class is absent from both."""
    hits = sum(t and s for t, s in zip(targets, said, strict=True))
    if not sum(targets) + sum(said):
        return None
    precision, recall = hits / max(1, sum(said)), hits / max(1, sum(targets))
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def naive_macro_f1(targets: list[int], said: list[int]) -> float:
    seen = set(targets) | set(said)
    return sum(naive_f1([t == c for t in targets], [s == c for s in said]) for c in seen) / len(seen)


def naive_mcc(targets: list[int], said: list[int], classes: int) -> float:
    """Gorodkin's definition: correlation of the two one-hot tables, summed over classes."""
    x = [[float(t == c) for c in range(classes)] for t in targets]
    y = [[float(s == c) for c in range(classes)] for s in said]

    def covariance(a, b):
        total = 0.0
        for c in range(classes):
            mean_a, mean_b = sum(r[c] for r in a) / len(a), sum(r[c] for r in b) / len(b)
            total += sum((r[c] - mean_a) * (q[c] - mean_b) for r, q in zip(a, b, strict=True))
        return total

    spread = covariance(x, x) * covariance(y, y)
    return covariance(x, y) / math.sqrt(spread) if spread > 1e-12 else 0.0


def drawn(classes: int, count: int, seed: int, right: float = 0.6) -> tuple[list[int], list[int]]:
    draw = random.Random(seed)
    targets = [min(draw.randrange(classes), draw.randrange(classes)) for _ in range(count)]
    said = [t if draw.random() < right else draw.randrange(classes) for t in targets]
    return targets, said


@pytest.mark.parametrize(
    "classes, count, seed", [(2, 40, 0), (3, 50, 1), (5, 7, 2), (9, 12, 3), (4, 200, 4), (2, 1, 5)]
)
def test_confusion_equals_brute_force(classes, count, seed):
    targets, said = drawn(classes, count, seed)
    counted = confusion(targets, said, classes)
    pairs = list(zip(targets, said, strict=True))
    assert counted.counts.tolist() == [[pairs.count((i, j)) for j in range(classes)] for i in range(classes)]
    assert counted.accuracy == sum(t == s for t, s in pairs) / count
    assert counted.macro_f1 == pytest.approx(naive_macro_f1(targets, said), abs=1e-12)
    assert counted.mcc == pytest.approx(naive_mcc(targets, said, classes), abs=1e-12)
    for c, scores in enumerate(counted.per_class()):
        hits, said_c, true_c = pairs.count((c, c)), said.count(c), targets.count(c)
        assert scores["precision"] == (hits / said_c if said_c else None)
        assert scores["recall"] == (hits / true_c if true_c else None)
        expected = naive_f1([t == c for t in targets], [s == c for s in said])
        assert scores["f1"] == (None if expected is None else pytest.approx(expected, abs=1e-12))
        assert scores["count"] == true_c


def test_figures_of_scikit_learn():
    """f1_score(average="macro") and matthews_corrcoef of scikit-learn 1.9.1."""
    counted = confusion([0, 1, 2, 2, 1, 0, 4, 4, 2, 1], [0, 2, 2, 2, 1, 1, 4, 0, 3, 1], 6)
    assert counted.macro_f1 == pytest.approx(0.5, abs=1e-12)
    assert counted.mcc == pytest.approx(0.48004267235639847, abs=1e-12)


def test_perfect_constant_and_opposite_predictors():
    targets = [0, 1, 2, 1, 0, 1]
    perfect, constant = confusion(targets, targets, 3), confusion(targets, [1] * 6, 3)
    assert (perfect.accuracy, perfect.macro_f1, perfect.mcc) == (1.0, 1.0, 1.0)
    assert (constant.accuracy, constant.mcc) == (0.5, 0.0)
    assert constant.macro_f1 == pytest.approx(2 / 3 / 3)  # F1 of class 1: 2 * 3 / (6 + 3); the others have 0
    assert confusion([1] * 6, targets, 3).mcc == 0.0
    assert confusion([0, 1, 0, 1], [1, 0, 1, 0], 2).mcc == -1.0


def test_classes_that_do_not_occur_change_nothing():
    targets, said = drawn(3, 60, seed=6)
    small, wide = confusion(targets, said, 3), confusion(targets, said, 11)
    assert (small.macro_f1, small.mcc, small.accuracy) == (wide.macro_f1, wide.mcc, wide.accuracy)
    assert wide.per_class()[7] == {"precision": None, "recall": None, "f1": None, "count": 0}


def test_a_class_that_is_only_said_counts_in_macro_f1():
    scores = confusion([0, 0, 0, 0], [0, 0, 0, 1], 2).per_class()
    assert scores[1] == {"precision": 0.0, "recall": None, "f1": 0.0, "count": 0}
    assert confusion([0, 0, 0, 0], [0, 0, 0, 1], 2).macro_f1 == pytest.approx(6 / 7 / 2)


def test_order_chunks_and_ignored_targets_change_nothing():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 4), torch.randint(4, (50,))
    whole, chunked = Confusion(4), Confusion(4)
    whole.add(logits, targets)
    order = torch.randperm(50)
    for part in (order[:7], order[7:8], order[8:]):
        ignored = torch.cat([logits[part], torch.full((3, 4), math.nan)])
        chunked.add(ignored, torch.cat([targets[part], torch.full((3,), -100)]))
    chunked.add(logits[:0], targets[:0])
    assert torch.equal(whole.counts, chunked.counts)
    assert whole.counts.dtype == torch.int64


def test_names_of_classes_do_not_matter():
    targets, said = drawn(5, 80, seed=7)
    renamed = [3, 0, 4, 1, 2]
    a = confusion(targets, said, 5)
    b = confusion([renamed[t] for t in targets], [renamed[s] for s in said], 5)
    assert (a.accuracy, a.macro_f1, a.mcc) == (b.accuracy, b.macro_f1, b.mcc)
    assert [b.per_class()[renamed[c]] for c in range(5)] == a.per_class()


def test_targets_and_answers_in_exchange_have_one_correlation():
    targets, said = drawn(4, 80, seed=8)
    assert confusion(targets, said, 4).mcc == confusion(said, targets, 4).mcc


def test_correlation_of_very_many_tokens_does_not_overflow():
    few, many = confusion(*drawn(3, 90, seed=9), 3), Confusion(3)
    many.counts += few.counts * 10**8  # 9e9 tokens, whose fourth power is beyond int64
    assert many.mcc == pytest.approx(few.mcc, abs=1e-12)


def test_accuracy_is_the_one_of_quality():
    torch.manual_seed(1)
    logits, targets = torch.randn(64, 5), torch.randint(5, (64,))
    tally, counted = Tally(64), Confusion(5)
    tally.add(logits, targets, torch.arange(64))
    counted.add(logits, targets)
    assert counted.accuracy == tally.quality(False).accuracy


def test_mistakes_are_told():
    with pytest.raises(DataError, match="class 3, the model has classes 0 to 2"):
        Confusion(3).add(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(DataError, match="class -1"):
        Confusion(3).add(torch.zeros(2, 3), torch.tensor([0, -1]))
    with pytest.raises(ModelError, match="NaN"):
        Confusion(3).add(torch.tensor([[0.0, math.nan, 0.0]]), torch.tensor([0]))
    empty = Confusion(3)
    empty.add(torch.zeros(2, 3), torch.tensor([-100, -100]))
    for read in (lambda: empty.accuracy, lambda: empty.macro_f1, lambda: empty.mcc):
        with pytest.raises(DataError, match="no row here has a class"):
            read()


@pytest.mark.parametrize(
    "right, count, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_figures(right, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(right, count) == pytest.approx((low, high), abs=6e-5)
    assert wilson(count - right, count) == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_solves_its_own_equation():
    for right, count in [(3, 7), (50, 60), (870, 872)]:
        for bound in wilson(right, count):
            assert abs(right / count - bound) == pytest.approx(
                1.959963984540054 * math.sqrt(bound * (1 - bound) / count), abs=1e-12
            )


@pytest.mark.parametrize("labels, count, seed", [(4, 40, 0), (1, 9, 1), (7, 3, 2)])
def test_multi_label_equals_brute_force(labels, count, seed):
    torch.manual_seed(seed)
    logits, targets = torch.randn(count, labels) * 3, (torch.rand(count, labels) < 0.3).float()
    counted = multi_label(logits, targets)
    p = [[1 / (1 + math.exp(-x)) for x in row] for row in logits.double().tolist()]
    said = [[x > 0.5 for x in row] for row in p]
    true = [[x == 1 for x in row] for row in targets.tolist()]
    assert counted.subset_accuracy == sum(s == t for s, t in zip(said, true, strict=True)) / count
    flat_true, flat_said = sum(true, []), sum(said, [])
    assert counted.micro_f1 == pytest.approx(naive_f1(flat_true, flat_said) or 0.0, abs=1e-12)
    f1 = [naive_f1([t[c] for t in true], [s[c] for s in said]) for c in range(labels)]
    known = [x for x in f1 if x is not None]
    assert counted.macro_f1 == pytest.approx(sum(known) / len(known), abs=1e-12)
    error = 0.0
    for low in range(15):
        members = [
            (x, t) for x, t in zip(sum(p, []), flat_true, strict=True) if low / 15 < x <= (low + 1) / 15
        ]
        error += abs(sum(x for x, _ in members) - sum(t for _, t in members)) / (count * labels)
    assert counted.calibration_error == pytest.approx(error, abs=1e-12)
    assert [score["count"] for score in counted.per_class()] == targets.sum(0).tolist()


def test_multi_label_perfect_constant_and_absent():
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0]])
    perfect = multi_label((targets * 2 - 1) * 1000, targets)
    assert (perfect.subset_accuracy, perfect.micro_f1, perfect.macro_f1) == (1.0, 1.0, 1.0)
    assert perfect.calibration_error == 0.0
    assert perfect.per_class()[2]["f1"] is None
    silent = multi_label(torch.full((3, 3), -1000.0), targets)
    assert (silent.subset_accuracy, silent.micro_f1, silent.macro_f1) == (0.0, 0.0, 0.0)
    assert silent.calibration_error == pytest.approx(4 / 9)
    nothing = multi_label(torch.full((3, 3), -1000.0), torch.zeros(3, 3))
    assert (nothing.subset_accuracy, nothing.micro_f1, nothing.macro_f1) == (1.0, 0.0, 0.0)


def test_a_logit_of_zero_says_nothing_and_one_above_says_the_label():
    counted = multi_label(torch.tensor([[0.0, 1e-30]]), torch.tensor([[0.0, 1.0]]))
    assert counted.subset_accuracy == 1.0


def test_calibrated_probabilities_have_no_error():
    logits = torch.full((10, 1), math.log(0.3 / 0.7), dtype=torch.float64)
    targets = torch.tensor([[1.0]] * 3 + [[0.0]] * 7)
    assert multi_label(logits, targets).calibration_error == pytest.approx(0, abs=1e-12)


def test_multi_label_order_chunks_permutation_and_ignored_rows():
    torch.manual_seed(3)
    logits, targets = torch.randn(30, 5), (torch.rand(30, 5) < 0.4).float()
    whole, chunked = multi_label(logits, targets), MultiLabel(5)
    order, labels = torch.randperm(30), torch.randperm(5)
    for part in (order[:4], order[4:]):
        padded = torch.cat([logits[part][:, labels], torch.full((2, 5), math.nan)])
        chunked.add(padded, torch.cat([targets[part][:, labels], torch.full((2, 5), -100.0)]))
    assert chunked.count == 30
    assert (whole.subset_accuracy, whole.micro_f1, whole.macro_f1) == (
        chunked.subset_accuracy, chunked.micro_f1, chunked.macro_f1,
    )  # fmt: skip
    assert chunked.calibration_error == pytest.approx(whole.calibration_error, abs=1e-12)
    assert [whole.per_class()[c] for c in labels.tolist()] == chunked.per_class()


def test_mistakes_of_multi_label_are_told():
    with pytest.raises(DataError, match="is 0.5"):
        multi_label(torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]))
    with pytest.raises(DataError, match="is -100"):
        multi_label(torch.zeros(1, 2), torch.tensor([[1.0, -100.0]]))
    with pytest.raises(ModelError, match="NaN"):
        multi_label(torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2))
    empty = multi_label(torch.zeros(1, 2), torch.full((1, 2), -100.0))
    for read in ("subset_accuracy", "micro_f1", "macro_f1", "calibration_error"):
        with pytest.raises(DataError, match="no row here has a class"):
            getattr(empty, read)
