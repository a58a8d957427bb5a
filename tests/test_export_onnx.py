"""ONNX files: every task, several families, padded texts against each alone in PyTorch; what is not handed over."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import NAMES, build_bert, build_tokenizer
from classifiers import build_gpt2 as build_labelling_gpt2
from conftest import QUICK, build_gpt2
from test_in_place import config as bert_config
from test_seq2seq import build_bart, build_t5
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForTokenClassification,
)

from llm_finetuner.cli.app import main
from llm_finetuner.errors import ModelError
from llm_finetuner.export.graphs import Graph
from llm_finetuner.export.parity import Sessions, Texts, check
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

SMALL = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
LENGTHS = (9, 1, 6)  # other ones than the exporter looks at


def named(model):
    labels.rename(model, NAMES, 0)
    return model.eval()


def distilbert():
    return named(
        DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32, num_labels=3,
                initializer_range=0.3, problem_type="multi_label_classification",
            )
        )
    )  # fmt: skip


def roberta():
    config = RobertaConfig(**{**SMALL, "max_position_embeddings": 34}, num_labels=3, type_vocab_size=1)
    return named(RobertaForTokenClassification(config))


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_attention_heads": 4, **more}, num_key_value_heads=2))


def qwen2():
    """The second block sees four tokens back and no further."""
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    return Qwen2ForCausalLM(
        Qwen2Config(**{**SMALL, "num_hidden_layers": 2}, num_key_value_heads=2, **windows)
    )


CASES = {
    "classification, BERT": ("classification", lambda: build_bert(layers=1)),
    "classification, GPT-2": ("classification", build_labelling_gpt2),
    "several labels, DistilBERT": ("multi_label_classification", distilbert),
    "tags, RoBERTa": ("token_classification", roberta),
    "hidden words, BERT": ("masked_lm", lambda: BertForMaskedLM(bert_config(16, 1))),
    "text, GPT-2": ("causal_lm", lambda: build_gpt2(20, layers=1)),
    "text, Llama": ("causal_lm", llama),
    "text, Qwen2": ("causal_lm", qwen2),
    "source to target, T5": ("seq2seq_lm", lambda: build_t5(encoder=1, decoder=1)),
    "source to target, BART": ("seq2seq_lm", lambda: build_bart(encoder=1, decoder=1)),
}


def export(model, folder, task):
    tuner = LLMFineTuner(model, folder / "run", task=task, tokenizer=build_tokenizer())
    tuner.load_model("full")
    return tuner.export("onnx", folder / "onnx")


def opened(folder):
    return {path.name: onnxruntime.InferenceSession(path) for path in Path(folder).glob("*.onnx")}


def ask(session, **given):
    """The one output, for tensors of which it takes those that it names."""
    wanted = [one.name for one in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: given[name].numpy() for name in wanted})[0])


def texts(model, left=False, lengths=LENGTHS):
    """Random texts side by side: {input_ids, attention_mask, token_type_ids} [B, T], and each alone [1, its length]."""
    pad, draw, longest = model.config.pad_token_id or 0, torch.Generator().manual_seed(1), max(lengths)
    batch = {"input_ids": torch.full((len(lengths), longest), pad)}
    batch |= {name: torch.zeros_like(batch["input_ids"]) for name in ("attention_mask", "token_type_ids")}
    alone = []
    for row, length in enumerate(lengths):
        at = slice(longest - length, longest) if left else slice(length)
        batch["input_ids"][row, at] = torch.randint(3, 20, (length,), generator=draw)
        batch["attention_mask"][row, at] = 1
        batch["token_type_ids"][row, at] = torch.arange(length) // 3 % 2
        alone.append({name: x[row : row + 1, at] for name, x in batch.items()})
    return batch, alone


@torch.no_grad()
def asked_alone(model, session, text):
    names = {one.name for one in session.get_inputs()}
    return model.eval()(**{name: x for name, x in text.items() if name in names}).logits[0]


def close(got, wanted):
    return got.shape == wanted.shape and bool((got - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("source")])
def test_padded_texts_are_answered_as_each_alone_by_pytorch(tmp_path, case):
    task, build = CASES[case]
    model = build()
    told = export(model, tmp_path, task)
    (session,) = opened(tmp_path / "onnx").values()
    for left in (False, True) if task == "causal_lm" else (False,):
        batch, alone = texts(model, left)
        for text, row in zip(alone, ask(session, **batch), strict=True):
            wanted = asked_alone(model, session, text)
            if wanted.dim() == 2:
                row = row[-len(wanted) :] if left else row[: len(wanted)]
            assert close(row, wanted)
    (graph,) = told["graphs"]
    shapes = {one.name: one.shape for one in session.get_inputs()}
    assert graph["inputs"] == shapes == dict.fromkeys(shapes, ["batch_size", "sequence_length"])
    assert ("token_type_ids" in shapes) == case.endswith(", BERT")
    assert (
        0 < told["difference"] <= told["allowed"] < 1e-2
        and told["bytes"] > graph["bytes"] > 4 * told["parameters"]
    )
    assert abs(told["parameters"] - model.num_parameters()) < 0.1 * model.num_parameters()
    assert (
        build_tokenizer().get_vocab().items()
        <= AutoTokenizer.from_pretrained(tmp_path / "onnx").get_vocab().items()
    )
    kept = AutoConfig.from_pretrained(tmp_path / "onnx")
    assert kept.architectures == [type(model).__name__] and kept.id2label == model.config.id2label
    assert model.config._attn_implementation == "sdpa"  # the student itself is as it was


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("source")])
def test_encoder_and_decoder_write_what_generate_does(tmp_path, case):
    task, build = CASES[case]
    model = build().eval()
    told = export(model, tmp_path, task)
    files = opened(tmp_path / "onnx")
    encoder, decoder = files["encoder_model.onnx"], files["decoder_model.onnx"]
    assert [graph["file"] for graph in told["graphs"]] == ["encoder_model.onnx", "decoder_model.onnx"]
    assert told["graphs"][1]["inputs"]["input_ids"] == ["batch_size", "decoder_sequence_length"]
    batch, alone = texts(model)
    heard, mask = ask(encoder, **batch), batch["attention_mask"]
    written = torch.full((len(LENGTHS), 1), model.config.decoder_start_token_id)
    for _ in range(6):
        said = ask(decoder, input_ids=written, encoder_hidden_states=heard, encoder_attention_mask=mask)
        written = torch.cat([written, said[:, -1:].argmax(-1)], 1)
    for row, text in enumerate(alone):
        source = {name: text[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            wanted = model(**source, decoder_input_ids=written[row : row + 1, :-1]).logits[0]
            made = model.generate(**source, do_sample=False, num_beams=1, max_new_tokens=7)[
                0, :-1
            ]  # BART ends itself
        assert close(said[row], wanted)
        assert len(made) > 1 and made.tolist() == written[row, : len(made)].tolist()


# ---- what is not handed over


def unmasked(_model, _args, given):
    if torch.compiler.is_compiling():
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return (), given


@pytest.mark.slow
def test_files_that_read_padding_are_not_handed_over(tmp_path):
    """The files are those of a model that loses its mask while torch.export looks at it."""
    model = build_bert(layers=1)
    model.register_forward_pre_hook(unmasked, with_kwargs=True)
    with pytest.raises(ModelError, match="do not answer as PyTorch: logits differ by .*, .* is allowed"):
        export(model, tmp_path, "classification")
    assert list(tmp_path.iterdir()) == []


class Instead:
    """Answers in place of files as PyTorch does, changed by a fault."""

    def __init__(self, model, fault):
        self.model, self.fault = model, fault

    def logits(self, batch):
        return self.fault(self.model, batch)


def as_it_is(model, batch):
    return model(**batch).logits


nan = torch.tensor(float("nan"))
FAULTS = {
    "too loud": lambda model, batch: as_it_is(model, batch) * 1.001,
    "nan": lambda model, batch: as_it_is(model, batch).where(batch["input_ids"][..., None] != 7, nan),
    "without a mask": lambda model, batch: model(input_ids=batch["input_ids"]).logits,
    "of one length": lambda model, batch: as_it_is(model, {k: x[:, :11] for k, x in batch.items()}).repeat(
        1, 3, 1
    ),
}


def texts_for(model):
    return Texts(
        model, [Graph("", model, {name: name for name in ("input_ids", "attention_mask")}, "logits")]
    )


@torch.no_grad()
@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(fault):
    model = BertForMaskedLM(bert_config(16, 1)).eval()
    difference, allowed = check(model, texts_for(model), Instead(model, as_it_is), both_sides=False)
    assert difference < 1e-5 < allowed
    with pytest.raises(ModelError, match="do not answer as PyTorch"):
        check(model, texts_for(model), Instead(model, FAULTS[fault]), both_sides=False)


@torch.no_grad()
def test_positions_that_padding_on_the_left_moves_are_seen():
    model = build_gpt2(20, layers=1).eval()
    plain = Instead(model, as_it_is)
    assert check(model, texts_for(model), plain, both_sides=False)
    with pytest.raises(ModelError, match="do not answer as PyTorch"):
        check(model, texts_for(model), plain, both_sides=True)


@torch.no_grad()
@pytest.mark.parametrize("build", [build_bart, build_t5])
def test_texts_end_once_for_models_that_look_for_the_end(build):
    """They read a label off the end token, and refuse texts that have none, or another number of them."""
    config = build().config
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert check(model, texts_for(model), Instead(model, as_it_is), both_sides=False)


def test_files_that_onnxruntime_cannot_run_are_not_handed_over(tmp_path):
    kind = onnx.TensorProto.INT64
    given, said = (onnx.helper.make_tensor_value_info(name, kind, [2, 5]) for name in ("input_ids", "logits"))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Abs", ["input_ids"], ["logits"])], "g", [given], [said]
    )
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]),
        tmp_path / "m",
    )
    sessions = Sessions([Graph("m", None, {"input_ids": "input_ids"}, "logits")], tmp_path)
    assert sessions.logits({"input_ids": -torch.ones(2, 5, dtype=torch.long)}).sum() == 10
    with pytest.raises(ModelError, match="onnxruntime cannot run the files: .*INVALID_ARGUMENT"):
        sessions.logits({"input_ids": torch.ones(3, 19, dtype=torch.long)})


@pytest.mark.slow
def test_a_model_whose_code_branches_on_its_texts_is_refused_without_noise(tmp_path, capfd):
    rotary = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    with pytest.raises(
        ModelError, match="cannot write this model as ONNX: Could not guard on data-dependent"
    ):
        export(llama(rope_parameters=rotary), tmp_path, "causal_lm")
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_a_model_in_fewer_bits_is_refused(finetuner, tmp_path):
    finetuner.load_model("qlora")
    with pytest.raises(ModelError, match="held in fewer bits"):
        finetuner.export("onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


# ---- from a run


@pytest.mark.slow
def test_a_run_with_an_adapter_by_command_its_weights_beside_the_graph(
    finetuner, rows, tmp_path, capsys, monkeypatch
):
    """As of a model above protobuf's limit, which is lowered to nothing here."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    finetuner.load_model("lora")
    finetuner.train(rows, **QUICK)
    capsys.readouterr()
    run = finetuner.recipe.output
    assert main(["export", run, "--to", "onnx", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == f"{run}/onnx" and {path.name for path in Path(told["folder"]).glob("*.onnx*")} == {
        "model.onnx", "model.onnx.data",
    }  # fmt: skip
    (session,) = opened(told["folder"]).values()
    batch, alone = texts(finetuner.model)
    for text, row in zip(alone, ask(session, **batch), strict=True):
        assert close(row[: text["input_ids"].shape[1]], asked_alone(finetuner.model, session, text))
    bytes_of_weights = Path(told["folder"], "model.onnx.data").stat().st_size
    assert told["graphs"][0]["bytes"] > bytes_of_weights > 4 * finetuner.model.num_parameters() * 0.9
    assert np.isfinite(told["difference"])
