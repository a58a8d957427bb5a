"""LLMFineTuner: order and values checked at once, every method, folders that need nothing of ours."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import QUICK, build_gpt2, build_llama, build_tokenizer, save_model
from other_tokenizers import build_other
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetuner import recipe_file
from llm_finetuner.errors import DataError, ModelError, OrderError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.tuning.lora import find_targets


def test_calls_in_a_wrong_order_say_what_to_do(finetuner, rows, teacher_folder):
    for call in (
        lambda: finetuner.train(rows),
        lambda: finetuner.setup_lora(),
        lambda: finetuner.setup_vanilla_distillation(),
        lambda: finetuner.evaluate(rows),
        lambda: finetuner.generate(["a"]),
    ):
        with pytest.raises(OrderError, match="load_model"):
            call()
    finetuner.load_model(method="vanilla_distillation")
    with pytest.raises(OrderError, match="load_teacher_model"):
        finetuner.setup_vanilla_distillation()
    with pytest.raises(OrderError, match="load_teacher_model"):
        finetuner.train(rows)
    for call in (
        lambda: finetuner.benchmark(["a b"], use_finetuned=True),
        lambda: finetuner.compare(rows),
        lambda: finetuner.merge(),
        lambda: finetuner.upload_to_huggingface("me/model"),
    ):
        with pytest.raises(OrderError, match="train"):
            call()


def test_wrong_values_are_refused_at_once(finetuner, teacher_folder, rows):
    with pytest.raises(RecipeError, match="did you mean 'lora'"):
        finetuner.load_model(method="lore")
    finetuner.load_model(method="feature_distillation")
    finetuner.load_teacher_model(teacher_folder)
    for options in ({"temperature": 0}, {"temperature": 11}, {"alpha": 1.5}, {"alpha": "half"}, {"tempo": 2}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            finetuner.setup_vanilla_distillation(**options)
    for layers in ([2], [-1], [[0, 4]], [], ["a"]):
        with pytest.raises(RecipeError, match="feature_layers"):
            finetuner.setup_feature_distillation(feature_layers=layers)
    for options in ({"r": 0}, {"lora_dropout": 1.5}, {"rank": 8}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            finetuner.setup_lora(**options)
    with pytest.raises(RecipeError, match="init_r"):
        finetuner.setup_adalora(target_r=12, init_r=8)
    for settings in (
        {"num_epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1},
        {"step": 3},
        {"schedule": "x"},
    ):
        with pytest.raises(RecipeError):
            finetuner.train(rows, **settings)
    with pytest.raises(RecipeError, match="standard"):
        finetuner.train(rows, method="vanilla")


def test_temperature_without_effect_warns(finetuner, teacher_folder):
    finetuner.load_model(method="feature_distillation")
    finetuner.load_teacher_model(teacher_folder)
    with pytest.warns(UserWarning, match="temperature=3.0 has no effect"):
        finetuner.setup_feature_distillation(temperature=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finetuner.setup_feature_distillation(temperature=3.0, output_weight=0.5)


def test_another_tokenizer_is_refused_and_the_way_across_named(finetuner, tmp_path):
    other = build_other()
    folder = save_model(tmp_path / "other", build_llama(len(other)), other)
    finetuner.load_model(method="vanilla_distillation")
    with pytest.raises(ModelError, match="different tokens") as caught:
        finetuner.load_teacher_model(folder)
    assert "across" in caught.value.hint


def test_the_same_tokens_under_other_numbers_are_aligned(finetuner, tmp_path, rows):
    """One token more shifts all others: with equal widths the numbers would look right and mean something else."""
    other = build_tokenizer(extra=["<|other|>"])
    folder = save_model(tmp_path / "other", build_llama(len(other)), other)
    finetuner.load_model(method="vanilla_distillation")
    finetuner.load_teacher_model(folder)
    finetuner.setup_vanilla_distillation(alpha=0.0)
    record = finetuner.train(rows, **QUICK).history[0]
    assert 0 < record["forward_kl"] < 10 and record["teacher_nll"] > 1


def test_padded_vocabularies_are_masked_on_both_sides(tmp_path, tokenizer, rows):
    """Teacher and student with 5 and 37 columns that name no token: the same step as without them, in float64."""
    size = len(tokenizer)
    records = []
    for extra in ((0, 0), (5, 37)):
        student, teacher = build_gpt2(size), build_llama(size)
        for model, more in ((student, extra[0]), (teacher, extra[1])):
            torch.manual_seed(7)
            model.resize_token_embeddings(size + more, mean_resizing=False)
        run = LLMFineTuner(student.double(), tmp_path / str(extra[0]), tokenizer=tokenizer)
        run.load_model(method="vanilla_distillation")
        run.load_teacher_model(teacher.double(), tokenizer=tokenizer)
        run.setup_vanilla_distillation(alpha=0.0)
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        result = run.train(rows, **{**QUICK, "steps": 1, "optimizer": "test_gradients:sgd"})
        moved = {name: (before[name] - p.detach()) for name, p in run.model.named_parameters()}
        records.append((result.history[0]["forward_kl"], moved))
    (plain_kl, plain), (padded_kl, padded) = records
    assert plain_kl == pytest.approx(padded_kl, rel=1e-12)
    embedding = padded["transformer.wte.weight"]
    assert embedding[size:].abs().max() == 0  # what names no token is not learned
    padded["transformer.wte.weight"] = embedding[:size]
    largest = max(change.abs().max() for change in plain.values())
    assert largest > 0 and plain.keys() == padded.keys()
    assert all((plain[name] - padded[name]).abs().max() <= 1e-12 * largest for name in plain)


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "full", 4, "feature_distillation"])
def test_every_method_trains_and_reloads_with_nothing_of_ours(
    finetuner, student_folder, teacher_folder, rows, method
):
    finetuner.load_model(method=method)
    if method in (4, "feature_distillation"):
        finetuner.load_teacher_model(teacher_folder)
    before = finetuner.evaluate(rows)["loss"]
    finetuner.train(rows, **{**QUICK, "num_epochs": 10})
    assert finetuner.evaluate(rows)["loss"] < before
    folder = finetuner.recipe.output
    if (Path(folder) / "adapter_config.json").exists():
        options = {}
        if method == "qlora":
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
            )
        base = AutoModelForCausalLM.from_pretrained(student_folder, **options)
        plain = PeftModel.from_pretrained(base, folder)
    else:
        plain = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == finetuner.tokenizer.get_vocab()
    ids = torch.tensor([rows[0]["input_ids"]])
    for module in (
        *plain.modules(),
        *finetuner.model.modules(),
    ):  # bitsandbytes repacks in eval mode, see loading.py
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        got, want = plain.train()(ids).logits, finetuner.model.train()(ids).logits
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    saved = recipe_file.load(Path(folder) / "recipe.yaml")
    assert saved.tuning.kind == finetuner.recipe.tuning.kind and saved.method == finetuner.recipe.method


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_merged_is_the_same_model_in_one_piece(finetuner, rows, method):
    finetuner.load_model(method=method)
    finetuner.train(rows, **QUICK)
    plain = AutoModelForCausalLM.from_pretrained(finetuner.merge())
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        difference = plain.eval()(ids).logits - finetuner.model.eval()(ids).logits
    assert difference.abs().max() < 1e-4
    finetuner.train(rows, **QUICK)  # and the run can go on


def test_adalora_moves_its_ranks(finetuner, rows):
    finetuner.load_model(method="adalora")
    finetuner.setup_adalora(target_r=2, init_r=6)
    finetuner.train(rows, **{**QUICK, "num_epochs": 10})
    kept = [int((p != 0).sum()) for name, p in finetuner.model.named_parameters() if "lora_E" in name]
    assert sum(kept) == 2 * len(kept)


def test_a_distillation_student_through_an_adapter(finetuner, teacher_folder, rows):
    finetuner.load_model(method="vanilla_distillation", adapter="lora")
    finetuner.load_teacher_model(teacher_folder, load_in_8bit=False, load_in_4bit=True)
    finetuner.setup_lora(r=4, target_modules=["c_attn", "c_proj"])
    result = finetuner.train(rows, **QUICK)
    assert all("lora_" in name for name, p in finetuner.model.named_parameters() if p.requires_grad)
    assert result.history[0]["forward_kl"] > 0


def test_targets_are_found_for_each_architecture():
    assert find_targets(build_gpt2(64), None) == ["c_attn"]
    assert find_targets(build_llama(64), None) == ["q_proj", "v_proj"]
    with pytest.raises(ModelError, match="q_proj"):
        find_targets(build_gpt2(64), ["q_proj"])


def test_default_rates_differ_by_method(finetuner, rows):
    plans: list = []
    for method in ("lora", "full"):
        finetuner.load_model(method=method)
        finetuner.train(
            rows, num_epochs=1, on_event=lambda kind, r: plans.append(r) if kind == "plan" else None
        )
    assert [plan["learning_rate"] for plan in plans] == [2e-4, 5e-5]


def test_history_has_what_is_promised(finetuner, teacher_folder, rows):
    finetuner.load_model(method="feature_distillation")
    finetuner.load_teacher_model(teacher_folder)
    finetuner.setup_feature_distillation(output_weight=0.5)
    result = finetuner.train(rows, **QUICK)
    promised = {
        "step", "epoch", "loss", "cross_entropy", "hidden_mse", "forward_kl", "teacher_nll", "agreement",
        "tokens_per_second", "padding", "learning_rate", "grad_norm", "seconds",
    }  # fmt: skip
    logged = [
        json.loads(line) for line in (Path(finetuner.recipe.output) / "log.jsonl").read_text().splitlines()
    ]
    assert len(logged) == len(result.history) == 2 and logged == result.history
    for record in logged:
        assert promised <= record.keys()
        terms = 0.3 * record["cross_entropy"] + 0.7 * record["hidden_mse"] + 0.5 * record["forward_kl"]
        assert record["loss"] == pytest.approx(terms, rel=1e-6)


def test_prepare_evaluate_generate_benchmark(finetuner, data_file, tmp_path):
    finetuner.load_model(method="full")
    dataset = finetuner.load_dataset_from_source(data_file, num_samples=20)
    assert len(dataset) == 20
    tokenized, columns = finetuner.prepare_dataset(dataset, max_length=64)
    assert columns == ["question", "answer"]
    for row in tokenized:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
        assert -100 in row["labels"] and row["labels"][-1] == finetuner.tokenizer.eos_token_id
    before = finetuner.evaluate(tokenized)
    assert before["tokens"] == sum(label != -100 for row in tokenized for label in row["labels"][1:])
    finetuner.train(dataset, **{**QUICK, "num_epochs": 3})  # unprepared rows are prepared
    assert finetuner.evaluate(dataset)["loss"] < before["loss"]
    assert all(isinstance(text, str) for text in finetuner.generate(["what of"], max_new_tokens=4))
    base, tuned = (finetuner.benchmark(["what of the red cat?"] * 2, use_finetuned=flag) for flag in (0, 1))
    assert base.keys() == tuned.keys() and base["perplexity"] != tuned["perplexity"]


def test_a_quantised_student_is_needed_for_qlora_and_refused_for_full(student_folder, tmp_path, rows):
    live = LLMFineTuner(AutoModelForCausalLM.from_pretrained(student_folder), tmp_path / "run")
    with pytest.raises(ModelError, match="4 or 8 bits"):
        live.load_model(method="qlora")
    named = LLMFineTuner(student_folder, tmp_path / "run")
    named.load_model(method="full", load_in_4bit=True)
    with pytest.raises(ModelError, match="cannot be trained in full"):
        named.train(rows, **QUICK)


def test_4bit_weights_survive_an_evaluation(finetuner, rows):
    """On some processors bitsandbytes rounds the scales for good at the first evaluation; ours must not."""
    finetuner.load_model(method="qlora")
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        before = finetuner.model.train()(ids).logits
        finetuner.model.eval()(ids)
        after = finetuner.model.train()(ids).logits
    assert torch.equal(before, after)


def test_compare_writes_the_report_with_baselines(finetuner, teacher_folder, data_file):
    finetuner.load_model(method="vanilla_distillation")
    finetuner.load_teacher_model(teacher_folder)
    dataset = finetuner.load_dataset_from_source(data_file)
    finetuner.train(dataset.select(range(30)), **QUICK)
    verdict = finetuner.compare(dataset.select(range(30, 40)), baseline=True)
    roles = [model["role"] for model in verdict["models"]]
    assert sorted(roles) == ["baseline_compute", "baseline_steps", "distilled", "teacher", "untouched"]
    folder = Path(finetuner.recipe.output)
    assert json.loads((folder / "metrics.json").read_text())["sentence"] == verdict["sentence"]
    assert "<html" in (folder / "report.html").read_text() and (folder / "report.md").exists()


def test_what_cannot_be_loaded_is_a_two_line_error(tmp_path, student_folder):
    for name in (str(tmp_path / "nothing"), "./nothing", "no-such/model-anywhere", ""):
        with pytest.raises(ModelError):
            LLMFineTuner(name, tmp_path).load_model()
    with pytest.raises(DataError, match="no such file|not"):
        LLMFineTuner(student_folder, tmp_path).load_dataset_from_source(str(tmp_path / "nothing.jsonl"))
