"""Weights of labels: gradients of whole steps against float64 references, how they are found, and what is refused."""

import copy

import datasets
import pytest
import torch
import torch.nn.functional as F
from classifiers import NAMES, build_bert, build_tokenizer, prepared, row_by_row, save
from task_steps import gradient_of, recipe_of_step
from test_gradients import assert_close
from test_in_place import NAMES as TAGS
from test_in_place import prepared as tagged
from test_in_place import tagger

from llm_finetuner.assembly import Parts
from llm_finetuner.data import class_weights, label_names
from llm_finetuner.data.class_weights import weigh
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.trainer import fit

PLAN = {"num_epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1, "overwrite": True}
GIVEN = {"bad": 3.0, "good": 0.5}  # fine weighs 1


def step_of(tmp_path, task, student, teacher, rows, weights, batch, accumulation, **objectives):
    """(gradient of every weight of the student, the step's record, what the plan says of the weights)."""
    student, plans = copy.deepcopy(student), []
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recipe = recipe_of_step(
        task, tmp_path / f"run{batch}", "distillation", batch, accumulation, True, objectives=objectives
    )
    recipe = Recipe(**{**vars(recipe), "data": Data(class_weights=weights, eval_fraction=0)})
    said = fit(
        recipe, Parts(student=student, teacher=copy.deepcopy(teacher), train=rows, device="cpu"),
        on_event=lambda kind, record: plans.append(record) if kind == "plan" else None,
    )  # fmt: skip
    got = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    return got, said.history[0], plans[0]["class_weights"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [GIVEN, "balanced"])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
def test_weights_are_of_cross_entropy_alone(tmp_path, weights, smoothing, batch, accumulation):
    """The sum over all texts, over their number: neither the teacher's word nor the denominator is weighed."""
    student, teacher, rows = (
        build_bert().double(),
        build_bert(32, 3, seed=1).double(),
        prepared(unlabelled=(1,)),
    )
    got, record, said = step_of(
        tmp_path, "classification", student, teacher, rows, weights, batch, accumulation,
        cross_entropy={"weight": 0.4, "label_smoothing": smoothing}, forward_kl=0.6,
    )  # fmt: skip
    labels = [row["labels"][0] for row in rows]
    counts = [labels.count(number) for number in range(3)]
    balanced = [7 / (3 * count) for count in counts]
    w = torch.tensor([3.0, 1.0, 0.5] if weights is GIVEN else balanced, dtype=torch.float64)
    assert said == pytest.approx(dict(zip(NAMES, w.tolist(), strict=True)))
    own, ce, kl = copy.deepcopy(student), 0.0, 0.0
    for answer, told, label in row_by_row(own, teacher, rows):
        log_s, log_t = (torch.log_softmax(x.logits[0], -1) for x in (answer, told))
        kl = kl + (log_t.exp() * (log_t - log_s)).sum()
        if label >= 0:
            q = F.one_hot(torch.tensor(label), 3).double() * (1 - smoothing) + smoothing / 3
            ce = ce - (w * q * log_s).sum()
            same = F.cross_entropy(
                answer.logits, torch.tensor([label]), w, reduction="sum", label_smoothing=smoothing
            )
            assert torch.allclose(-(w * q * log_s).sum(), same)
    assert_close(got, gradient_of((0.4 * ce + 0.6 * kl) / 8, own))
    assert record["cross_entropy"] == pytest.approx(float(ce.detach()) / 7, rel=1e-9)
    assert record["forward_kl"] == pytest.approx(float(kl.detach()) / 8, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [GIVEN, "balanced"])
def test_of_several_labels_the_weight_is_that_of_being_on(tmp_path, weights, smoothing):
    student, teacher, plain = build_bert().double(), build_bert(32, 3, seed=1).double(), prepared()
    several = [[float((i >> j) & 1) for j in range(3)] for i in range(7)] + [[-100.0] * 3]
    rows = label_names.put(plain.remove_columns("labels").add_column("labels", several), NAMES)
    got, record, said = step_of(
        tmp_path, "multi_label_classification", student, teacher, rows, weights, 3, 3,
        cross_entropy={"weight": 0.4, "label_smoothing": smoothing}, forward_kl=0.6,
    )  # fmt: skip
    # of 7 texts: each label is on in 3 and off in 4
    w = torch.tensor([3.0, 1.0, 0.5] if weights is GIVEN else [4 / 3] * 3, dtype=torch.float64)
    assert said == pytest.approx(dict(zip(NAMES, w.tolist(), strict=True)))
    own, ce, kl = copy.deepcopy(student), 0.0, 0.0
    for row, (answer, told, _) in zip(rows, row_by_row(own, teacher, plain), strict=True):
        s, p = answer.logits[0].sigmoid(), told.logits[0].sigmoid()
        kl = kl + (p * (p / s).log() + (1 - p) * ((1 - p) / (1 - s)).log()).mean()
        y = torch.tensor(row["labels"], dtype=torch.float64)
        if y[0] >= 0:
            q = y * (1 - smoothing) + smoothing / 2
            ce = ce - (w * q * s.log() + (1 - q) * (1 - s).log()).mean()
    assert_close(got, gradient_of((0.4 * ce + 0.6 * kl) / 8, own))
    assert record["cross_entropy"] == pytest.approx(float(ce.detach()) / 7, rel=1e-9)


def test_tags_weigh_word_by_word(tmp_path):
    student, teacher, rows = tagger().double(), tagger(16, 4, seed=1).double(), tagged(len(TAGS))
    got, _, said = step_of(
        tmp_path,
        "token_classification",
        student,
        teacher,
        rows,
        "balanced",
        3,
        3,
        cross_entropy=1.0,
        forward_kl=0.1,
    )
    told = [label for row in rows for label in row["labels"] if label != -100]
    w = torch.tensor([len(told) / (3 * told.count(i)) for i in range(3)], dtype=torch.float64)
    assert said == pytest.approx(dict(zip(TAGS, w.tolist(), strict=True)))
    own, total = copy.deepcopy(student), 0.0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        log_s = torch.log_softmax(own(ids).logits[0], -1)
        log_t = torch.log_softmax(teacher(ids).logits[0].detach(), -1)
        at = labels != -100
        total = total - (w[labels[at]] * log_s[at, labels[at]]).sum()
        total = total + 0.1 * (log_t.exp() * (log_t - log_s)).sum(-1)[at].sum()
    assert_close(got, gradient_of(total / len(told), own))


# ---- how they are found


def test_balanced_weights_keep_the_sum_of_the_rows():
    found = weigh("balanced", {"a": 6, "b": 3, "c": 1}, 10, True)
    assert found == pytest.approx({"a": 10 / 18, "b": 10 / 9, "c": 10 / 3})
    assert sum(found[name] * count for name, count in (("a", 6), ("b", 3), ("c", 1))) == pytest.approx(10)
    assert weigh("balanced", {"a": 2, "b": 0.5}, 8, False) == pytest.approx({"a": 3.0, "b": 15.0})
    assert weigh({"b": 2}, {"a": 0, "b": 3}, 3, True) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("counts", "total", "exclusive", "said"),
    [
        ({"a": 3, "b": 0}, 3, True, "no row has the label 'b'"),
        ({"a": 3, "b": 1}, 3, False, "all rows have the label 'a'"),
        ({"a": 1, "b": 0}, 3, False, "no row has the label 'b'"),
    ],
)
def test_a_label_that_cannot_be_balanced_is_told(counts, total, exclusive, said):
    with pytest.raises(DataError, match=f"{said}.*\n.*by name"):
        weigh("balanced", counts, total, exclusive)


def test_names_of_no_label_are_told():
    with pytest.raises(
        RecipeError, match="data.class_weights names 'god', and the labels are bad, fine, good"
    ):
        class_weights.of_rows(prepared(), NAMES, {"god": 2.0}, True)


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1.0}, {"a": "2"}, {"a": float("nan")}, {"a": float("inf")},
                                     {"a": True}, "equal", ["a"]])  # fmt: skip
def test_weights_that_are_no_positive_numbers(weights):
    with pytest.raises(RecipeError, match="data.class_weights"):
        Data(class_weights=weights)


def test_names_that_yaml_reads_as_numbers():
    assert Data(class_weights={0: 1, 1: 2.5}).class_weights == {"0": 1, "1": 2.5}


def test_weights_without_cross_entropy_are_warned_of(tmp_path):
    recipe = recipe_of_step("classification", tmp_path, "vanilla_distillation", 4, 1, True, alpha=0.0)
    recipe = Recipe(**{**vars(recipe), "data": Data(class_weights="balanced")})
    assert any("data.class_weights has no effect" in said for said in recipe.warnings())
    weighed = Recipe(**{**vars(recipe), "options": {"alpha": 0.1}})
    assert not any("class_weights" in said for said in weighed.warnings())


@pytest.mark.parametrize("setting", [{"class_weights": "balanced"}, {"label_names": ["a", "b"]}])
def test_settings_of_labels_are_for_labels(tmp_path, setting):
    recipe = recipe_of_step("masked_lm", tmp_path, "fine_tuning", 4, 1, False)
    recipe = Recipe(**{**vars(recipe), "data": Data(**setting)})
    with pytest.raises(
        RecipeError, match=f"data.{next(iter(setting))} is for labels, and a model for masked_lm"
    ):
        fit(recipe, Parts(student=build_bert(), train=prepared(), device="cpu"))


# ---- in Python


def test_a_rare_label_is_heard_and_evaluations_are_not_weighed(tmp_path):
    """The share among the training rows decides; what is held out is scored as it is."""
    texts = [
        {"text": "good film" if i % 6 else "bad film", "label": "bad" if i % 6 == 0 else "good"}
        for i in range(24)
    ]
    rows = datasets.Dataset.from_list(texts)
    save(tmp_path, build_tokenizer(), s=build_bert(names=["LABEL_0", "LABEL_1"]))
    plans: list[dict] = []

    def trained(weights):
        tuner = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="classification")
        tuner.load_model(method="full")
        result = tuner.train(
            rows, eval_dataset=rows.select(range(6)), class_weights=weights, **PLAN,
            on_event=lambda kind, record: plans.append(record) if kind == "plan" else None,
        )  # fmt: skip
        return tuner, result

    tuner, weighed = trained("balanced")
    assert plans[-1]["class_weights"] == pytest.approx({"bad": 24 / 8, "good": 24 / 40})
    last = weighed.history[-1]
    assert last["eval_loss"] == pytest.approx(tuner.evaluate(rows.select(range(6)))["loss"], rel=1e-6)
    _, plain = trained(None)
    assert plans[-1]["class_weights"] is None
    assert weighed.history[0]["cross_entropy"] != plain.history[0]["cross_entropy"]
    with pytest.raises(RecipeError, match="data.class_weights names 'rare'"):
        trained({"rare": 2.0})
    again = LLMFineTuner(tmp_path / "run", tmp_path / "again", task="classification")
    again.load_model(method="full")
    with pytest.raises(DataError, match="no row has the label 'bad'"):
        again.train(rows.filter(lambda row: row["label"] == "good"), class_weights="balanced", **PLAN)
