"""Two classifiers on the same examples: McNemar by counting all ways, the bootstrap by resampling examples."""

import itertools
import math

import numpy as np
import pytest
import torch

from llm_finetuner.benchmark.classes import mcnemar, paired


def naive_mcnemar(only_a: int, only_b: int) -> float:
    """The share of all ways to hand out the examples that are at least as one-sided."""
    count, gap = only_a + only_b, abs(only_a - only_b)
    ways = list(itertools.product((0, 1), repeat=count))
    return sum(abs(2 * sum(way) - count) >= gap for way in ways) / len(ways)


def test_mcnemar_equals_counting_all_ways():
    for only_a, only_b in itertools.product(range(6), repeat=2):
        assert mcnemar(only_a, only_b) == pytest.approx(naive_mcnemar(only_a, only_b), rel=1e-12)


@pytest.mark.parametrize("only_a, only_b", [(430, 570), (500, 500), (1, 40), (2000, 2200), (0, 900)])
def test_mcnemar_of_many_equals_whole_numbers(only_a, only_b):
    count, few = only_a + only_b, min(only_a, only_b)
    exact = min(1.0, 2 * sum(math.comb(count, i) for i in range(few + 1)) / 2**count)
    assert mcnemar(only_a, only_b) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_paired_difference_equals_resampling_examples():
    draw = np.random.default_rng(0)
    a, b = draw.random(300) < 0.85, draw.random(300) < 0.75
    found = paired(a, b)
    resampled = []
    for _ in range(20000):
        picked = draw.integers(300, size=300)
        resampled.append(a[picked].mean() - b[picked].mean())
    assert found["difference"] == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    # one example is 0.0033; the percentiles of 2000 resamples scatter by about that much
    assert (found["low"], found["high"]) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.008)
    assert found["significant"] == (found["low"] > 0)
    assert found["p"] == mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))


def test_paired_difference_of_the_same_the_order_and_the_exchange():
    draw = np.random.default_rng(1)
    a, b = draw.random(200) < 0.9, draw.random(200) < 0.6
    same = paired(a, a)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "significant": False, "p": 1.0}
    order = draw.permutation(200)
    assert paired(a[order], b[order]) == paired(a, b) == paired(torch.tensor(a), b.astype(int).tolist())
    assert paired(a, b, seed=5)["p"] == paired(a, b)["p"]
    ab, ba = paired(a, b), paired(b, a)
    assert ab["difference"] == -ba["difference"] and ab["p"] == ba["p"]
    assert ab["significant"] and ba["significant"]
    assert paired([1], [0]) == {"difference": 1.0, "low": None, "high": None, "significant": False, "p": 1.0}


@pytest.mark.parametrize("a, b", [([1, 0], [1]), ([], []), ([1.3, 1], [1, 1]), ([[1, 0]], [[1, 0]])])
def test_paired_refuses_what_is_no_pair(a, b):
    with pytest.raises(ValueError):
        paired(a, b)
