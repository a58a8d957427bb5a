"""A teacher with another tokenizer through every door: Python, recipes, the command line; verdicts and caches too."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from classifiers import build_bert, build_tokenizer, save
from test_own_tokens import shuffled, texts

from llm_finetuner.cli.app import main
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

PLAN = {"num_epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "overwrite": True}
SAME = ("loss", "accuracy", "macro_f1", "agreement", "kl_to_teacher", "calibration_error")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A student, its teacher, and the same teacher with other ids."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    teacher = build_bert(32, 3, seed=1)
    save(folder, tokenizer, s=build_bert(), t=teacher, cat=build_bert(32, 3, names=["cat", "dog", "hare"]))
    other, theirs = shuffled(teacher, tokenizer)
    save(folder, theirs, u=other)
    return folder


@pytest.fixture(scope="module")
def rows():
    return texts(count=18).filter(lambda row: row["label"] is not None)


def tuner(models, out, teacher=None, **options):
    made = LLMFineTuner(models / "s", out, task="classification")
    made.load_model(method="vanilla_distillation")
    if teacher is not None or options:
        made.load_teacher_model(None if teacher is None else str(models / teacher), **options)
        made.setup_vanilla_distillation(temperature=2.0, alpha=0.3)
    return made


def losses(tuner, rows, **plan):
    return [record["loss"] for record in tuner.train(rows, **{**PLAN, **plan}).history]


def same(here, there) -> bool:
    """Whether two evaluations, or lines of a verdict, say the same."""
    told = [{key: line[key] for key in SAME if line[key] is not None} for line in (here, there)]
    return told[0] == pytest.approx(told[1], rel=1e-5)


# ---- Python


def test_python_hears_the_same_of_both(models, rows, tmp_path):
    """Steps, evaluations, and the lines of the verdict, of the teacher and about it."""
    found = {}
    for name in ("t", "u"):
        made = tuner(models, tmp_path / name, name)
        said = losses(made, rows)
        found[name] = said, made.evaluate(rows), made.compare(rows)
    (ours, evaluated, verdict), (theirs, also, other) = found.values()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert same(evaluated, also)
    lines = list(zip(verdict["models"], other["models"], strict=True))
    assert [here["role"] for here, _ in lines] == ["teacher", "untouched", "distilled"]
    assert all(same(here, there) for here, there in lines)
    assert other["models"][2]["kl_to_teacher"] > 0
    told = "cuts the texts into other tokens"
    assert [any(told in warning for warning in v["warnings"]) for v in (verdict, other)] == [False, True]


def test_the_order_of_calls_and_objects_change_nothing(models, rows, tmp_path):
    want = losses(tuner(models, tmp_path / "a", "u"), rows)
    first = LLMFineTuner(models / "s", tmp_path / "b", task="classification")
    first.load_teacher_model(str(models / "u"))
    first.load_model(method="vanilla_distillation")
    first.setup_vanilla_distillation(temperature=2.0, alpha=0.3)
    assert losses(first, rows) == want
    ready, used = first.prepare_dataset(rows)
    assert ready["texts"] == [[text] for text in rows["text"]] and used == ["text", "label"]
    objects = tuner(models, tmp_path / "c")
    other, theirs = shuffled(build_bert(32, 3, seed=1), build_tokenizer())
    objects.load_teacher_model(other, tokenizer=theirs)
    objects.setup_vanilla_distillation(temperature=2.0, alpha=0.3)
    assert losses(objects, ready) == want
    with pytest.raises(DataError, match="not all of the texts"):
        objects.evaluate(ready.remove_columns("texts"))


def test_one_teacher_serves_students_of_other_orders(models, rows, tmp_path):
    """It is put in the order of each student again, also where another one had it in between."""
    other, theirs = shuffled(build_bert(32, 3, seed=1), build_tokenizer())
    first = tuner(models, tmp_path / "a")
    first.load_teacher_model(other, tokenizer=theirs)
    first.setup_vanilla_distillation(temperature=2.0, alpha=0.3)
    turned = build_bert()
    labels.rename(turned, labels.names_of(turned)[::-1], 0)
    second = LLMFineTuner(turned, tmp_path / "b", task="classification", tokenizer=build_tokenizer())
    second.load_model(method="vanilla_distillation")
    alone = tuner(models, tmp_path / "c", "u")
    second.load_teacher_model(other, tokenizer=theirs)
    assert losses(first, rows) == losses(alone, rows)
    second.load_teacher_model(other, tokenizer=theirs)
    assert same(first.evaluate(rows), alone.evaluate(rows))
    second.load_teacher_model(other, tokenizer=theirs)
    assert same(first.compare(rows)["models"][0], alone.compare(rows)["models"][0])


def test_what_needs_one_tokenizer_is_refused(models, rows, tmp_path):
    online = LLMFineTuner(models / "s", tmp_path / "a", task="classification")
    online.load_model(method="online_distillation")
    online.load_teacher_model(str(models / "u"))
    with pytest.raises(ModelError, match="different tokenizers"):
        online.setup_online()
    with pytest.raises(ModelError, match="other labels: bad, fine, good against cat, dog, hare"):
        tuner(models, tmp_path / "b", "cat")
    hidden = tuner(models, tmp_path / "c", "u")
    hidden.setup_feature_distillation()
    with pytest.raises(RecipeError, match="hidden_mse is about tokens"):
        hidden.train(rows, **PLAN)


# ---- caches


def test_its_answers_are_kept_like_those_of_any_teacher(models, rows, tmp_path):
    live = tuner(models, tmp_path / "a", "u")
    want = losses(live, rows)
    figures = live.cache_teacher(rows, tmp_path / "cache")
    assert figures["tokens"] + figures["repeats"] == len(rows) and figures["mean_kl"] < 1e-6
    stored = tuner(models, tmp_path / "b", cache=tmp_path / "cache")
    assert losses(stored, rows) == pytest.approx(want, rel=1e-5)
    filling = tuner(models, tmp_path / "c", "u", cache=tmp_path / "filled")
    assert losses(filling, rows) == pytest.approx(want, rel=1e-5)
    for made in (stored, filling):
        assert same(made.evaluate(rows), live.evaluate(rows))
    assert filling.evaluate(texts(pairs=True))["agreement"] is not None  # the model is asked again
    with pytest.warns(UserWarning, match="scored without the teacher"):
        assert stored.evaluate(texts(pairs=True))["agreement"] is None


def test_the_right_weights_with_the_wrong_tokenizer_are_another_teacher(models, rows, tmp_path):
    tuner(models, tmp_path / "a", "u").cache_teacher(rows, tmp_path / "cache")
    other, _ = shuffled(build_bert(32, 3, seed=1), build_tokenizer())
    wrong = tuner(models, tmp_path / "b")
    wrong.load_teacher_model(other, tokenizer=shuffled(other, build_tokenizer(), seed=5)[1])
    with pytest.raises(DataError, match="teacher_tokenizer was"):
        wrong.cache_teacher(rows, tmp_path / "cache")


# ---- recipes and the command line


def test_a_recipe_and_a_command_do_the_same(models, rows, tmp_path, monkeypatch):
    """With the verdict on each run, from its folder alone, and as a member of an ensemble."""
    monkeypatch.chdir(tmp_path)
    with open("rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(rows["text"], rows["label"], strict=True)])
    recipe = Recipe(
        task="classification", method="vanilla_distillation", student=Model(str(models / "s")),
        data=Data("rows.csv", eval_fraction=0.25),
        train=Train(epochs=1, batch_size=4, gradient_accumulation_steps=1, precision="fp32"),
    )  # fmt: skip
    members = {"members": [str(models / name) for name in ("t", "u")]}
    teachers = {"plain": Teacher(str(models / "t")), "own": Teacher(str(models / "u"))}
    teachers["mixed"] = Teacher(kind="ensemble", options=members)
    notes, said = [], {}
    for name, teacher in teachers.items():
        run = replace(recipe, teacher=teacher, output=name)
        said[name] = fit(run, on_event=lambda kind, record: notes.append(record.get("text"))).history
    assert sum("reads the texts in its own tokens" in note for note in notes if note) == 2
    for name in ("own", "mixed"):
        assert [r["loss"] for r in said[name]] == pytest.approx([r["loss"] for r in said["plain"]], rel=1e-5)
    words = ["distill", "--task", "classification", "--student", str(models / "s"), "--data", "rows.csv"]
    words += [
        "--teacher",
        str(models / "u"),
        "--max-length",
        "16",
        "--eval-fraction",
        "0.25",
        "--epochs",
        "1",
    ]
    words += [
        "--batch-size",
        "4",
        "--gradient-accumulation-steps",
        "1",
        "--precision",
        "fp32",
        "--output",
        "told",
    ]
    assert main(words) == 0
    lines = [json.loads(line) for line in Path("told/log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [record["loss"] for record in said["own"]]
    want = compare_run("plain")["models"]
    for verdict in (compare_run("own"), json.loads(Path("told/metrics.json").read_text())):
        assert all(same(here, there) for here, there in zip(verdict["models"], want, strict=True))


def test_the_screen_before_a_run_says_that_each_reads_its_own(models, rows):
    from llm_finetuner.cli.confirm import vocabularies

    def said(task="classification", teacher="u", method="vanilla_distillation", **options):
        return vocabularies(
            Recipe(
                task=task,
                method=method,
                options=options,
                student=Model(str(models / "s")),
                teacher=Teacher(str(models / teacher)),
            )  # fmt: skip
        )

    assert said(teacher="t") == (True, "the same 20 tokens")
    fits, words = said()
    assert fits and words.startswith("each reads the texts in its own: token")
    pooled = {"objectives": {"distance": {"layers": "pooled"}}}
    assert said(method="distillation", **pooled)[0]
    for other in (
        said(method="feature_distillation"), said(method="online_distillation"), said(task="token_classification"),
    ):  # fmt: skip
        assert not other[0] and other[1].startswith("different: ")
