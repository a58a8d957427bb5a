"""What tasks are judged by: intervals and paired differences against resampling by hand, and words from one path."""

from dataclasses import replace

import numpy as np
import pytest

from llm_finetuner.benchmark import judge
from llm_finetuner.benchmark.classes import mcnemar, paired, wilson
from llm_finetuner.benchmark.measure import Measure, accuracy, perplexity
from llm_finetuner.benchmark.quality import Quality, paired_difference
from llm_finetuner.registry import TASKS, resolve

TEXTS = accuracy("a text", "texts")
WORDS = accuracy("a tagged word", "tagged words")


def quality(right, tokens=None, nll=1.0) -> Quality:
    right = np.asarray(right)
    tokens = np.ones_like(right) if tokens is None else np.asarray(tokens)
    return Quality(nll=nll * tokens, tokens=tokens, right=right)


def sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words of each sentence, and how many of them each of two models tags right: sentences are easy or hard."""
    draw = np.random.default_rng(seed)
    words = draw.integers(1, 30, size=count)
    easy = draw.random(count) < 0.7
    return words, *(
        draw.binomial(words, np.where(easy, good, bad)) for good, bad in ((0.98, 0.6), (0.97, 0.4))
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_names_what_it_is_judged_by(name):
    task = resolve(TASKS, name)
    assert (task.measure.key == "accuracy") == task.labels
    assert task.measure.lower != task.labels
    assert task.measure.about().keys() == {
        "key", "name", "unit", "units", "lower", "change_unit", "beside", "without", "read", "over",
    }  # fmt: skip


def test_the_interval_of_one_answer_an_example_is_wilsons():
    assert TEXTS.interval(quality([1] * 80 + [0] * 20)) == wilson(80, 100)
    found = TEXTS.summary(quality([1] * 80 + [0] * 20))
    assert (found["accuracy"], found["accuracy_low"], found["accuracy_high"]) == (0.8, *wilson(80, 100))
    assert "perplexity" not in found


def test_words_are_resampled_by_sentence():
    """By brute force; the sentence of 29 right words tells no more than one of two."""
    words, one, two = sentences(150, seed=0)
    draw = np.random.default_rng(1)
    picked = draw.integers(len(words), size=(20000, len(words)))
    shares = [right[picked].sum(1) / words[picked].sum(1) for right in (one, two)]
    low, high = WORDS.interval(quality(one, words))
    assert (low, high) == pytest.approx(np.percentile(shares[0], [2.5, 97.5]), abs=0.004)
    independent = wilson(one.sum(), words.sum())
    assert high - low > 1.5 * (independent[1] - independent[0])
    pair = WORDS.compare(quality(one, words), quality(two, words))
    wanted = np.percentile(shares[0] - shares[1], [2.5, 97.5])
    assert (pair["low"], pair["high"]) == pytest.approx(wanted, abs=0.004)
    assert pair["difference"] == pytest.approx((one.sum() - two.sum()) / words.sum())
    assert pair["p"] == mcnemar(int((one > two).sum()), int((one < two).sum()))
    assert pair["change"] == 100 * pair["difference"] and pair["better"] and pair["significant"]


def test_sentences_without_a_tagged_word_change_nothing():
    words, one, two = sentences(60, seed=2)
    none = np.zeros(40, dtype=int)
    padded = [np.concatenate([x, none]) for x in (words, one, two)]
    assert paired(padded[1], padded[2], padded[0]) == paired(one, two, words)


def test_few_examples_that_tell_two_models_apart_are_chance():
    """Five against none: the bootstrap never misses all five, and a coin falls so once in sixteen times."""
    five = TEXTS.compare(quality([1] * 100), quality([1] * 95 + [0] * 5))
    assert five["low"] > 0 and five["p"] == 2 / 32 and not five["significant"] and five["better"]
    said = judge.change(five, 100, "points")
    assert said.startswith(
        "5.0 points higher (95 % interval +1.0 to +10.0 points), not more than the uncertainty"
    )
    assert said.endswith("few examples tell the two apart, and they may do so by chance (p = 0.06)")
    twelve = TEXTS.compare(quality([1] * 100), quality([1] * 88 + [0] * 12))
    assert twelve["significant"]
    assert judge.change(twelve, 100, "points").endswith("points), more than the uncertainty")


@pytest.mark.parametrize("measure", [TEXTS, perplexity("a token", "tokens")])
def test_the_same_is_no_different_and_other_rows_are_refused(measure):
    one = quality([1, 0] * 30, nll=2.0)
    pair = measure.compare(one, one)
    assert not pair["better"] and not pair["significant"] and pair["change"] == 0
    unit = measure.change_unit
    wanted = f"no different (95 % interval +0.0 to +0.0 {unit}), not more than the uncertainty"
    assert judge.change(pair, 60, unit) == wanted
    with pytest.raises(ValueError, match="same tokens"):
        measure.compare(one, quality([1, 0] * 30, [2] * 60))


def test_what_is_retained_of_the_teacher():
    assert TEXTS.retained(0.6, 0.8) == pytest.approx(75) and TEXTS.retained(0.6, 0.0) is None
    assert perplexity("a token", "tokens").retained(20.0, 10.0) == 50
    for measure in (TEXTS, perplexity("a token", "tokens")):
        assert measure.retained(0.7, 0.7) == 100


def squared_error() -> Measure:
    """What a task whose answers are numbers would add; its tally puts squared errors where others put nats."""
    return Measure(
        key="mse", name="MSE", unit="a step of a window", units="steps", lower=True, alone="the data",
        value=lambda found: found.loss, interval=lambda found, *, seed=0: (None, None), paired=paired_difference,
        change=lambda difference, other: 100 * difference / other, change_unit="%", show="{:.4f}".format,
        formulas={"mse": "mean squared error of a step"},
    )  # fmt: skip


def test_a_measure_is_all_that_another_kind_of_figure_needs():
    """Errors of windows: the words of the verdict follow from the measure alone."""
    draw, measure = np.random.default_rng(0), squared_error()
    steps = np.full(80, 24)
    alone = Quality(nll=steps * draw.uniform(0.3, 0.5, 80), tokens=steps)
    student = replace(alone, nll=alone.nll * draw.uniform(0.85, 0.95, 80))
    found = {"kd": student, "alone": alone}
    assert measure.summary(student)["mse"] == student.loss == pytest.approx(student.nll.sum() / steps.sum())
    roles = {"kd": "distilled", "alone": "baseline_steps"}
    lines = [{"name": n, "role": roles[n], **measure.summary(q)} for n, q in found.items()]
    pair = {"name": "kd", "other": "alone", "role": "baseline_steps", **measure.compare(student, alone)}
    assert pair["change"] == pytest.approx(100 * (student.loss / alone.loss - 1)) and pair["better"]
    case = judge.Case(lines, [pair], 80, measure)
    said = judge.finding(case, lines[0])
    assert said["paid"] == "yes" and said["sentence"].startswith(
        f"At equal steps distilling paid: kd reaches MSE {student.loss:.4f} against {alone.loss:.4f} for the same "
        f"student on the data alone, {-pair['change']:.1f} % lower (95 % interval "
    )
    assert judge.warnings(case) == []


# ---- which weights of a run are kept


def test_more_right_answers_are_better_and_of_as_many_the_lower_loss():
    less, more = quality([1, 0, 0, 0], nll=0.5), quality([1, 1, 1, 0], nll=2.0)
    surer = quality([1, 1, 0, 1], nll=1.5)
    assert sorted([less, more, surer], key=TEXTS.rank) == [surer, more, less]
    assert sorted([less, more, surer], key=perplexity("a token", "tokens").rank) == [less, surer, more]
