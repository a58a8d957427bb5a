"""Text classification: gradients of whole steps against float64 references, labels by name, folders for pipelines."""

import copy
import functools
from dataclasses import replace

import datasets
import pytest
import task_steps
import torch
from classifiers import NAMES, WORDS, build_bert, build_gpt2, build_tokenizer, prepared, row_by_row, save
from test_gradients import assert_close
from transformers import AutoModelForSequenceClassification, pipeline

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.tasks.classification import Classification
from llm_finetuner.trainer import fit


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


gradient_of_step = functools.partial(task_steps.gradient_of_step, "classification")


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (3, 3), (1, 8)])
@pytest.mark.parametrize("build", [build_bert, build_gpt2])
def test_labels_and_teacher_give_the_gradient_of_the_definition(tmp_path, build, batch, accumulation):
    """Rows without a label are heard by the teacher alone, and count among those that are divided by."""
    student, teacher, rows = build().double(), build_bert(32, 3, seed=1).double(), prepared(unlabelled=(1, 6))
    got, record = gradient_of_step(
        tmp_path,
        student,
        teacher,
        rows,
        "vanilla_distillation",
        batch,
        accumulation,
        temperature=2.0,
        alpha=0.3,
    )
    own, ce, kl, nll = copy.deepcopy(student), 0.0, 0.0, 0.0
    for said, told, label in row_by_row(own, teacher, rows):
        log_s, log_t = (torch.log_softmax(x.logits[0] / 2, -1) for x in (said, told))
        kl = kl + 4 * (log_t.exp() * (log_t - log_s)).sum()
        if label >= 0:
            ce = ce - torch.log_softmax(said.logits[0], -1)[label]
            nll = nll - torch.log_softmax(told.logits[0], -1)[label]
    loss = (0.3 * ce + 0.7 * kl) / len(rows)
    names, weights = zip(*own.named_parameters(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True))
    assert_close(got, wanted)
    assert record["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    # of the 6 texts that have a label, and of all 8 that the teacher answers
    assert record["cross_entropy"] == pytest.approx(float(ce.detach()) / 6, rel=1e-9)
    assert record["teacher_nll"] == pytest.approx(float(nll) / 6, rel=1e-9)
    assert record["forward_kl"] == pytest.approx(float(kl.detach()) / 8, rel=1e-9)


@pytest.mark.parametrize("batch", [8, 3])
def test_hidden_states_count_by_text_whatever_its_length(tmp_path, batch):
    """A text's loss is the mean over its tokens, [CLS] and [SEP] too, so padding and batches change nothing."""
    student, teacher, rows = build_bert().double(), build_bert(16, 4, seed=1).double(), prepared()
    got, _ = gradient_of_step(
        tmp_path, student, teacher, rows, "feature_distillation", batch, 8 // batch + 8 % batch, alpha=0.0,
        feature_layers=[[0, 1], [1, 3]],
    )  # fmt: skip
    own, loss = copy.deepcopy(student), 0.0
    for said, told, _ in row_by_row(own, teacher, rows):
        for s, t in ((1, 2), (2, 4)):  # hidden_states[0] are the embeddings
            apart = (said.hidden_states[s][0] - told.hidden_states[t][0]).square().mean(-1)
            loss = loss + apart.mean() / 2 / len(rows)
    names, weights = zip(*own.named_parameters(), strict=True)
    assert_close(got, dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True)))


def test_relations_of_pooled_vectors_are_among_the_texts_of_a_batch(tmp_path):
    """Park's distance, over the mean distance of the batch, of what the scoring layer reads."""
    student, teacher, rows = build_bert().double(), build_bert(32, 3, seed=1).double(), prepared(5)
    got, _ = gradient_of_step(
        tmp_path, student, teacher, rows, "distillation", 5, 1,
        objectives={"distance": {"weight": 1.0, "layers": "pooled"}},
    )  # fmt: skip
    own = copy.deepcopy(student)

    def pooled(model):
        read = [model.bert(torch.tensor([row["input_ids"]])).pooler_output[0] for row in rows]
        return torch.stack(read)

    def distances(x_BD):
        apart = torch.stack([(a - b).norm() for i, a in enumerate(x_BD) for b in x_BD[:i]])
        return apart / apart.mean()

    with torch.no_grad():
        wanted = distances(pooled(teacher))
    loss = torch.nn.functional.huber_loss(distances(pooled(own)), wanted)
    names, weights = zip(*own.named_parameters(), strict=True)
    assert_close(
        got, dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True)), 1e-7
    )


def test_a_teacher_with_the_labels_in_another_order_says_the_same(tmp_path):
    student, teacher, rows = build_bert().double(), build_bert(32, 3, seed=1).double(), prepared()
    turned, order = copy.deepcopy(teacher), [2, 0, 1]
    for weight in turned.classifier.parameters():
        weight.data = weight.data[order].clone()
    labels.rename(turned, [NAMES[i].upper() for i in order], 0)
    one, _ = gradient_of_step(tmp_path, student, teacher, rows, "vanilla_distillation", alpha=0.0)
    two, _ = gradient_of_step(tmp_path, student, turned, rows, "vanilla_distillation", alpha=0.0)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_other_labels_are_refused_with_both_lists(tmp_path):
    other = build_bert(names=["cat", "dog", "rabbit"])
    with pytest.raises(ModelError, match="bad, fine, good against cat, dog, rabbit"):
        gradient_of_step(tmp_path, build_bert(), other, prepared(), "vanilla_distillation")
    with pytest.raises(DataError, match="prepared for the labels bad, fine, good"):
        gradient_of_step(tmp_path, other, other, prepared(), "fine_tuning")


def test_what_only_writers_can_do_is_refused(tmp_path):
    student, teacher, rows = build_bert(), build_bert(seed=1), prepared()
    for method in ("on_policy_distillation", "sequence_distillation"):
        with pytest.raises(RecipeError, match="writes none"):
            gradient_of_step(tmp_path, student, teacher, rows, method)
    recipe = Recipe(
        task="classification", student=Model("s"), output=str(tmp_path / "p"), train=Train(packing=True)
    )
    with pytest.raises(RecipeError, match="packing"):
        fit(recipe, Parts(student=student, train=rows, device="cpu"))


@pytest.fixture(scope="module")
def texts():
    import random

    draw, rows = random.Random(0), []
    for _ in range(60):
        good = draw.random() < 0.5
        opinion = draw.choice(["good", "great", "nice"] if good else ["bad", "awful", "poor"])
        rows.append(
            {"text": " ".join([*draw.sample(WORDS[6:], 3), opinion]), "label": "pos" if good else "neg"}
        )
    return datasets.Dataset.from_list(rows)


def test_a_student_learns_is_judged_and_is_a_pipeline(tmp_path, tokenizer, texts):
    """Labels come from the data for the teacher and from the teacher for the student, and both folders keep them."""
    for name, model in (("s", build_bert(32, 2, 3)), ("t", build_bert(32, 3, 4))):
        labels.rename(model, ["LABEL_0", "LABEL_1"], 0)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    plan = {"batch_size": 10, "gradient_accumulation_steps": 1, "learning_rate": 3e-3}
    teacher = LLMFineTuner(tmp_path / "t", tmp_path / "teacher", task="classification")
    teacher.load_model(method="full")
    teacher.train(texts, num_epochs=8, **plan)
    assert teacher.evaluate(texts)["accuracy"] > 0.95
    student = LLMFineTuner(tmp_path / "s", tmp_path / "student", task="classification")
    student.load_model(method="vanilla_distillation")
    student.load_teacher_model(tmp_path / "teacher")
    student.setup_vanilla_distillation(temperature=2.0, alpha=0.0)
    hidden = texts.remove_columns("label").add_column(
        "label", [None] * len(texts)
    )  # the teacher's word alone
    student.train(hidden, num_epochs=8, **plan)
    found = student.evaluate(texts)
    assert found["accuracy"] > 0.95 and found["macro_f1"] > 0.95 and found["agreement"] > 0.95
    asked = texts["text"][:5]
    for tuner in (teacher, student):
        model = AutoModelForSequenceClassification.from_pretrained(tuner.recipe.output)
        assert model.config.id2label == {0: "neg", 1: "pos"}
        with_theirs = pipeline("text-classification", tuner.recipe.output, top_k=None)(asked)
        for ours, theirs in zip(tuner.predict(asked, batch_size=2), with_theirs, strict=True):
            assert [one["label"] for one in ours] == [one["label"] for one in theirs]
            assert ours[0]["score"] == pytest.approx(theirs[0]["score"], abs=1e-5)
    verdict = student.compare(texts)
    assert (tmp_path / "student" / "report.html").exists() and verdict["samples"] == []


def test_the_most_accurate_weights_are_kept_though_their_loss_rose(tmp_path):
    """Labels drawn by chance: what is learned of the training rows makes the model sure, and its loss rises."""
    recipe = Recipe(
        task="classification", student=Model("s"), output=str(tmp_path / "run"),
        train=Train(
            steps=60, batch_size=8, gradient_accumulation_steps=1, learning_rate=1e-2, eval_every=3, precision="fp32"
        ),
    )  # fmt: skip
    parts = Parts(student=build_bert(), train=prepared(24), held_out=prepared(40, seed=1), device="cpu")
    result = fit(recipe, parts)
    seen = [record for record in result.history if "eval_loss" in record]
    best = min(seen, key=lambda record: (-record["eval_accuracy"], record["eval_loss"]))
    assert best["step"] == result.metrics["best_step"]
    assert best["eval_loss"] > min(record["eval_loss"] for record in seen)
    assert [result.metrics[name] for name in ("eval_loss", "eval_accuracy")] == [
        best["eval_loss"], best["eval_accuracy"],
    ]  # fmt: skip
    found = evaluate(Classification(), result.tuned.model, parts.held_out)
    assert found.accuracy == best["eval_accuracy"]


def test_a_student_is_cut_from_a_classifier(tmp_path):
    from llm_finetuner.models.shrink import shrink

    teacher = build_bert(16, 4)
    student = shrink(teacher, keep=2)
    assert labels.names_of(student) == NAMES and student.config.num_hidden_layers == 2
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)


def test_several_teachers_and_peers_teach_by_label(tmp_path, tokenizer, texts):
    """An ensemble of two equal teachers is one of them, whatever the order of its labels."""
    turned, order, names = build_bert(32, 3, seed=1, names=["neg", "pos"]), [1, 0], ["pos", "neg"]
    teacher = copy.deepcopy(turned)
    for weight in turned.classifier.parameters():
        weight.data = weight.data[order].clone()
    labels.rename(turned, names, 0)
    save(tmp_path, tokenizer, t=teacher, u=turned, s=build_bert(names=["neg", "pos"]))
    plan = {"num_epochs": 1, "batch_size": 10, "gradient_accumulation_steps": 1, "overwrite": True}
    losses = []
    for teachers in (str(tmp_path / "t"), [str(tmp_path / "t"), str(tmp_path / "u")]):
        student = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="classification")
        student.load_model(method="vanilla_distillation")
        student.load_teacher_model(teachers)
        student.setup_vanilla_distillation()
        losses.append([record["loss"] for record in student.train(texts, **plan).history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    online = LLMFineTuner(tmp_path / "s", tmp_path / "online", task="classification")
    online.load_model(method="online_distillation")
    online.load_teacher_model(str(tmp_path / "u"))
    online.setup_online()
    assert "peer_1_forward_kl" in online.train(texts, **plan).history[0]


def test_what_is_for_texts_that_are_continued_is_refused(tmp_path, tokenizer, texts):
    save(tmp_path, tokenizer, t=build_bert(names=["neg", "pos"]), s=build_bert(names=["neg", "pos"]))
    student = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="classification")
    student.load_model(method="vanilla_distillation")
    for kind in ("across", "remote"):
        with pytest.raises(RecipeError, match=f"a {kind} teacher answers models that continue"):
            student.load_teacher_model(str(tmp_path / "t"), kind=kind)
    student.load_teacher_model(str(tmp_path / "t"))
    student.setup_self_distillation()
    with pytest.raises(RecipeError, match="early exits are for models that continue"):
        student.train(texts, num_epochs=1)


def test_held_out_labels_get_the_numbers_of_the_others(tmp_path, tokenizer):
    """Held-out rows that lack the first label, and unlabelled rows with a teacher of another order."""
    save(
        tmp_path,
        tokenizer,
        s=build_bert(names=["LABEL_0", "LABEL_1"]),
        t=build_bert(names=["c", "a", "b"], seed=1),
    )
    rows = [{"text": f"{WORDS[i % 9]} film", "label": "abc"[i % 3]} for i in range(18)]
    train = datasets.Dataset.from_list(rows)
    held_out = train.filter(lambda row: row["label"] != "a")
    hidden = datasets.Dataset.from_list([{"text": row["text"], "label": None} for row in rows])
    plan = {"num_epochs": 1, "batch_size": 9, "gradient_accumulation_steps": 1, "overwrite": True}
    for method, data in (("full", train), ("vanilla_distillation", hidden)):
        tuner = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="classification")
        tuner.load_model(method=method)
        if method != "full":
            tuner.load_teacher_model(str(tmp_path / "t"))
            tuner.setup_vanilla_distillation(alpha=0.0)
        result, found = tuner.train(data, eval_dataset=held_out, **plan), tuner.evaluate(held_out)
        said = result.history[-1]
        assert said["eval_loss"] == pytest.approx(found["loss"], rel=1e-6)
        assert said["eval_accuracy"] == found["accuracy"] == result.metrics["eval_accuracy"]
        assert "eval_perplexity" not in said and "perplexity" not in found
        assert set(labels.names_of(tuner.model)) == set("abc")
    path = tmp_path / "rows"
    path.mkdir()
    for name, part in (("train.jsonl", hidden), ("held.jsonl", train)):
        part.to_json(path / name)
    recipe = Recipe(
        task="classification", method="vanilla_distillation", options={"alpha": 0.0},
        student=Model(str(tmp_path / "s")), teacher=Teacher(str(tmp_path / "t")), output=str(tmp_path / "named"),
        data=Data(source=str(path / "train.jsonl"), eval_source=str(path / "held.jsonl")),
        train=Train(steps=1, batch_size=9, gradient_accumulation_steps=2),
    )  # fmt: skip
    said = fit(recipe).history[-1]
    again = LLMFineTuner(tmp_path / "named", tmp_path / "x", task="classification")
    again.load_model(method="full")
    assert said["eval_loss"] == pytest.approx(again.evaluate(train)["loss"], rel=1e-5)
    with pytest.raises(DataError, match="no text has a label"):
        fit(replace(recipe, data=Data(source=str(path / "train.jsonl"))))
