"""The verdict on real models that were trained for more steps or fewer, so that it is known who is better."""

import copy
import json
import math

import pytest
from benchmark_models import prepared, texts, tiny_llama, tiny_tokenizer, train

from llm_finetuner.benchmark import judge
from llm_finetuner.benchmark.verdict import Entry, finite, verdict
from llm_finetuner.errors import DataError
from llm_finetuner.tasks.causal_lm import CausalLM

LINES = texts(40, seed=7)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepared(tokenizer, LINES)


@pytest.fixture(scope="module")
def models(tokenizer):
    """{steps: a student of width 16 trained that long}, and a teacher that is truly better."""
    lessons = prepared(tokenizer, texts(80))
    students = {
        steps: train(tiny_llama(len(tokenizer), width=16), lessons, steps) for steps in (0, 12, 20, 40)
    }
    return {**students, "teacher": train(tiny_llama(len(tokenizer), width=48), lessons, 60)}


def entries(models, tokenizer, **steps_of_role) -> list[Entry]:
    """One entry a role, named by the role with - for _."""
    return [
        Entry(role.replace("_", "-"), role, models[key], tokenizer, steps=key if key != "teacher" else None)
        for role, key in steps_of_role.items()
    ]


def judged(models, tokenizer, rows, **steps_of_role) -> dict:
    return verdict(entries(models, tokenizer, **steps_of_role), CausalLM(), rows)


def test_it_paid(models, tokenizer, rows):
    roles = {
        "teacher": "teacher",
        "untouched": 0,
        "distilled": 40,
        "baseline_steps": 12,
        "baseline_compute": 20,
    }
    found = judged(models, tokenizer, rows, **roles)
    assert found["paid"] == found["paid_at_equal_steps"] == found["paid_at_equal_compute"] == "yes"
    assert found["sentence"].startswith("At equal steps distilling paid: distilled reaches perplexity ")
    assert "; at equal compute, teacher passes counted, it paid: " in found["sentence"]
    assert found["sentence"].count(", more than the uncertainty") == 2 and found["sentence"].count(". ") == 0
    assert "worse" not in " ".join(found["warnings"])


def test_it_did_not_pay(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, teacher="teacher", untouched=0, distilled=12, baseline_steps=40)
    assert found["paid"] == "no" and found["paid_at_equal_compute"] is None
    assert found["sentence"].startswith("At equal steps distilling did not pay: ")
    assert "compute" not in found["sentence"] and "% higher" in found["sentence"]
    said = "distilled is worse than the same student trained on cross-entropy alone for as many steps."
    assert said in found["warnings"]


def test_it_paid_at_equal_steps_only(models, tokenizer, rows):
    roles = {"teacher": "teacher", "distilled": 20, "baseline_steps": 12, "baseline_compute": 40}
    found = judged(models, tokenizer, rows, **roles)
    assert (found["paid_at_equal_steps"], found["paid_at_equal_compute"]) == ("yes", "no")
    assert found["paid"] == "no"
    assert "; at equal compute, teacher passes counted, it did not pay: " in found["sentence"]


def test_it_made_no_difference(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, teacher="teacher", untouched=0, distilled=20, baseline_steps=20)
    assert found["paid"] == "unclear"
    assert "made no difference that can be told" in found["sentence"]
    assert "not more than the uncertainty" in found["sentence"]


def test_without_a_baseline_it_is_not_known(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, teacher="teacher", untouched=0, distilled=40)
    assert found["paid"] == "unknown"
    assert found["sentence"].startswith("Whether distilling paid is not known: ")
    assert (
        "no baseline was trained, so nothing can be said about distilling against plain" in found["sentence"]
    )
    alone = judged(models, tokenizer, rows, distilled=40)
    assert alone["paid"] == "unknown" and "untouched student was not measured" in alone["sentence"]
    assert alone["models"][0]["retained"] is None and alone["compression"]["parameters"] is None


def test_worse_than_the_untouched_student(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, teacher="teacher", untouched=40, distilled=12)
    assert found["paid"] == "no" and found["sentence"].startswith("Distilling did not pay: ")
    assert "Distilling made things worse: distilled is worse than the untouched student." in found["warnings"]


def test_plain_tuning_is_held_against_the_untouched_model(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, tuned=40, untouched=0)
    assert found["paid"] == "yes" and found["cost"]["ratio"] is None
    assert found["sentence"].startswith("Fine-tuning paid: tuned reaches perplexity ")
    assert found["warnings"] == [] or all("calibration" in warning for warning in found["warnings"])
    assert judged(models, tokenizer, rows, tuned=12, untouched=40)["paid"] == "no"
    assert judged(models, tokenizer, rows, tuned=12)["paid"] == "unknown"


def test_a_teacher_that_is_not_better(models, tokenizer, rows):
    found = judged(models, tokenizer, rows, teacher=12, untouched=0, distilled=20, baseline_steps=40)
    text = " ".join(found["warnings"])
    assert "The teacher (teacher) is worse than baseline-steps: there was nothing to compress." in text
    assert "distilled is better than its teacher" in text


def test_too_few_examples_settle_nothing(models, tokenizer, rows):
    found = judged(models, tokenizer, rows[:8], teacher="teacher", distilled=40, baseline_steps=12)
    assert found["paid"] == "unclear" and "lower on 8 examples only, too few" in found["sentence"]
    assert any("Only 8 examples" in warning for warning in found["warnings"])


def test_a_calibration_that_got_much_worse_is_said():
    def line(role, error):
        return {"name": role, "role": role, "calibration_error": error, "perplexity": 9.0, "loss": 2.2}

    pair = {"name": "distilled", "other": "baseline_steps", "role": "baseline_steps", "difference": 0.0}
    pair |= {"low": 0.0, "high": 0.0, "significant": False}
    lines = [line("distilled", 0.12), line("baseline_steps", 0.04)]
    (said,) = judge.warnings(judge.Case(lines, [pair], 50, CausalLM.measure))
    assert "calibration error is 0.120, that of baseline_steps 0.040" in said
    lines[0] = line("distilled", 0.08)
    assert judge.warnings(judge.Case(lines, [pair], 50, CausalLM.measure)) == []


def test_a_model_that_diverged_is_named(models, tokenizer, rows):
    broken = copy.deepcopy(models[12])
    broken.lm_head.weight.data.fill_(math.nan)
    found = judged({**models, "broken": broken}, tokenizer, rows, distilled="broken", baseline_steps=20)
    assert found["warnings"][0].startswith("The loss of distilled is not a number")
    assert "beyond measure" in found["sentence"] and "nan" not in found["sentence"]
    assert found["models"][0]["loss"] is None and found["differences"][0]["significant"] is False
    json.dumps(found, allow_nan=False)


def test_every_column_is_filled_and_agrees_with_the_others(models, tokenizer, rows, tmp_path):
    models["teacher"].save_pretrained(tmp_path / "teacher")
    models[40].save_pretrained(tmp_path / "student")
    given = [
        Entry("big", "teacher", models["teacher"], tokenizer, tmp_path / "teacher"),
        Entry("small", "untouched", models[0], tokenizer),
        Entry("kd", "distilled", models[40], tokenizer, tmp_path / "student", 40, 3.0),
        Entry("kd2", "distilled", models[20], tokenizer, None, 20, 1.5),
        Entry("ce", "baseline_steps", models[12], tokenizer, None, 12, 1.0),
    ]
    prompts = [" ".join(line.split()[:2]) for line in LINES[:6]]
    found = verdict(given, CausalLM(), rows, prompts, max_new_tokens=8, seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    big, small, kd, kd2, ce = found["models"]
    optional = {"bytes", "steps", "seconds"}
    for line in (small, kd, kd2, ce):
        assert [key for key, value in line.items() if value is None and key not in optional] == []
    assert big["agreement"] is None and big["rouge1"] is None and big["retained"] == 100
    assert kd["retained"] == pytest.approx(100 * big["perplexity"] / kd["perplexity"])
    assert kd["perplexity"] == pytest.approx(math.exp(kd["loss"]))
    assert kd["perplexity_low"] < kd["perplexity"] < kd["perplexity_high"]
    assert found["compression"]["parameters"] == big["parameters"] / kd["parameters"] > 2
    assert found["compression"]["bytes"] == big["bytes"] / kd["bytes"]
    assert found["cost"]["ratio"] > 1
    assert small["latency_ms"] == kd["latency_ms"] != big["latency_ms"]  # one measurement for one layout
    assert [finding["name"] for finding in found["findings"]] == ["kd", "kd2"]
    assert found["sentence"] == found["findings"][0]["sentence"]
    pairs = {(pair["name"], pair["other"]) for pair in found["differences"]}
    assert {("kd", "ce"), ("kd", "kd2"), ("kd", "big"), ("kd2", "small"), ("big", "ce")} <= pairs
    assert "teacher's greedy" in found["references"] and len(found["samples"]) == 2
    assert found["samples"][0]["prompt"] == prompts[0]
    assert found["samples"][0]["completions"]["big"] == found["samples"][0]["reference"]
    assert found["examples"] == len(rows) and "retained" in found["formulas"]


def test_heads_padded_to_different_widths_are_compared_token_by_token(models, tokenizer, rows):
    padded = copy.deepcopy(models["teacher"])
    padded.resize_token_embeddings(len(tokenizer) + 50, mean_resizing=False)
    padded.lm_head.weight.data[len(tokenizer) :] = 9.0  # the padding would win every position
    plain = judged(models, tokenizer, rows, teacher="teacher", distilled=40)
    wide = judged({**models, "padded": padded}, tokenizer, rows, teacher="padded", distilled=40)
    for key in ("loss", "accuracy", "agreement", "kl_to_teacher"):
        assert wide["models"][1][key] == plain["models"][1][key]
    assert wide["models"][0]["loss"] == pytest.approx(plain["models"][0]["loss"], rel=1e-6)


def test_what_cannot_be_compared_is_refused(models, tokenizer, rows):
    student = Entry("a", "distilled", models[40], tokenizer)
    teacher = Entry("b", "teacher", models["teacher"], tokenizer)
    other = Entry("c", "teacher", models["teacher"], tokenizer)
    for wrong in ([teacher], [student, student], [student, teacher, other]):
        with pytest.raises(DataError):
            verdict(wrong, CausalLM(), rows)


def test_numbers_that_json_does_not_have():
    assert finite({"a": [math.nan, 1.0], "b": math.inf}) == {"a": [None, 1.0], "b": None}
