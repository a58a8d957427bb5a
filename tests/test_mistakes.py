"""What users get wrong: an error of ours that says what to do, before time is spent, and never another exception."""

import json
import shutil
from pathlib import Path

import datasets
import numpy
import pytest
from conftest import build_gpt2, build_llama, prepared_rows, sentences
from peft import LoraConfig, get_peft_model

from llm_finetuner import recipe_file
from llm_finetuner.errors import DataError, FinetunerError, ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Recipe

QUICK = {"steps": 1, "batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture
def rows(tokenizer):
    return prepared_rows(8, len(tokenizer))


@pytest.fixture
def loaded(student_folder, tmp_path):
    """A student that can be trained."""
    finetuner = LLMFineTuner(student_folder, tmp_path / "run", device="cpu")
    finetuner.load_model(method="full")
    return finetuner


@pytest.fixture
def taught(student_folder, teacher_folder, tmp_path):
    """A student with a teacher."""
    finetuner = LLMFineTuner(student_folder, tmp_path / "run", device="cpu")
    finetuner.load_model(method="feature_distillation")
    finetuner.load_teacher_model(teacher_folder)
    return finetuner


def with_adapter(model):
    return get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))


# ---- data


def test_the_name_of_a_file_is_data(loaded, data_file):
    result = loaded.train(data_file, **QUICK)
    assert result.history[0]["loss"] > 0


def test_what_prepare_dataset_returned_whole(loaded, data_file):
    """(rows, columns), where rows are meant."""
    prepared = loaded.prepare_dataset(loaded.load_dataset_from_source(data_file))
    with pytest.raises(DataError):
        loaded.train(prepared, **QUICK)


def test_a_dataset_dict(loaded):
    some = datasets.Dataset.from_list([{"text": text} for text in sentences(8)])
    result = loaded.train(datasets.DatasetDict({"train": some, "test": some.select(range(2))}), **QUICK)
    assert result.metrics["steps"] == 1
    with pytest.raises(DataError):
        loaded.train(datasets.DatasetDict({"first": some, "second": some}), **QUICK)


@pytest.mark.parametrize(
    "given", [None, 7, [], {}, "", "no-such-file.jsonl", ["a", "b"], [{}], [{"input_ids": []}],
     [{"input_ids": [1, 2, 3.5]}], [{"input_ids": [1, 2], "labels": [1]}], [{"input_ids": [3, 4, 10**6]}],
     [{"input_ids": [1, 2], "labels": [-100] * 2}], [{"a": 1, "b": 2}], (), object()],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_no_data(loaded, given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinetunerError):
        loaded.train(given, **QUICK)


def test_rows_longer_than_the_positions(loaded, rows, tokenizer):
    long = prepared_rows(2, len(tokenizer)).map(
        lambda row: {name: (row[name] * 60)[:200] for name in row}  # the student has 128 positions
    )
    for train, held_out in ((long, None), (rows, long)):
        with pytest.raises(DataError, match="128 positions"):
            loaded.train(train, eval_dataset=held_out, **QUICK)
    with pytest.raises(DataError, match="128 positions"):
        loaded.evaluate(long)


def test_max_length_above_the_positions_is_cut(loaded):
    text = [{"text": " ".join(sentences(60))}]
    loaded.prepare_dataset(text, max_length=512)
    result = loaded.train(text, **QUICK)
    assert result.history[0]["loss"] > 0
    prepared, _ = loaded.prepare_dataset(text, max_length=512)
    assert 100 < max(map(len, prepared["input_ids"])) <= 128


def test_labels_copied_from_input_ids_do_not_count_padding(loaded):
    ids = [[5, 6, 7, 8, 0, 0, 0], [9, 10, 11, 12, 13, 14, 0]]
    mask = [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    copied = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": ids})
    short = datasets.Dataset.from_dict({"input_ids": [ids[0][:4], ids[1][:6]]})
    said, want = loaded.evaluate(copied), loaded.evaluate(short)
    assert said["tokens"] == want["tokens"] == 3 + 5
    assert said["loss"] == pytest.approx(want["loss"], rel=1e-5)
    trained = [loaded.train(some, **QUICK, learning_rate=1e-9).history[0]["loss"] for some in (copied, short)]
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)


# ---- settings


@pytest.mark.parametrize(
    "layers", [1, 1.0, True, "01", {0, 1}, [True], [0.5], [None], [[0, 1, 2]], range(0), range(3)]
)
def test_layers_that_are_no_list_of_blocks(taught, layers):
    with pytest.raises(RecipeError, match="feature_layers"):
        taught.setup_feature_distillation(feature_layers=layers)


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize(
    "layers", [range(2), (0, 1), numpy.arange(2).tolist(), [numpy.int64(0), numpy.int64(1)]]
)
def test_layers_in_other_forms_of_a_list(taught, rows, layers):
    taught.setup_feature_distillation(feature_layers=layers)
    assert taught.recipe.options["feature_layers"] == [0, 1]
    assert taught.train(rows, **QUICK).history[0]["hidden_mse"] > 0
    saved = recipe_file.load(Path(taught.recipe.output) / "recipe.yaml")
    assert saved.options["feature_layers"] == [0, 1]


@pytest.mark.parametrize("number", [numpy.float32(0.25), numpy.float64(0.25)], ids=repr)
def test_numbers_of_numpy(taught, rows, number):
    taught.setup_vanilla_distillation(alpha=number, temperature=numpy.int64(3))
    taught.train(rows, **QUICK)
    path = Path(taught.recipe.output) / "recipe.yaml"
    saved = recipe_file.load(path)
    assert saved.options == taught.recipe.options == {"temperature": 3, "alpha": 0.25}
    assert "alpha: 0.25\n" in path.read_text() and saved.method == "vanilla_distillation"


@pytest.mark.parametrize(
    "options",
    [{"r": 4.5}, {"r": "8"}, {"r": -1}, {"r": None}, {"r": float("nan")}, {"lora_alpha": 0},
     {"lora_dropout": "a"}, {"target_modules": "c_atn"}, {"target_modules": ["lm_head"]}, {"target_modules": 3}],
    ids=str,
)  # fmt: skip
def test_adapters_that_cannot_be(loaded, rows, options):
    with pytest.raises((RecipeError, ModelError)):
        loaded.setup_lora(**options)
        loaded.train(rows, **QUICK)


def test_one_target_module_as_text(loaded, rows):
    loaded.setup_lora(r=2, target_modules="c_attn")
    loaded.train(rows, **QUICK)
    saved = json.loads((Path(loaded.recipe.output) / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["c_attn"] and saved["r"] == 2


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"epochs": -1}, {"epochs": float("nan")}, {"epochs": "3"}, {"steps": 0}, {"steps": 1.5},
     {"batch_size": 2.5}, {"learning_rate": "fast"}, {"seed": 7}, {"trackers": ["tensorbord"]},
     {"trackers": "tensorboard"}, {"precision": "fp8"}, {"precision": "fp16"}, {"optimizer": "adam"},
     {"optimizer": "torch.optim:Foo"}, {"optimizer": "nowhere:Foo"}, {"optimizer": "adamw_8bit"},
     {"schedule": "torch:nothing"}, {"method": "lora"}, {"eval_fraction": 1.0}, {"eval_fraction": -0.1},
     {"patience": -1}, {"warmup": "much"}, {"lr": 1e-4}],
    ids=str,
)  # fmt: skip
def test_settings_of_the_loop(loaded, rows, settings):
    with pytest.raises((RecipeError, DataError)) as raised:
        loaded.train(rows, **{**QUICK, **settings})
    assert raised.value.what
    assert not (Path(loaded.recipe.output) / "log.jsonl").exists()


@pytest.mark.parametrize(
    "values",
    [{"method": "foo:bar"}, {"method": "foo"}, {"method": ":"}, {"method": ["lora"]}, {"options": []},
     {"tuning": {"kind": "json:nothing"}}, {"train": {"optimizer": "no:thing:more"}}, {"task": "vision"},
     {"data": {"max_length": 1}}, {"train": None}, {"train": {"step": 3}}, {"student": "gpt2"}],
    ids=str,
)  # fmt: skip
def test_recipes_that_name_what_there_is_not(values, tmp_path, rows, student_folder):
    with pytest.raises(FinetunerError):
        recipe = recipe_file.from_dict(
            {"student": {"name": student_folder}, "output": str(tmp_path), **values}
        )
        from llm_finetuner.assembly import Parts
        from llm_finetuner.trainer import fit

        fit(recipe, Parts(train=rows, device="cpu"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:0:0", "", "mps:x", "CUDA"])
def test_devices_that_are_not_there(student_folder, tmp_path, device):
    with pytest.raises(RecipeError, match="device"):
        LLMFineTuner(student_folder, tmp_path, device=device)


# ---- overrides


def test_an_override_changes_the_method_and_gives_its_options():
    recipe = recipe_file.override(
        Recipe(), ["method=vanilla_distillation", "temperature=3", "teacher.name=t"]
    )
    assert recipe.method == "vanilla_distillation" and recipe.options == {"temperature": 3, "alpha": 0.5}
    back = recipe_file.override(recipe, ["method=feature_distillation"])
    assert back.options["temperature"] == 3 and back.options["alpha"] == 0.5  # what both have carries over
    assert recipe_file.override(recipe, ["method=fine_tuning"]).options == {"label_smoothing": 0.0}


def test_an_override_changes_the_tuning_and_gives_its_options():
    recipe = recipe_file.override(Recipe(), ["tuning.kind=lora", "r=4"])
    assert recipe.tuning.kind == "lora" and recipe.tuning.options["r"] == 4
    assert recipe_file.override(recipe, ["tuning.kind=full"]).tuning.options == {}
    assert recipe_file.override(recipe, ["tuning.kind=adalora"]).tuning.options["target_r"] == 8


@pytest.mark.parametrize(
    "assignments",
    [["temperature=3"], ["r=4"], ["temperature=3", "method=nonsense"], ["method"], ["train=3"],
     ["train.steps=many"], ["nowhere.at.all=1"], ["tuning.kind=lore"], ["method=[1]"], ["a=: b: c"],
     ["train.trackers=[3]"]],
    ids=str,
)  # fmt: skip
def test_overrides_that_mean_nothing(assignments):
    with pytest.raises(RecipeError):
        recipe_file.override(Recipe(), assignments)


# ---- models


def test_the_student_as_its_own_teacher(tmp_path, tokenizer):
    model = build_gpt2(len(tokenizer))
    for student_first in (True, False):
        finetuner = LLMFineTuner(model, tmp_path, tokenizer=tokenizer, device="cpu")
        with pytest.raises(ModelError, match="one object"):
            if student_first:
                finetuner.load_model(method="vanilla_distillation")
            finetuner.load_teacher_model(model, tokenizer=tokenizer)
            finetuner.load_model(method="vanilla_distillation")


def test_peft_models_are_not_taken(tmp_path, tokenizer, loaded):
    wrapped = with_adapter(build_gpt2(len(tokenizer)))
    with pytest.raises(ModelError, match="merge_and_unload"):
        LLMFineTuner(wrapped, tmp_path, tokenizer=tokenizer)
    with pytest.raises(ModelError, match="merge_and_unload"):
        loaded.load_teacher_model(wrapped, tokenizer=tokenizer)


def test_a_folder_that_holds_an_adapter_is_no_student(tmp_path, loaded, rows, tokenizer, student_folder):
    loaded.setup_lora()
    loaded.train(rows, **QUICK)
    finetuner = LLMFineTuner(loaded.recipe.output, tmp_path / "next", device="cpu")
    for method in ("full", "lora"):
        with pytest.raises(ModelError, match="adapter"):
            finetuner.load_model(method=method)
    taught = LLMFineTuner(student_folder, tmp_path / "next", device="cpu")
    taught.load_model(method="vanilla_distillation")
    taught.load_teacher_model(loaded.recipe.output)  # as a teacher it is merged
    assert taught._parts.teacher.num_parameters() == build_gpt2(len(tokenizer)).num_parameters()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "noise"])
def test_damaged_model_folders(student_folder, tmp_path, file, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(student_folder, folder)
    path = folder / file
    data = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256)) * 4}[damage]
    )
    with pytest.raises(ModelError):
        LLMFineTuner(str(folder), tmp_path / "run", device="cpu").load_model(method="full")


def test_an_object_is_taken_as_it_is(tmp_path, tokenizer):
    finetuner = LLMFineTuner(build_gpt2(len(tokenizer)), tmp_path, tokenizer=tokenizer, device="cpu")
    for options in ({"from_scratch": True}, {"load_in_4bit": True}, {"load_in_8bit": True}):
        with pytest.raises(RecipeError, match="as it is"):
            finetuner.load_model(method="full", **options)


def test_a_teacher_that_lacks_the_tokens_of_the_rows(taught, tokenizer, tmp_path):
    """A teacher with fewer embeddings than the rows name: known before the run, not half way through it."""
    small = build_llama(len(tokenizer) - 50)
    taught.load_teacher_model(small, tokenizer=tokenizer)
    high = datasets.Dataset.from_dict({"input_ids": [[1, 2, len(tokenizer) - 1, 3, 4]] * 4})
    with pytest.raises(FinetunerError):
        taught.train(high, **QUICK)


def test_a_teacher_with_fewer_positions_than_the_rows(taught, tokenizer):
    taught.load_teacher_model(resized_positions(build_gpt2(len(tokenizer), seed=3), 16), tokenizer=tokenizer)
    long = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3, 4] * 8] * 4})
    for call in (lambda: taught.train(long, **QUICK), lambda: taught.evaluate(long)):
        with pytest.raises(DataError, match="16 positions"):
            call()


def resized_positions(model, positions: int):
    config = type(model.config)(**{**model.config.to_dict(), "n_positions": positions})
    return type(model)(config)


@pytest.mark.parametrize("where", ["eval_fraction", "seed", "max_length", "num_samples", "learning_rate"])
def test_numpy_numbers_anywhere_reach_the_recipe_as_plain_ones(student_folder, tmp_path, data_file, where):
    seed = numpy.int64(3) if where == "seed" else 0
    finetuner = LLMFineTuner(student_folder, tmp_path / "run", seed=seed, device="cpu")
    finetuner.load_model(method="full")
    some = finetuner.load_dataset_from_source(
        data_file, num_samples=numpy.int64(8) if where == "num_samples" else 8
    )
    some, _ = finetuner.prepare_dataset(some, max_length=numpy.int64(64) if where == "max_length" else 64)
    settings = {name: numpy.float64(0.25) for name in ("eval_fraction", "learning_rate") if name == where}
    finetuner.train(some, **QUICK, **settings)
    saved = recipe_file.load(tmp_path / "run" / "recipe.yaml")
    assert saved.data.max_length == 64 and saved.data.samples == 8 and saved.train.seed == seed
    assert saved.data.eval_fraction == settings.get("eval_fraction", 0)
