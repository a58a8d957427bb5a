"""Adapters on models that label texts, tag words and fill in: what moves, what is saved, and that it is read back."""

import copy
import json

import datasets
import pytest
import torch
import transformers
from classifiers import NAMES, WORDS, build_bert, build_gpt2, build_tokenizer, prepared, save
from packaging.version import Version
from peft import AutoPeftModelForSequenceClassification
from step_reference import assert_resumes
from task_steps import recipe_of_step
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import ModelError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.models.loading import load_pretrained, load_trained
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.trainer import fit

PLAN = {"num_epochs": 2, "batch_size": 6, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}
TEXTS = [{"text": f"{WORDS[i % 6]} {WORDS[6 + i % 9]}", "label": NAMES[i % 3]} for i in range(18)]
SEVERAL = [
    {"text": row["text"], "labels": [row["label"], NAMES[0]][: 1 + i % 2]} for i, row in enumerate(TEXTS)
]
SEVERAL = [{**row, "labels": sorted(set(row["labels"]))} for row in SEVERAL]
TAGGED = [{"tokens": row["text"].split(), "tags": [row["label"], "O"]} for row in TEXTS]
FILLED = [{"text": " ".join([WORDS[i % 6]] * 6)} for i in range(18)]
ROWS = {
    "classification": TEXTS,
    "multi_label_classification": SEVERAL,
    "token_classification": TAGGED,
    "masked_lm": FILLED,
}


def trunk(kind: str):
    """A checkpoint that has no layer of any task: neither a pooler nor a scoring layer."""
    torch.manual_seed(5)
    sizes = {"vocab_size": 20, "max_position_embeddings": 16, "initializer_range": 0.3}
    if kind == "bert":
        return BertModel(build_bert(names=["LABEL_0", "LABEL_1"]).config, add_pooling_layer=False)
    if kind == "gpt2":
        return build_gpt2(names=["LABEL_0", "LABEL_1"]).transformer
    if kind == "distilbert":
        return DistilBertModel(DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **sizes))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return RobertaModel(RobertaConfig(**small, **{**sizes, "max_position_embeddings": 18, "pad_token_id": 0}))


def trained(tmp_path, task="classification", kind="bert", method="lora", rows=None, **plan) -> LLMFineTuner:
    """A finetuner that trained an adapter on a bare trunk, with its seed other than that of a reload."""
    save(tmp_path, build_tokenizer(), base=trunk(kind))
    made = LLMFineTuner(tmp_path / "base", tmp_path / "run", task=task, seed=3)
    made.load_model(method=method)
    if method == "lora":
        made.setup_lora(lora_dropout=0.0, r=4)
    made.train(datasets.Dataset.from_list(rows or ROWS[task]), **{**PLAN, **plan})
    return made


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(torch.arange(5, 12)[None]).logits


# ---- folders


CASES = [
    ("classification", "bert", "lora"),
    ("classification", "bert", "adalora"),
    ("classification", "roberta", "lora"),
    ("classification", "distilbert", "lora"),
    ("classification", "gpt2", "lora"),
    ("multi_label_classification", "bert", "lora"),
    ("token_classification", "distilbert", "adalora"),
    ("masked_lm", "bert", "lora"),
    ("masked_lm", "roberta", "adalora"),
]


@pytest.mark.parametrize(("task", "kind", "method"), CASES)
def test_what_is_saved_is_what_was_trained(tmp_path, task, kind, method):
    """Read back whole, merged, as a teacher and by transformers alone: the same logits and the same labels."""
    tuner = trained(tmp_path, task, kind, method)
    want, auto, folder = logits(tuner.model), resolve(TASKS, task).auto, tmp_path / "run"
    assert not (folder / "config.json").exists()
    before = load_pretrained(str(tmp_path / "base"), auto=auto, seed=3)
    assert not torch.allclose(logits(before)[..., :2], want[..., :2], atol=1e-3)
    merged = getattr(__import__("transformers"), auto).from_pretrained(tuner.merge())
    read = {
        "as it is": load_trained(folder, auto=auto),
        "merged": load_trained(folder, merge=True, auto=auto),
        "as a teacher": load_pretrained(str(folder), auto=auto, dtype="float32", frozen=True),
        "by transformers": merged,
    }
    for how, model in read.items():
        assert torch.allclose(logits(model), want, atol=1e-5), how
        if task != "masked_lm":
            assert labels.names_of(model) == labels.names_of(tuner.model) != ["LABEL_0", "LABEL_1"], how
            assert model.config.problem_type == tuner.model.config.problem_type, how
    again = LLMFineTuner(read["as it is"], tmp_path / "again", task=task, tokenizer=build_tokenizer())
    again.load_model(method="full")
    asked = "good [MASK] film"
    for ours, theirs in zip(again.predict(asked)[0], tuner.predict(asked)[0], strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-5) and ours == theirs
    if (
        "classification" in task and task != "token_classification" and kind != "gpt2"
    ):  # it would read segments
        said = pipeline("text-classification", str(folder / "merged"), top_k=None)(["good film"])[0]
        ours = tuner.predict("good film")[0]
        assert [one["label"] for one in said] == [one["label"] for one in ours]
        assert [one["score"] for one in said] == pytest.approx([one["score"] for one in ours], abs=1e-5)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_others_read_the_labels_from_the_file_beside_the_adapter(tmp_path, names):
    """Neither peft nor transformers keeps them; both take them when they are given."""
    rows = [row for row in TEXTS if row["label"] in names]
    want = logits(trained(tmp_path, rows=rows).model)
    kept = json.loads((tmp_path / "run" / "adapter_labels.json").read_text())
    readers = [AutoPeftModelForSequenceClassification]
    if Version(transformers.__version__) > Version(
        "5.3.99"
    ):  # 5.3 leaves the scoring layer of an adapter as drawn
        readers.append(AutoModelForSequenceClassification)
    for reader in readers:
        model = reader.from_pretrained(tmp_path / "run", id2label=dict(enumerate(kept["labels"])))
        assert model.config.id2label == dict(enumerate(names))
        assert torch.allclose(logits(model), want, atol=1e-5)


def test_an_adapter_of_others_with_more_labels_is_told_what_it_lacks(tmp_path):
    trained(tmp_path)
    kept = tmp_path / "run" / "adapter_labels.json"
    kept.unlink()
    with pytest.raises(ModelError, match="does not fit its base .*size mismatch.*\n.*adapter_labels.json"):
        load_trained(tmp_path / "run", auto="AutoModelForSequenceClassification")
    kept.write_text(json.dumps({"labels": NAMES, "problem_type": None}))
    assert labels.names_of(load_trained(tmp_path / "run", auto="AutoModelForSequenceClassification")) == NAMES


def test_task_types_are_those_of_the_task(tmp_path):
    for task, wanted in (
        ("classification", "SEQ_CLS"),
        ("token_classification", "TOKEN_CLS"),
        ("masked_lm", None),
    ):
        folder = tmp_path / task
        folder.mkdir()
        trained(folder, task, num_epochs=1)
        assert json.loads((folder / "run" / "adapter_config.json").read_text())["task_type"] == wanted


def test_a_full_run_leaves_no_labels_of_an_adapter(tmp_path):
    trained(tmp_path)
    tuner = LLMFineTuner(tmp_path / "base", tmp_path / "run", task="classification")
    tuner.load_model(method="full")
    tuner.train(datasets.Dataset.from_list(TEXTS), **PLAN, overwrite=True)
    assert not list((tmp_path / "run").glob("adapter_*"))


def test_an_object_with_an_adapter_is_trained_and_saved_plain(tmp_path):
    """What load_trained gives is trained in full and written without peft's wrappers."""
    first = trained(tmp_path)
    loaded = load_trained(tmp_path / "run", auto="AutoModelForSequenceClassification")
    loaded.name_or_path = ""
    tuner = LLMFineTuner(loaded, tmp_path / "more", task="classification", tokenizer=build_tokenizer())
    tuner.load_model(method="full")
    assert torch.allclose(logits(tuner.model), logits(first.model), atol=1e-5)
    tuner.train(datasets.Dataset.from_list(TEXTS), **PLAN)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "more")
    assert torch.allclose(logits(plain), logits(tuner.model), atol=1e-5)
    assert labels.names_of(plain) == NAMES


# ---- runs


def recipe_for(tmp_path, name="run", **changes) -> Recipe:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    plan = {
        "task": "classification", "method": "vanilla_distillation", "student": Model(str(tmp_path / "base")),
        "teacher": Teacher(str(tmp_path / "t")), "tuning": Tuning("lora"), "output": str(tmp_path / name),
        "data": Data(source=str(tmp_path / "rows.jsonl"), eval_fraction=0.3),
        "train": Train(steps=4, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2),
    }  # fmt: skip
    return Recipe(**{**plan, **changes})


def test_a_run_of_an_adapter_is_compared_from_its_folder_and_teaches(tmp_path):
    save(tmp_path, build_tokenizer(), base=trunk("distilbert"), t=build_bert(32, 3, seed=1))
    result = fit(recipe_for(tmp_path))
    verdict = compare_run(tmp_path / "run", baseline=True)
    by_role = {model["role"]: model for model in verdict["models"]}
    assert by_role["distilled"]["loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-4)
    next_one = recipe_for(
        tmp_path,
        "next",
        student=Model("teacher/2"),
        teacher=Teacher(str(tmp_path / "run")),
        tuning=Tuning("full"),
    )
    with pytest.raises(ModelError, match="holds an adapter, not a model"):
        fit(next_one)  # a student is cut from weights, not from an adapter
    taught = fit(recipe_for(tmp_path, "taught", teacher=Teacher(str(tmp_path / "run"))))
    assert taught.history[-1]["forward_kl"] > 0
    assert labels.names_of(taught.tuned.model) == NAMES


@pytest.mark.parametrize("tuning", ["lora", "adalora"])
def test_a_run_with_an_adapter_goes_on_as_if_it_had_not_stopped(tmp_path, tuning):
    recipe = recipe_of_step("classification", tmp_path / "x", "fine_tuning", 4, 1, False)
    recipe = Recipe(
        task="classification",
        student=Model("s"),
        tuning=Tuning(tuning),
        output=recipe.output,
        train=recipe.train,
    )

    def parts():
        return Parts(student=build_bert(), train=prepared(), device="cpu")

    assert_resumes(tmp_path, recipe, parts)


def test_labels_that_come_from_the_teacher_reach_the_adapter(tmp_path):
    """Text without labels, a student without names: the scoring layer is drawn once the adapter is in place."""
    save(tmp_path, build_tokenizer(), base=trunk("roberta"), t=build_bert(32, 3, seed=1))
    hidden = [{"text": row["text"], "label": None} for row in TEXTS]
    recipe = recipe_for(tmp_path, options={"alpha": 0.0}, data=Data(source="x", eval_fraction=0))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hidden))
    recipe = Recipe(**{**vars(recipe), "data": Data(source=str(tmp_path / "rows.jsonl"), eval_fraction=0)})
    result = fit(recipe)
    assert labels.names_of(result.tuned.model) == NAMES
    moved = {n for n, p in result.tuned.model.named_parameters() if p.requires_grad and "out_proj" in n}
    assert len(moved) == 2
    loaded = load_trained(tmp_path / "run", auto="AutoModelForSequenceClassification")
    assert torch.allclose(logits(loaded), logits(result.tuned.model), atol=1e-5)
    assert labels.names_of(loaded) == NAMES


# ---- precisions


@pytest.mark.parametrize("task", ["classification", "token_classification", "masked_lm"])
def test_layers_of_the_task_are_not_quantised(tmp_path, task):
    tuner = trained(tmp_path, task, "distilbert", "qlora", num_epochs=1)
    quantised = {n for n, p in tuner.model.named_parameters() if type(p).__name__ == "Params4bit"}
    assert quantised and all(name.startswith("distilbert.") for name in quantised)
    moved = {n for n, p in tuner.model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert moved and all(name.split(".")[0] != "distilbert" for name in moved)
    loaded = load_trained(tmp_path / "run", auto=resolve(TASKS, task).auto, load_in_4bit=True)
    assert torch.allclose(logits(loaded), logits(tuner.model), atol=1e-5)
    merged = load_pretrained(str(tuner.merge()), auto=resolve(TASKS, task).auto)
    assert logits(merged).shape == logits(tuner.model).shape
    if task != "masked_lm":
        assert labels.names_of(merged) == labels.names_of(tuner.model)


@pytest.mark.parametrize("task", ["classification", "masked_lm"])
def test_half_precision_keeps_what_moves_whole(tmp_path, task):
    """Behind a frozen trunk in bfloat16 the layers of the task are float32: small steps are not swallowed."""
    tuner = LLMFineTuner(tmp_path / "base", tmp_path / "run", task=task)
    save(tmp_path, build_tokenizer(), base=trunk("bert").bfloat16())
    rows = datasets.Dataset.from_list(ROWS[task])
    tuner.recipe = Recipe(
        **{**vars(tuner.recipe), "student": Model(str(tmp_path / "base"), dtype="bfloat16")}
    )
    tuner.load_model(method="lora")
    tuner.train(rows, **{**PLAN, "learning_rate": 1e-6, "num_epochs": 1})
    first = tuner.evaluate(rows)["loss"]
    kinds = {p.dtype for p in tuner.model.parameters() if p.requires_grad}
    assert kinds == {torch.float32} and tuner.model.dtype == torch.bfloat16
    moved = [p for n, p in tuner.model.named_parameters() if "modules_to_save" in n]
    drawn = [p for n, p in tuner.model.named_parameters() if "original_module" in n]
    for now, then in zip(moved, drawn, strict=True):
        assert not torch.equal(now, then.float())
    loaded = load_trained(tmp_path / "run", auto=resolve(TASKS, task).auto, dtype="bfloat16")
    assert torch.allclose(logits(loaded).float(), logits(tuner.model).float(), atol=0.05)
    again = LLMFineTuner(loaded, tmp_path / "again", task=task, tokenizer=build_tokenizer())
    again.load_model(method="full")
    assert again.evaluate(rows)["loss"] == pytest.approx(first, rel=0.05)


def test_what_moves_whole_is_no_target(tmp_path):
    """LoRA beside a layer that is trained whole would be lost; "dense" is a layer of the blocks, and of the pooler."""
    save(tmp_path, build_tokenizer(), base=build_bert())
    tuner = LLMFineTuner(tmp_path / "base", tmp_path / "run", task="classification")
    tuner.load_model(method="lora")
    tuner.setup_lora(target_modules=["classifier"])
    with pytest.raises(ModelError, match="classifier.* are not linear layers"):
        tuner.train(datasets.Dataset.from_list(TEXTS), **PLAN)
    tuner.load_model(method="lora")
    tuner.setup_lora(target_modules=["dense"])
    tuner.train(datasets.Dataset.from_list(TEXTS), **{**PLAN, "num_epochs": 1})
    beside = [name for name, _ in tuner.model.named_modules() if name.endswith("lora_A")]
    assert beside and not any("pooler" in name for name in beside)


def test_masked_lm_keeps_a_head_that_its_checkpoint_has(tmp_path):
    """The transform moves, the layer that gives tokens stays tied to the embeddings."""
    torch.manual_seed(0)
    save(tmp_path, build_tokenizer(), base=BertForMaskedLM(build_bert().config))
    tuner = LLMFineTuner(tmp_path / "base", tmp_path / "run", task="masked_lm")
    tuner.load_model(method="lora")
    tuner.train(datasets.Dataset.from_list(FILLED), **PLAN)
    plain = AutoModelForMaskedLM.from_pretrained(tuner.merge())
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert torch.allclose(logits(plain), logits(tuner.model), atol=1e-5)
