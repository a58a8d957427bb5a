"""The verdict on models that give labels: in accuracy, on rows chosen so that it is known who is right where."""

import json
import re

import datasets
import pytest
import torch
from classifiers import NAMES, build_bert, build_tokenizer
from test_in_place import filler, tagger
from test_in_place import prepared as hidden_or_tagged

from llm_finetuner.benchmark.classes import paired, wilson
from llm_finetuner.benchmark.quality import evaluate_all
from llm_finetuner.benchmark.verdict import MOST_LABELS, Entry, verdict
from llm_finetuner.data import label_names
from llm_finetuner.models import labels
from llm_finetuner.report.write import write
from llm_finetuner.tasks.classification import Classification, SeveralLabels
from llm_finetuner.tasks.in_place import MaskedLM, TokenClassification

SPEAKS_OF_TOKENS = re.compile(r"perplexit|nats a token|a token\b")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def a():
    return build_bert()


@pytest.fixture(scope="module")
def b():
    return build_bert(seed=5)


@torch.no_grad()
def answers(model, rows) -> list[torch.Tensor]:
    """The logits of each row, rows of one length at a time: nothing is padded."""
    found, ids = {}, [row["input_ids"] for row in rows]
    for length in {len(row) for row in ids}:
        numbers = [number for number, row in enumerate(ids) if len(row) == length]
        logits = model.eval()(torch.tensor([ids[number] for number in numbers])).logits
        found |= dict(zip(numbers, logits, strict=True))
    return [found[number] for number in range(len(ids))]


def best(model, rows) -> list[int]:
    return [int(logits_C.argmax()) for logits_C in answers(model, rows)]


def texts(count: int) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = [2, *torch.randint(5, 20, (3 + i % 8,), generator=draw).tolist(), 3]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
    return rows


@pytest.fixture(scope="module")
def rows_where(a, b):
    """Rows of which both models, a alone, or b alone give the right label: as many as asked for of each."""
    rows = texts(900)
    pool = list(zip(rows, best(a, rows), best(b, rows), strict=True))
    alike = [({**row, "labels": [one]}) for row, one, other in pool if one == other]
    apart = [(row, one, other) for row, one, other in pool if one != other]

    def choose(both: int, only_a: int = 0, only_b: int = 0):
        assert len(alike) >= both and len(apart) >= only_a + only_b
        found = alike[:both] + [{**row, "labels": [one]} for row, one, _ in apart[:only_a]]
        found += [{**row, "labels": [other]} for row, _, other in apart[only_a : only_a + only_b]]
        return label_names.put(datasets.Dataset.from_list(found), NAMES)

    return choose


def judged(task, rows, tokenizer, **models) -> dict:
    entries = [Entry(role.replace("_", "-"), role, model, tokenizer) for role, model in models.items()]
    found = verdict(entries, task, rows)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not SPEAKS_OF_TOKENS.search(" ".join([found["sentence"], *found["warnings"]]))
    return found


def test_it_paid_in_points_of_accuracy(a, b, tokenizer, rows_where):
    rows = rows_where(60, 30, 2)
    found = judged(Classification(), rows, tokenizer, distilled=a, baseline_steps=b)
    assert found["paid"] == found["paid_at_equal_steps"] == "yes"
    assert re.fullmatch(
        r"At equal steps distilling paid: distilled reaches accuracy 97\.8 % against 67\.4 % for the same student on "
        r"cross-entropy alone, 30\.4 points higher \(95 % interval \+\d\d\.\d to \+\d\d\.\d points\), more than the "
        r"uncertainty\.",
        found["sentence"],
    )
    one, other = found["models"]
    assert (one["accuracy"], one["accuracy_low"], one["accuracy_high"]) == (90 / 92, *wilson(90, 92))
    assert "perplexity" not in one and one["loss"] > 0
    assert {"macro_f1", "mcc", "calibration_error"} <= one.keys()
    right = [[1] * 90 + [0] * 2, [1] * 60 + [0] * 30 + [1] * 2]
    (pair,) = found["differences"]
    assert {key: pair[key] for key in ("difference", "low", "high", "significant", "p")} == paired(*right)
    assert found["measure"]["key"] == "accuracy" and found["tokens"] == found["examples"] == 92


def test_it_did_not_pay(a, b, tokenizer, rows_where):
    found = judged(Classification(), rows_where(60, 30, 2), tokenizer, distilled=b, baseline_compute=a)
    assert found["paid"] == "no" and "30.4 points lower (95 % interval" in found["sentence"]
    said = "distilled is worse than the same student trained on cross-entropy alone for as much compute."
    assert said in found["warnings"]


@pytest.mark.parametrize("only_a, only_b, why", [(10, 8, ""), (5, 0, ": few examples tell the two apart")])
def test_what_cannot_be_told_is_unclear(a, b, tokenizer, rows_where, only_a, only_b, why):
    """Five against none of 105: the interval leaves out 0, and McNemar's p is 0.06."""
    found = judged(
        Classification(), rows_where(100, only_a, only_b), tokenizer, distilled=a, baseline_steps=b
    )
    assert found["paid"] == "unclear" and "made no difference that can be told" in found["sentence"]
    assert f"points), not more than the uncertainty{why}" in found["sentence"]
    assert (found["differences"][0]["low"] > 0) == bool(why)


def test_too_few_examples_settle_nothing(a, b, tokenizer, rows_where):
    found = judged(Classification(), rows_where(10, 15, 0), tokenizer, distilled=a, baseline_steps=b)
    assert found["paid"] == "unclear" and "points higher on 25 examples only, too few" in found["sentence"]
    assert any("Only 25 examples" in warning for warning in found["warnings"])


def test_a_teacher_that_is_not_better(a, b, tokenizer, rows_where):
    models = {"teacher": b, "untouched": build_bert(seed=9), "distilled": a, "baseline_steps": a}
    found = judged(Classification(), rows_where(60, 30, 2), tokenizer, **models)
    said = " ".join(found["warnings"])
    assert "The teacher (teacher) is worse than baseline-steps: there was nothing to compress." in said
    assert "distilled is better than its teacher on these rows" in said
    assert found["models"][2]["retained"] == pytest.approx(100 * 90 / 62)


def test_plain_tuning_is_held_against_the_untouched_model(a, b, tokenizer, rows_where):
    found = judged(Classification(), rows_where(60, 30, 2), tokenizer, tuned=a, untouched=b)
    assert found["paid"] == "yes" and found["sentence"].startswith(
        "Fine-tuning paid: tuned reaches accuracy 97.8 % against 67.4 % for the untouched model, 30.4 points higher"
    )


def test_labels_and_answers_are_those_of_the_models(a, b, tokenizer, rows_where):
    rows = rows_where(20, 12, 3)
    found = judged(Classification(), rows, tokenizer, teacher=b, distilled=a)
    assert found["labels"]["names"] == NAMES
    said = {"teacher": best(b, rows), "distilled": best(a, rows)}
    true = [labels[0] for labels in rows["labels"]]
    for name, numbers in said.items():
        for number, score in enumerate(found["labels"]["scores"][name]):
            hits = sum(x == y == number for x, y in zip(numbers, true, strict=True))
            assert score["count"] == true.count(number)
            assert score["precision"] == (hits / numbers.count(number) if numbers.count(number) else None)
            assert score["recall"] == (hits / true.count(number) if true.count(number) else None)
    known = {tokenizer.decode(ids[1:-1]): place for place, ids in enumerate(rows["input_ids"])}
    assert len(found["answers"]) == 6
    for shown in found["answers"]:
        place = known[shown["text"]]
        assert shown["answers"] == {name: NAMES[numbers[place]] for name, numbers in said.items()}
        assert said["teacher"][place] != said["distilled"][place]
        assert shown["truth"] == NAMES[true[place]]
    same = judged(Classification(), rows, tokenizer, teacher=a, distilled=a)
    assert same["answers"] == []


def test_several_labels_a_text_are_right_together(a, b, tokenizer):
    """Subset accuracy: a text counts where all of its labels are right."""
    plain = texts(120)
    own, other = ([(z > 0).double().tolist() for z in answers(model, plain)] for model in (a, b))
    rows = [{**row, "labels": on} for row, on in zip(plain, own, strict=True)]
    rows[0]["labels"] = [1 - x for x in rows[0]["labels"]]
    rows = label_names.put(datasets.Dataset.from_list(rows), NAMES)
    exact = sum(on == row["labels"] for on, row in zip(other, rows, strict=True))
    found = judged(SeveralLabels(), rows, tokenizer, distilled=a, baseline_steps=b)
    assert found["paid"] == "yes"
    said = f"distilled reaches subset accuracy {100 * 119 / 120:.1f} % against {100 * exact / 120:.1f} % for"
    assert said in found["sentence"]
    assert found["models"][1]["accuracy"] == exact / 120 and "micro_f1" in found["models"][1]
    for shown in found["answers"]:
        one = [name for name in NAMES if name in shown["truth"].split(" + ")]
        assert shown["truth"] == (" + ".join(one) or "none") and shown["truth"] in shown["answers"].values()


def test_tags_of_one_sentence_are_resampled_together(tokenizer):
    one, two, rows, plain = tagger(), tagger(seed=1), [], texts(80)
    said = [[logits.argmax(-1).tolist() for logits in answers(model, plain)] for model in (one, two)]
    for number, row in enumerate(plain):
        tags = said[0 if number % 4 else 1][number]
        rows.append({**row, "labels": [-100, *tags[1:-1], -100]})
    rows = label_names.put(datasets.Dataset.from_list(rows), ["O", "NAME", "PLACE"])
    found = judged(TokenClassification(), rows, tokenizer, distilled=one, baseline_steps=two)
    quality = evaluate_all(TokenClassification(), {"one": one, "two": two}, rows)
    true = rows["labels"]
    right = [
        sum(x == y for x, y in zip(of_row, truth, strict=True))
        for of_model in said
        for of_row, truth in zip(of_model, true, strict=True)
    ]
    assert quality["one"].right.tolist() == right[:80] and quality["two"].right.tolist() == right[80:]
    pair = paired(right[:80], right[80:], quality["one"].tokens)
    assert {key: found["differences"][0][key] for key in pair} == pair
    assert found["examples"] == 80 and found["tokens"] == sum(len(row["input_ids"]) - 2 for row in rows)
    assert re.search(r"reaches accuracy \d\d\.\d % against \d\d\.\d % for", found["sentence"])
    assert found["models"][0]["accuracy_low"] < found["models"][0]["accuracy"]
    shown = found["answers"][0]
    tags = dict(zip(("truth", *shown["answers"]), (shown["truth"], *shown["answers"].values()), strict=True))
    words = {name: [pair.split()[0] for pair in said.split(", ")] for name, said in tags.items()}
    assert words["truth"] == words["distilled"] == words["baseline-steps"]
    assert set(words["truth"]) <= set(shown["text"].split())


def test_hidden_tokens_have_a_perplexity_of_their_own(tokenizer):
    rows = hidden_or_tagged(30, 40)
    found = verdict(
        [Entry("kd", "distilled", filler(), tokenizer), Entry("ce", "baseline_steps", filler(seed=1), tokenizer)],
        MaskedLM(), rows,
    )  # fmt: skip
    assert "kd reaches hidden-token perplexity " in found["sentence"]
    assert found["labels"] is None and found["answers"] == []
    assert "of a hidden token, in nats" in found["formulas"]["loss"]


# ---- the report


@pytest.fixture(scope="module")
def page(a, b, tokenizer, rows_where, tmp_path_factory):
    """Of a verdict whose labels try to break it."""
    nasty, folder = ["<b>bad</b>", "fine | x", "good"], tmp_path_factory.mktemp("report")
    for model in (a, b):
        labels.rename(model, nasty, 0)
    found = judged(
        Classification(),
        rows_where(40, 25, 3),
        tokenizer,
        teacher=b,
        untouched=build_bert(seed=9),
        distilled=a,
    )
    history = [
        {"step": s, "loss": 1.0, "cross_entropy": 1.0 / s, "eval_loss": 1.0, "eval_accuracy": s / 10}
        for s in range(1, 9)
    ]
    write(found, {"distilled": history}, folder)
    for model in (a, b):
        labels.rename(model, NAMES, 0)
    return found, (folder / "report.html").read_text(), (folder / "report.md").read_text()


def test_the_report_speaks_of_accuracy(page):
    found, html, notes = page
    for text in (html, notes):
        assert not SPEAKS_OF_TOKENS.search(text)
        assert "Scored on 68 held-out texts." in text and "loss, nats a text" in text
        assert "Differences in accuracy" in text and "Above zero, the first model is better" in text
        assert "% of its accuracy" in text
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "The models", "Differences in accuracy", "By label", "Where the answers differ", "Training",
        "Quality for its price", "How the numbers were made",
    ]  # fmt: skip
    order = ["accuracy", "macro-F1", "Matthews' correlation", "loss, nats a text"]
    lines = [line.split("|")[1].strip() for line in notes.splitlines() if line.startswith("| ")]
    places = [lines.index(name) for name in order]
    assert places == sorted(places)
    assert '<text class="title" text-anchor="middle"' in html and ">nats a text</text>" in html
    titles = re.findall(r'<text class="title"[^>]*>(.*?)</text>', html)
    assert titles.count("accuracy") >= 4 and "tokens a second" in titles
    assert "<h3>accuracy</h3>" in html and "80 %</text>" in html
    assert f"{100 * found['models'][0]['accuracy']:.1f} %" in html


def test_labels_that_users_named_are_shown_and_never_run(page):
    _found, html, notes = page
    assert "<b>bad" not in html and "&lt;b&gt;bad" in html
    assert "fine \\| x" in notes and "<b>" not in notes


def test_many_labels_are_no_table(tokenizer):
    names = [f"label {number}" for number in range(MOST_LABELS + 1)]
    model = build_bert(names=names)
    rows = [{**row, "labels": [20]} for row in texts(12)]
    rows = label_names.put(datasets.Dataset.from_list(rows), names)
    assert judged(Classification(), rows, tokenizer, distilled=model)["labels"] is None
