"""Quality against a naive float64 loop over dense logits, and the intervals against what is known of them."""

import math

import numpy as np
import pytest
import torch
from benchmark_models import prepared, texts, tiny_gpt2, tiny_llama, tiny_tokenizer, train

from llm_finetuner.benchmark.quality import (
    Quality,
    Tally,
    eval_mode,
    evaluate,
    evaluate_all,
    paired_difference,
)
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.tasks.causal_lm import CausalLM

TASK = CausalLM()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepared(tokenizer, texts(13, seed=3), prompt_tokens=2)


def naive(model, rows, teacher=None) -> dict:
    """One row at a time, dense logits, float64, plain Python loops over positions."""
    model = model.double().eval()
    nll, tokens, right, confidence, agreed, kl = [], [], [], [], [], []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
            log_t = torch.log_softmax(teacher.double().eval()(input_ids=ids).logits[0].double(), -1)
        summed, count = 0.0, 0
        for position, label in enumerate(row["labels"][1:]):
            if label == -100:
                continue
            count += 1
            summed -= log_p[position, label].item()
            confidence.append(log_p[position].max().exp().item())
            right.append(log_p[position].argmax().item() == label)
            agreed.append(bool(log_p[position].argmax() == log_t[position].argmax()))
            kl.append((log_t[position].exp() * (log_t[position] - log_p[position])).sum().item())
        nll.append(summed)
        tokens.append(count)
    error = 0.0
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low / 15 < c <= (low + 1) / 15]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(
                inside
            )
            error += len(inside) / len(confidence) * abs(gap)
    model.float(), teacher.float()
    return {
        "nll": nll,
        "tokens": tokens,
        "accuracy": sum(right) / len(right),
        "calibration_error": error,
        "agreement": sum(agreed) / len(agreed),
        "kl_to_teacher": sum(kl) / len(kl),
    }


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_evaluate_equals_a_naive_float64_loop(tokenizer, rows, build):
    student = train(build(len(tokenizer), width=16), rows, 3)
    teacher = train(build(len(tokenizer), seed=1), rows, 5)
    oracle = naive(student, rows, teacher)
    quality = evaluate(TASK, student, rows, teacher=teacher, batch_size=4)
    np.testing.assert_allclose(quality.nll, oracle["nll"], rtol=1e-6)
    np.testing.assert_array_equal(quality.tokens, oracle["tokens"])
    assert quality.loss == pytest.approx(sum(oracle["nll"]) / sum(oracle["tokens"]), rel=1e-6)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    for name in ("accuracy", "calibration_error", "agreement", "kl_to_teacher"):
        assert quality.summary()[name] == pytest.approx(oracle[name], abs=1e-6)


def test_evaluate_in_float64_is_exact_to_the_last_digits(tokenizer, rows):
    student, teacher = tiny_llama(len(tokenizer), width=16), tiny_llama(len(tokenizer), seed=1)
    oracle = naive(student, rows, teacher)
    quality = evaluate(TASK, student.double(), rows, teacher=teacher.double())
    np.testing.assert_allclose(quality.nll, oracle["nll"], rtol=1e-12)
    assert quality.kl_to_teacher == pytest.approx(oracle["kl_to_teacher"], rel=1e-10)


def test_batches_padding_and_order_change_nothing(tokenizer, rows):
    model = tiny_gpt2(len(tokenizer))
    one = evaluate(TASK, model, rows, batch_size=1)
    for batch_size in (3, 13, 50):
        many = evaluate(TASK, model, rows, batch_size=batch_size)
        np.testing.assert_allclose(many.nll, one.nll, rtol=1e-5)
        np.testing.assert_array_equal(many.tokens, one.tokens)
    back = evaluate(TASK, model, rows[::-1], batch_size=5)
    np.testing.assert_allclose(back.nll[::-1], one.nll, rtol=1e-5)


def test_the_teacher_agrees_with_itself(tokenizer, rows):
    teacher = tiny_gpt2(len(tokenizer))
    quality = evaluate(TASK, teacher, rows, teacher=teacher)
    assert quality.agreement == 1 and quality.kl_to_teacher == 0


def test_several_models_in_one_pass_equal_one_by_one(tokenizer, rows):
    models = {"a": tiny_gpt2(len(tokenizer)), "b": tiny_llama(len(tokenizer))}
    teacher = tiny_gpt2(len(tokenizer), seed=5)
    together = evaluate_all(TASK, {**models, "teacher": teacher}, rows, teacher=teacher)
    for name, model in models.items():
        alone = evaluate(TASK, model, rows, teacher=teacher)
        np.testing.assert_array_equal(together[name].nll, alone.nll)
        assert together[name].kl_to_teacher == alone.kl_to_teacher


def test_padded_vocabularies_are_left_out_on_both_sides(tokenizer, rows):
    size = len(tokenizer)
    student, teacher = tiny_gpt2(size + 8), tiny_gpt2(size + 64, seed=1)
    with pytest.raises(ModelError, match="vocabulary="):
        evaluate(TASK, student, rows, teacher=teacher)
    cut = evaluate(TASK, student, rows, teacher=teacher, vocabulary=size)
    small, wide = tiny_gpt2(size), tiny_gpt2(size, seed=1)
    small.load_state_dict({k: v[:size] if v.shape[:1] == (size + 8,) else v for k, v in state(student)})
    wide.load_state_dict({k: v[:size] if v.shape[:1] == (size + 64,) else v for k, v in state(teacher)})
    plain = evaluate(TASK, small, rows, teacher=wide)
    assert cut.loss == pytest.approx(plain.loss, rel=1e-6)
    assert cut.kl_to_teacher == pytest.approx(plain.kl_to_teacher, rel=1e-5)


def state(model):
    return model.state_dict().items()


def test_modes_are_restored_module_by_module(tokenizer, rows):
    model = tiny_gpt2(len(tokenizer)).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    evaluate(TASK, model, rows[:2])
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training and not model.transformer.h[0].training


def test_rows_without_a_counted_token_are_refused(tokenizer):
    row = {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": [-100] * 3}
    with pytest.raises(DataError, match="no token"):
        evaluate(TASK, tiny_gpt2(len(tokenizer)), [row])
    with pytest.raises(DataError, match="no token"):
        evaluate(TASK, tiny_gpt2(len(tokenizer)), [])


def test_calibration_error_by_hand():
    # confidences .9 (right, wrong) and .6 (right): |.9 - .5| * 2/3 + |.6 - 1| * 1/3 = .4
    tally = Tally(1)
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]], dtype=torch.float64).log()
    tally.add(logits, torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.long))
    quality = tally.quality(False)
    assert quality.calibration_error == pytest.approx(0.4)
    assert quality.accuracy == pytest.approx(2 / 3)
    assert quality.loss == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.6)) / 3)
    assert quality.agreement is None and quality.kl_to_teacher is None


def drawn(examples: int, mean: float, seed: int, noise: float = 1.0) -> Quality:
    """Examples of different length whose loss a token scatters around the mean."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 60, size=examples)
    nll = tokens * (mean + noise * random.standard_normal(examples))
    return Quality(nll=nll, tokens=tokens, accuracy=0.0, calibration_error=0.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        low, high = drawn(60, 3.0, seed).interval(resamples=1000)
        inside += low <= math.exp(3.0) <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_the_interval_holds_the_estimate_and_is_repeatable():
    quality = drawn(50, 2.0, 0)
    low, high = quality.interval(seed=4)
    assert low < quality.perplexity < high
    assert (low, high) == quality.interval(seed=4) != quality.interval(seed=5)
    assert drawn(1, 2.0, 0).interval() == (None, None)


def test_identical_models_never_differ():
    for seed in range(20):
        quality = drawn(12, 3.0, seed)
        found = paired_difference(quality, quality, seed=seed)
        assert found == {"difference": 0.0, "low": 0.0, "high": 0.0, "significant": False}


def test_two_models_without_a_real_difference_are_rarely_called_different():
    called = 0
    for seed in range(200):
        one, random = drawn(60, 3.0, seed), np.random.default_rng(1000 + seed)
        nll = one.nll + one.tokens * 0.1 * random.standard_normal(60)
        other = Quality(nll=nll, tokens=one.tokens, accuracy=0.0, calibration_error=0.0)
        called += paired_difference(one, other)["significant"]
    assert called / 200 <= 0.1


def test_pairs_find_a_difference_that_the_scatter_of_examples_hides():
    one = drawn(60, 3.0, 0)
    noise = 0.02 * np.random.default_rng(1).standard_normal(60)
    better = Quality(one.nll - one.tokens * (0.05 + noise), one.tokens, 0.0, 0.0)
    found = paired_difference(better, one)
    assert found["significant"] and found["low"] < -0.05 < found["high"] < 0
    assert better.interval()[1] > one.interval()[0]  # the two single intervals overlap
    with pytest.raises(ValueError, match="same tokens"):
        paired_difference(one, drawn(60, 3.0, 7))


def overlapping(trials, windows, span, memory):
    """Windows whose mean is 0: each the mean of `span` steps, neighbours one step apart: [trials, windows]."""
    steps = np.random.default_rng(0).standard_normal((windows + span + 99, trials))
    for at in range(1, len(steps)):
        steps[at] += memory * steps[at - 1]
    sums = np.cumsum(steps[99:], 0)
    return ((sums[span:] - sums[:-span]) / span).T


@pytest.mark.parametrize(
    "windows", [(2785, 96, 0.0), (2785, 96, 0.9), (1422, 96, 0.9), (600, 24, 0.0), (77, 4, 0.0)]
)
def test_windows_that_overlap_are_rarely_called_different_by_chance(windows):
    (count, span, memory), called = windows, 0
    tokens, other = np.full(count, 3), np.ones(count)
    for gap in overlapping(1000, count, span, memory):
        one = other + gap
        pair = paired_difference(*(Quality(nll=3 * sums, tokens=tokens, span=span) for sums in (one, other)))
        called += pair["significant"]
        assert pair["low"] < pair["difference"] < pair["high"]
    assert 0.03 <= called / 1000 <= 0.08


@pytest.mark.parametrize("windows", [(2449, 336), (170, 24), (134, 60), (47, 4)])
def test_too_few_separate_windows_tell_nothing(windows):
    count, span = windows
    better, worse = (
        Quality(nll=np.full(count, at), tokens=np.ones(count, int), span=span) for at in (1.0, 9.0)
    )
    pair = paired_difference(better, worse)
    assert pair == {"difference": -8.0, "low": None, "high": None, "significant": False}
    assert better.loss_interval() == (None, None)


def test_an_interval_over_windows_is_student_s_over_runs_of_them():
    random = np.random.default_rng(0)
    sums, tokens = random.random(100) + np.linspace(0, 2, 100), np.full(100, 2)
    runs = [(sums / 2)[at : at + 20].mean() for at in range(0, 100, 20)]
    margin = 2.776 * np.std(runs, ddof=1) / 5**0.5  # of 4 degrees of freedom
    found = Quality(nll=sums, tokens=tokens, span=6).loss_interval()
    assert found == pytest.approx((np.mean(runs) - margin, np.mean(runs) + margin))
    assert Quality(nll=sums, tokens=tokens, span=1).loss_interval() != found  # 8 runs
    a, b = (np.concatenate([tokens[:50], np.full(50, 5)]) for _ in range(2))
    assert Quality(nll=3.0 * a, tokens=b, span=6).loss_interval() == pytest.approx(
        (3, 3)
    )  # of other channel counts
