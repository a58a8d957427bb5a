"""What labels are called and numbered, where mixing them up would be a silent wrong answer."""

import copy

import datasets
import pytest
import torch
from classifiers import NAMES, build_bert, build_tokenizer, prepared, save
from transformers import BertModel, RobertaConfig, RobertaForSequenceClassification

from llm_finetuner.data import label_names
from llm_finetuner.errors import CheckpointError, DataError, ModelError, OrderError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.models.loading import positions_of

PLAN = {"num_epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1, "overwrite": True}
TEXTS = datasets.Dataset.from_list(
    [
        {"text": f"{word} film", "label": name}
        for word, name in (("good", "good"), ("bad", "bad"), ("very", "fine"))
    ]
    * 4
)


@pytest.fixture
def folder(tmp_path):
    turned = build_bert(32, 3, seed=2)
    labels.rename(turned, NAMES[::-1], 0)
    models = {"s": build_bert(), "t": build_bert(32, 3, seed=1), "turned": turned}
    save(tmp_path, build_tokenizer(), **models)
    return tmp_path


def tuner(folder, student="s", method="full", out="run"):
    made = LLMFineTuner(folder / student, folder / out, task="classification")
    made.load_model(method=method)
    return made


def test_rows_of_another_numbering_are_not_scored(folder):
    foreign = label_names.put(prepared(), NAMES[::-1])
    with pytest.raises(DataError, match="prepared for the labels good, fine, bad"):
        tuner(folder).evaluate(foreign)
    both = datasets.concatenate_datasets([foreign, prepared()])
    with pytest.raises(DataError, match="different labels were joined"):
        tuner(folder).evaluate(both)
    numbered = prepared().remove_columns("labels").add_column("labels", [[3]] * 8)
    with pytest.raises(DataError, match="are no class number below 3"):
        tuner(folder).train(numbered, **PLAN)


def test_one_teacher_object_serves_students_of_other_orders(folder):
    from transformers import AutoModelForSequenceClassification

    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "t")
    first, second = (tuner(folder, name, "vanilla_distillation", name + "_run") for name in ("s", "turned"))
    first.load_teacher_model(teacher)
    first.setup_vanilla_distillation()
    first.train(TEXTS, **PLAN)
    before = first.compare(TEXTS)["models"][0]
    second.load_teacher_model(teacher)  # which puts its labels in the other order
    assert first.compare(TEXTS)["models"][0]["accuracy"] == before["accuracy"]
    second.setup_vanilla_distillation()
    second.train(TEXTS, **PLAN)
    after = second.compare(TEXTS)["models"][0]
    assert (after["role"], after["loss"]) == ("teacher", pytest.approx(before["loss"], rel=1e-5))


def test_labels_without_names_are_not_guessed(folder):
    unnamed = build_bert(32, 3, seed=1, names=["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ModelError, match="the teacher's 3 have no names"):
        tuner(folder).load_teacher_model(copy.deepcopy(unnamed))
    student = build_bert(names=["0", "1", "2"])
    labels.match(student, unnamed, 0)
    assert labels.names_of(unnamed) == ["0", "1", "2"]


def test_texts_without_labels_need_a_teacher(folder):
    hidden = datasets.Dataset.from_list([{"text": "good film", "label": None}] * 8)
    with pytest.raises(DataError, match="no text has a label"):
        tuner(folder).train(hidden, **PLAN)
    taught = tuner(folder, method="vanilla_distillation")
    taught.load_teacher_model(str(folder / "t"))
    taught.setup_vanilla_distillation(alpha=1.0)
    with pytest.raises(DataError, match="no text has a label"):
        taught.train(hidden, **PLAN)


def test_a_new_head_is_drawn_from_the_seed(tmp_path):
    BertModel(build_bert().config).save_pretrained(tmp_path / "trunk")
    build_tokenizer().save_pretrained(tmp_path / "trunk")
    heads = []
    for seed in (0, 0, 1):
        made = LLMFineTuner(tmp_path / "trunk", tmp_path / "run", task="classification", seed=seed)
        made.load_model(method="full")
        heads.append(made.model.classifier.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_run_goes_on_with_its_own_labels_only(folder):
    unnamed = build_bert(names=["LABEL_0", "LABEL_1"])
    save(folder, build_tokenizer(), u=unnamed)
    rows = [{"text": "good film", "label": "neg"}, {"text": "bad film", "label": "pos"}] * 4
    tuner(folder, "u").train(datasets.Dataset.from_list(rows), **PLAN, save_every=1)
    other = [{**row, "label": {"neg": "zpos", "pos": "aneg"}[row["label"]]} for row in rows]
    plan = {**PLAN, "num_epochs": 2, "overwrite": False, "save_every": 1}
    with pytest.raises(CheckpointError, match="started with labels"):
        tuner(folder, "u").train(datasets.Dataset.from_list(other), **plan, resume=True)


@pytest.mark.parametrize("names", [["neg", "pos"], NAMES, list("abcd")])
def test_a_scoring_layer_that_was_trained_keeps_its_labels(folder, names):
    """A second phase on other labels would draw it anew, or give its labels names that nobody gave them."""
    save(folder, build_tokenizer(), u=build_bert(names=["LABEL_0", "LABEL_1", "LABEL_2"]))
    student = tuner(folder, "u")
    unnamed = datasets.Dataset.from_list(prepared().to_list())
    student.train(unnamed, **PLAN)
    before = student.model.classifier.weight.detach().clone()
    text = datasets.Dataset.from_list([{"text": "good film", "label": name} for name in names] * 3)
    with pytest.raises(OrderError, match="the labels are fixed: .* the model has LABEL_0.*\n.*load_model"):
        student.train(text, **PLAN)
    assert torch.equal(student.model.classifier.weight, before)
    student.train(unnamed, **PLAN)  # the same labels are learned on
    student.load_model(method="full")
    student.train(text, **PLAN)
    assert labels.names_of(student.model) == sorted(names)


def test_several_labels_are_mixed_by_logits_alone(folder):
    student = LLMFineTuner(folder / "s", folder / "run", task="multi_label_classification")
    student.load_model(method="vanilla_distillation")
    teachers = [str(folder / "t"), str(folder / "turned")]
    with pytest.raises(RecipeError, match="mixed by their logits"):
        student.load_teacher_model(teachers, mixture="probabilities")
    student.load_teacher_model(teachers, mixture="logits")
    soft = label_names.put(
        prepared().remove_columns("labels").add_column("labels", [[0.3, 0.7, 1.0]] * 8), NAMES
    )
    student.setup_vanilla_distillation()
    student.train(soft, **PLAN)
    assert 0 <= student.evaluate(soft)["micro_f1"] <= 1


def test_positions_behind_the_padding_are_what_can_be_read():
    config = RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=18,
    )  # fmt: skip
    assert positions_of(RobertaForSequenceClassification(config)) == 16
    assert positions_of(build_bert()) == 16
