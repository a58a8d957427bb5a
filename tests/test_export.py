"""Handing a model over: which task a folder is for, one plain folder, what is refused before anything is written."""

import sys

import pytest
import torch
from classifiers import build_bert, build_tokenizer
from conftest import QUICK
from test_seq2seq import build_bart, build_t5
from transformers import AutoModelForCausalLM, BertModel

from llm_finetuner.cli.app import main
from llm_finetuner.errors import ModelError, OrderError, RecipeError, TrainingError
from llm_finetuner.export_job import export_model, task_of
from llm_finetuner.models import loading

IDS = torch.arange(1, 9)[None]


def test_a_folder_is_exported_for_the_task_of_its_model(tmp_path, student_folder):
    for build in (build_bert, build_bart, build_t5):
        build().save_pretrained(tmp_path / build.__name__)
    found = {name: task_of(str(tmp_path / name)).auto for name in ("build_bert", "build_bart", "build_t5")}
    assert found == {
        "build_bert": "AutoModelForSequenceClassification",
        "build_bart": "AutoModelForSeq2SeqLM",
        "build_t5": "AutoModelForSeq2SeqLM",
    }
    assert task_of(student_folder).auto == "AutoModelForCausalLM"


def test_a_model_without_a_head_is_given_none(tmp_path, capsys):
    BertModel(build_bert().config).save_pretrained(tmp_path / "trunk")
    build_tokenizer().save_pretrained(tmp_path / "trunk")
    target = tmp_path / "out"
    capsys.readouterr()
    assert main(["export", str(tmp_path / "trunk"), "--to", "merged", "--output", str(target)]) == 1
    said = capsys.readouterr().err
    assert "is a BertModel, and no task is for that" in said and len(said.splitlines()) == 2
    assert not target.exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_merged_by_both_doors_is_what_was_trained(finetuner, rows, method, tmp_path, capsys):
    finetuner.load_model(method)
    finetuner.train(rows, **QUICK)
    told = finetuner.export("merged")
    run = finetuner.recipe.output
    assert main(["export", run, "--to", "merged", "--output", str(tmp_path / "typed")]) == 0
    said = capsys.readouterr().out
    with torch.no_grad():
        wanted = finetuner.model.eval()(IDS).logits
        for folder in (told["folder"], tmp_path / "typed", finetuner.merge(tmp_path / "called")):
            plain = AutoModelForCausalLM.from_pretrained(folder)
            assert torch.allclose(plain.eval()(IDS).logits, wanted, atol=1e-5)
    assert told["folder"] == f"{run}/merged" and told["parameters"] == plain.num_parameters()
    assert f"in: {tmp_path / 'typed'}" in said and "parameters" in said
    finetuner.train(rows, **QUICK)  # and the run can go on


def test_an_adapter_of_a_model_in_4_bits_goes_into_its_base_in_full(finetuner, rows, tmp_path):
    finetuner.load_model("qlora")
    finetuner.train(rows, **QUICK)
    folders = (
        finetuner.export("merged")["folder"],
        export_model(finetuner.recipe.output, "merged", tmp_path / "typed")["folder"],
    )
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    untrained = AutoModelForCausalLM.from_pretrained(finetuner.recipe.student.name)
    assert not loading.is_quantised(one) and loading.is_quantised(finetuner.model)
    weights = [model.get_parameter("transformer.h.0.attn.c_attn.weight") for model in (one, other, untrained)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_is_there_is_not_written_over(finetuner, tmp_path, student_folder, capsys):
    with pytest.raises(OrderError, match="load_model"):
        finetuner.export("merged")
    finetuner.load_model("full")
    told = finetuner.export("merged", tmp_path / "a")  # untrained: the model as it was loaded
    for folder in (told["folder"], student_folder, f"{told['folder']}/config.json"):
        with pytest.raises(RecipeError, match="is there already"):
            finetuner.export("merged", folder)
        assert main(["export", student_folder, "--to", "merged", "--output", str(folder)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
    (tmp_path / "empty").mkdir()
    assert finetuner.export("merged", tmp_path / "empty")["bytes"] > 0


def test_formats_that_there_are_not_and_packages_that_are_missing(finetuner, tmp_path, monkeypatch, capsys):
    finetuner.load_model("full")
    with pytest.raises(RecipeError, match="did you mean 'onnx'"):
        finetuner.export("onx")
    assert main(["export", str(tmp_path), "--to", "onx"]) == 2
    assert "onx" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"needs .*onnxscript.*\n.*llm-finetuner\[onnx\]"):
        finetuner.export("onnx")
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_not_finished_has_nothing_to_export(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("method: fine_tuning\n")
    (tmp_path / "log.jsonl").write_text("")
    assert main(["export", str(tmp_path), "--to", "merged"]) == 1
    assert "was not finished" in capsys.readouterr().err


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    build_bert().save_pretrained(tmp_path / "m")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        export_model(str(tmp_path / "m"), "merged", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
