"""Texts with several labels each: gradients against a float64 reference, metrics, and folders for pipelines."""

import copy

import datasets
import pytest
import torch
from classifiers import NAMES, WORDS, build_bert, build_tokenizer, prepared, row_by_row, save
from test_gradients import assert_close
from transformers import pipeline

from llm_finetuner.assembly import Parts
from llm_finetuner.data import label_names
from llm_finetuner.errors import RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
def test_several_labels_a_text_are_learned_each_for_itself(tmp_path, batch, accumulation):
    """Binary cross-entropy and the KL of two outcomes, averaged over the labels; a text without labels is heard."""
    student, teacher = build_bert().double(), build_bert(32, 3, seed=1).double()
    plain = prepared()
    several = [[float((i >> j) & 1) for j in range(3)] for i in range(7)] + [[-100.0] * 3]
    rows = label_names.put(plain.remove_columns("labels").add_column("labels", several), NAMES)
    own = copy.deepcopy(student)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recipe = Recipe(
        task="multi_label_classification", method="vanilla_distillation", student=Model("s"), teacher=Teacher("t"),
        options={"temperature": 2.0, "alpha": 0.3}, output=str(tmp_path / "run"),
        train=Train(
            steps=1, batch_size=batch, gradient_accumulation_steps=accumulation, learning_rate=1.0, warmup=0,
            schedule="constant", max_grad_norm=0, optimizer="test_gradients:sgd", precision="fp32", save_every=0,
        ),
    )  # fmt: skip
    parts = Parts(
        student=student,
        teacher=copy.deepcopy(teacher),
        train=rows,
        held_out=rows.select(range(7)),
        device="cpu",
    )
    result = fit(recipe, parts)
    got = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    total, ce = 0.0, 0.0
    for row, said in zip(rows, row_by_row(own, teacher, plain), strict=True):
        s, t = said[0].logits[0], said[1].logits[0]
        p, q = (t / 2).sigmoid(), (s / 2).sigmoid()
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        total = total + 0.7 * 4 * kl.mean()
        y = torch.tensor(row["labels"], dtype=torch.float64)
        if y[0] >= 0:
            own_ce = -(y * s.sigmoid().log() + (1 - y) * (1 - s.sigmoid()).log()).mean()
            total, ce = total + 0.3 * own_ce, ce + own_ce
    names, weights = zip(*own.named_parameters(), strict=True)
    assert_close(
        got, dict(zip(names, torch.autograd.grad(total / 8, weights, allow_unused=True), strict=True))
    )
    assert result.history[0]["cross_entropy"] == pytest.approx(
        float(ce.detach()) / 7, rel=1e-9
    )  # 7 have labels
    assert 0 <= result.history[0]["eval_accuracy"] <= 1
    assert student.config.problem_type == "multi_label_classification"


def test_lists_of_labels_make_a_pipeline_of_sigmoids(tmp_path, tokenizer):
    save(tmp_path, tokenizer, s=build_bert(names=["LABEL_0", "LABEL_1"]))
    rows = [
        {
            "text": f"{a} {b}",
            "labels": [n for n, w in (("kind", "good"), ("short", "film")) if w in (a, b)] or ["none"],
        }
        for a in WORDS[:6]
        for b in WORDS[8:]
    ]
    tuner = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="multi_label_classification")
    tuner.load_model(method="full")
    tuner.train(
        datasets.Dataset.from_list(rows), num_epochs=3, batch_size=8, gradient_accumulation_steps=1, learning_rate=3e-3
    )  # fmt: skip
    found = tuner.evaluate(datasets.Dataset.from_list(rows))
    assert {"micro_f1", "macro_f1", "accuracy"} <= found.keys()
    theirs = pipeline("text-classification", str(tmp_path / "run"), top_k=None)(["good film"])[0]
    ours = tuner.predict("good film")[0]
    assert {one["label"] for one in ours} == {"kind", "none", "short"}
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)
    student = LLMFineTuner(tmp_path / "s", tmp_path / "student", task="multi_label_classification")
    student.load_model(method="distillation")
    student.load_teacher_model(str(tmp_path / "run"))
    student.setup_distillation(objectives={"reverse_kl": 1.0})
    with pytest.raises(RecipeError, match="reverse_kl does not fit"):
        student.train(datasets.Dataset.from_list(rows), num_epochs=1)
