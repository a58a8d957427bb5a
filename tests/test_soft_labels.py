"""Soft labels against the guide's example and plain softmax, and the table that fits a terminal."""

import math

import pytest
import torch

from llm_finetuner.benchmark.soft_labels import render, table
from llm_finetuner.errors import DataError, ModelError, RecipeError

ANIMALS = ["cat", "dog", "rabbit"]
GUIDE = torch.tensor([[0.85, 0.10, 0.05]], dtype=torch.float64).log()


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def test_the_example_of_the_guide():
    (row,) = table(GUIDE, ANIMALS, labels=torch.tensor([0]))
    assert row["label"] == "cat"
    assert list(row["probabilities"]) == [1, 2, 5, 10]
    assert row["probabilities"][1] == pytest.approx({"cat": 0.85, "dog": 0.10, "rabbit": 0.05}, abs=1e-15)
    for temperature, found in row["probabilities"].items():
        assert list(found.values()) == pytest.approx(softmax(GUIDE[0].tolist(), temperature), abs=1e-15)
    roots = [math.sqrt(p) for p in (0.85, 0.10, 0.05)]
    assert list(row["probabilities"][2].values()) == pytest.approx([r / sum(roots) for r in roots])
    single = table(GUIDE.float(), ANIMALS)[0]["probabilities"][1]
    assert single == pytest.approx({"cat": 0.85, "dog": 0.10, "rabbit": 0.05}, abs=1e-7)


def test_names_come_most_probable_first_and_sums_are_one():
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    rows = table(logits, list("abcd"), (3, 0.5), [0, -100, 3, 1, 2, 2])
    assert [row["label"] for row in rows] == ["a", None, "d", "b", "c", "c"]
    for row, example in zip(rows, logits.double().tolist(), strict=True):
        assert list(row["probabilities"]) == [3, 0.5]
        for temperature, found in row["probabilities"].items():
            expected = dict(zip("abcd", softmax(example, temperature), strict=True))
            assert found == pytest.approx(expected, abs=1e-12)
            assert list(found) == sorted(expected, key=expected.get, reverse=True)
            assert sum(found.values()) == pytest.approx(1, abs=1e-12)


def test_examples_and_classes_in_another_order_say_the_same():
    torch.manual_seed(1)
    logits = torch.randn(5, 3)
    rows = table(logits, ANIMALS, labels=[0, 1, 2, 0, 1])
    classes = [2, 0, 1]
    moved = table(logits[:, classes].flip(0), [ANIMALS[c] for c in classes], labels=[2, 1, 0, 2, 1])
    for row, other in zip(rows, reversed(moved), strict=True):
        assert row["label"] == other["label"]
        for temperature, found in row["probabilities"].items():
            assert list(found) == list(other["probabilities"][temperature])
            assert other["probabilities"][temperature] == pytest.approx(found, abs=1e-12)


def test_masked_classes_and_large_logits_stay_finite():
    (row,) = table(torch.tensor([[-math.inf, 80000.0, 0.0]]), ANIMALS, (1, 10))
    assert row["probabilities"][10] == {"dog": 1.0, "rabbit": 0.0, "cat": 0.0}


def test_mistakes_are_told():
    with pytest.raises(ModelError, match="3 classes, there are 2 names"):
        table(GUIDE, ["cat", "dog"])
    with pytest.raises(DataError, match="named 'cat'"):
        table(GUIDE, ["cat", "dog", "cat"])
    with pytest.raises(DataError, match="class 3"):
        table(GUIDE, ANIMALS, labels=[3])
    for temperature in (0, -1, math.nan):
        with pytest.raises(RecipeError, match="temperature"):
            table(GUIDE, ANIMALS, (1, temperature))


def test_the_table_of_the_guide():
    rows = table(torch.cat([GUIDE, GUIDE.flip(1)]), ANIMALS, labels=[0, -100])
    assert render(rows, ["a small striped animal", "two\nlines"]) == (
        "1. a small striped animal\n"
        "   label: cat    T = 1    T = 2    T = 5   T = 10\n"
        "   cat           0.850    0.631    0.451    0.391\n"
        "   dog           0.100    0.216    0.294    0.315\n"
        "   rabbit        0.050    0.153    0.256    0.294\n"
        "\n"
        "2. two lines\n"
        "   no label      T = 1    T = 2    T = 5   T = 10\n"
        "   rabbit        0.850    0.631    0.451    0.391\n"
        "   dog           0.100    0.216    0.294    0.315\n"
        "   cat           0.050    0.153    0.256    0.294"
    )
    assert render(rows).startswith("1.\n   label: cat")
    assert render([]) == ""
    with pytest.raises(ValueError):
        render(rows, ["one text for two rows"])


@pytest.mark.parametrize("classes, lines", [(2, 2), (5, 5), (6, 5), (77, 5)])
def test_of_many_classes_the_best_four_are_shown(classes, lines):
    torch.manual_seed(2)
    names = [f"{'a very long name of a class ' * 3}{number}" for number in range(classes)]
    (row,) = table(torch.randn(1, classes), names, labels=[0])
    shown = render([row], ["word " * 60]).splitlines()
    assert len(shown) == 2 + lines
    assert max(map(len, shown)) <= 100 and "\n".join(shown).isascii()
    assert shown[0].endswith("...") and len(shown[0]) == 100
    first = [float(line.split()[-4]) for line in shown[2:]]
    assert sum(first) == pytest.approx(1, abs=0.0005 * lines)
    if classes > 5:
        assert shown[-1].startswith(f"   others ({classes - 4}) ")
        assert first[:4] == sorted(first[:4], reverse=True)


def test_control_characters_of_a_text_do_not_reach_the_terminal():
    shown = render(table(GUIDE, ["cat\x1b[2J", "dog\n", "r\tt"]), ["\x1b[31mred\x07\r\nnext"])
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert len(shown.splitlines()) == 5
