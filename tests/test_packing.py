"""Examples that share rows against the same examples alone: every family, every kind of teacher, labels and mistakes.

Letters: N positions that count, T tokens.
"""

import datasets
import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from other_tokenizers import build_other
from step_reference import assert_close
from test_batches import gradient
from test_teacher_aligned import renumbered
from transformers import AutoConfig, AutoModelForCausalLM

from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models.packing import ATTENTIONS, PACKABLE, check_packable, packable
from llm_finetuner.models.vocabulary import Vocabulary
from llm_finetuner.output import Want
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.across import Across
from llm_finetuner.teachers.aligned import Aligned, align
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.teachers.store import Store

V = 64
TASK = CausalLM()
OWN_NAMES = {  # what the families call their sizes
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 8},
    "codegen": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 8},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "gpt_neo": {
        "num_layers": 3,
        "num_heads": 4,
        "window_size": 5,
        "attention_types": [[["global", "local", "local"], 1]],
    },
    "gemma2": {"query_pre_attn_scalar": 8},
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {"n_layer": 3, "n_head": 4},
}


@pytest.fixture
def exact(monkeypatch):
    """Call it for softmax and norms in float64, which many families take in float32 whatever the model's dtype.

    To be called after a model is built, for some modules are compiled as they are imported.
    """
    plain, softmax, to = torch.Tensor.float, torch.nn.functional.softmax, torch.Tensor.to

    def keep(x, *args, **kwargs):
        down = x.dtype == torch.float64 and args[:1] == (torch.float32,)
        return x if down else to(x, *args, **kwargs)

    def begin():
        monkeypatch.setattr(torch.Tensor, "to", keep)
        monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else plain(x))
        monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim=dim))

    return begin


def build(kind: str, attention: str | None = None):
    """A tiny model in float64 with a sliding window of 5 tokens where the family has one."""
    settings = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": V,
        "intermediate_size": 48, "max_position_embeddings": 128, "head_dim": 8, "sliding_window": 5,
        "use_sliding_window": True, "max_window_layers": 0, "initializer_range": 0.3, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    config = type(AutoConfig.for_model(kind))(**{**settings, **OWN_NAMES.get(kind, {})})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for module in model.modules():  # multiplied with positions in float32
        for name in [name for name in module._buffers if name.endswith("inv_freq")]:
            module._buffers[name] = module._buffers[name].type(torch.float32)
    if attention:
        model.set_attn_implementation(attention)
    return model


def answers(model, rows, packed: bool, want: Want):
    """(everything that is read, one tensor each; the gradients of a sum over all of it)."""
    said = TASK.run(model, TASK.collate(rows, packed=packed), want)
    read = [said.rows, *said.features.values(), *said.attention.values(), said.targets, said.examples]
    read += [x for roles in said.states.values() for x in roles.values()]
    read += [] if said.embeddings is None else [said.embeddings]
    weights = torch.linspace(0.5, 1.5, said.rows.shape[0], dtype=torch.float64)[:, None]
    loss = sum((weights * x.flatten(1).tanh()).sum() for x in read if x.is_floating_point())
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return read, {
        name: g for (name, _), g in zip(model.named_parameters(), found, strict=True) if g is not None
    }


# ---- every family


@pytest.mark.parametrize("attention", ["default", "eager"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_a_family_keeps_examples_apart(exact, kind, attention):
    """Answers, hidden states and gradients, with windows that are shorter than the examples."""
    model, rows = build(kind, None if attention == "default" else "eager"), prepared_rows(9, V).to_list()
    exact()
    assert packable(model) and max(len(row["input_ids"]) for row in rows) > 10
    batch = TASK.collate(rows, packed=True)
    assert int(batch["packed"][:, 0].max()) + 1 < len(rows)
    (read, got), (alone, want) = (
        answers(model, rows, packed, Want(layers=(0, 2))) for packed in (True, False)
    )
    assert all((x - y).abs().max() <= 1e-12 * max(1, y.abs().max()) for x, y in zip(read, alone, strict=True))
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "mistral"])
def test_attention_and_states_are_those_of_the_example(exact, kind):
    """Maps of attention over the example's own tokens, whatever stands beside it in the row."""
    model, rows = build(kind), prepared_rows(9, V).to_list()
    exact()
    want = Want(layers=(1,), attention=(0, 2), states=(1,), embeddings=True)
    TASK.prepare(model, want)
    (read, got), (alone, told) = (answers(model, rows, packed, want) for packed in (True, False))
    longest = max(len(row["input_ids"]) for row in rows)
    assert read[2].shape == (len(read[0]), 4, longest) and len(read) == len(alone)
    assert all((x - y).abs().max() <= 1e-12 * max(1, y.abs().max()) for x, y in zip(read, alone, strict=True))
    assert_close(got, told, 1e-12)


def test_the_first_token_is_not_predicted_from_the_example_before():
    rows = prepared_rows(9, V, prompt=0).to_list()
    assert all(row["labels"][0] != IGNORED for row in rows)  # nothing predicts them, packed or not
    said = TASK.run(build_gpt2(V), TASK.collate(rows, packed=True), Want())
    assert said.targets.tolist() == [token for row in rows for token in row["labels"][1:]]
    assert said.examples.tolist() == [i for i, row in enumerate(rows) for _ in row["labels"][1:]]


# ---- models that cannot


@pytest.mark.parametrize("kind", ["opt", "bloom", "mamba", "rwkv"])
def test_a_student_that_mixes_examples_up_is_refused(tmp_path, kind):
    with pytest.raises(RecipeError, match=f"train.packing: a {kind} .*\n?.*max_tokens"):
        gradient(tmp_path, build(kind), None, prepared_rows(8, V), "fine_tuning", packing=True)


def test_another_attention_is_refused():
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"  # not installed here, so only named
    with pytest.raises(RecipeError, match=f"attention 'flash_attention_2'.*\n?.*{' or '.join(ATTENTIONS)}"):
        check_packable(model)


def test_such_a_teacher_reads_padded_batches(tmp_path):
    """A packed OPT would say something else: it counts positions by itself."""
    student, teacher, rows = build_gpt2(V).double(), build("opt"), prepared_rows(8, V)
    found = [
        gradient(tmp_path, student, teacher, rows, "vanilla_distillation", packing=packing)[0]
        for packing in (0, 1)
    ]
    assert_close(found[1], found[0], 1e-12)


def test_padding_on_the_left_is_refused():
    rows = prepared_rows(3, V).to_list()
    rows[1]["attention_mask"][0] = 0
    with pytest.raises(DataError, match="attention_mask of 0 before its last token"):
        TASK.collate(rows, packed=True)
    assert TASK.collate(rows)["attention_mask"][1, 0] == 0


# ---- every kind of teacher


def two(seed: int = 5):
    return [build_gpt2(V, width=24, seed=seed).double(), build_llama(V).double()]


def cache(folder):
    write_cache(Live(TASK, two()[0]), TASK, prepared_rows(8, V), folder, vocabulary=V, about={}, mode="fp32")
    return Cached(Store.open(folder), TASK, torch.device("cpu"))


TEACHERS = {
    "live": lambda folder: two()[0],
    "another family": lambda folder: two()[1],
    "ensemble": lambda folder: Ensemble([Live(TASK, model) for model in two()]),
    "ensemble by loss": lambda folder: Ensemble([Live(TASK, model) for model in two()], "loss"),
    "shuffled": lambda folder: Shuffled(Live(TASK, two()[0])),
    "cached": cache,
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_teacher_says_the_same(tmp_path, kind):
    student, rows = build_gpt2(V).double(), prepared_rows(8, V)
    teacher = TEACHERS[kind](tmp_path / "cache")
    found = [
        gradient(
            tmp_path, student, teacher, rows, "vanilla_distillation", {"temperature": 2.0}, packing=packing
        )
        for packing in (False, True)
    ]
    assert_close(found[1][0], found[0][0], 1e-12)
    assert found[1][1]["agreement"] == found[0][1]["agreement"]


@pytest.mark.parametrize(
    "way", [{"packing": True}, {"max_tokens": 30}, {"packing": True, "max_tokens": 34}], ids=str
)
@pytest.mark.parametrize("options", [{"by": "average", "decay": 0.5}, {"exits": [0, 1]}], ids=str)
def test_a_student_teaches_itself_the_same(tmp_path, options, way):
    student, rows = build_gpt2(V, layers=3).double(), prepared_rows(8, V)
    found = [
        gradient(tmp_path, student, None, rows, "self_distillation", options, steps=2, **chosen)[0]
        for chosen in ({}, way)
    ]
    assert_close(found[1], found[0], 1e-11)


@pytest.mark.parametrize("way", [{"packing": True}, {"max_tokens": 30}], ids=str)
def test_peers_learn_the_same(tmp_path, way):
    student, rows = build_gpt2(V).double(), prepared_rows(8, V)
    found = [
        gradient(
            tmp_path, student, None, rows, "online_distillation", peers=[*two(), build("opt")], **chosen
        )[0]
        for chosen in ({}, way)
    ]
    assert_close(found[1], found[0], 1e-12)


def test_what_the_student_writes_is_packed_too(tmp_path, tokenizer):
    size = len(tokenizer)
    student, teacher = build_gpt2(size).double(), build_llama(size).double()
    found = [
        gradient(
            tmp_path, student, teacher, prepared_rows(8, size), "on_policy_distillation",
            {"share": 0.6, "max_new_tokens": 6}, tokenizer=tokenizer, packing=packing,
        )[0]
        for packing in (False, True)
    ]  # fmt: skip
    assert_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize("kind", ["across", "aligned"])
def test_a_teacher_with_another_tokenizer(tmp_path, tokenizer, kind):
    """It reads rows of other lengths than the student's, padded."""
    texts = [
        "the cat sees a red house .",
        "old birds",
        "a tree by the blue house likes the dog",
        "the new cat .",
    ]
    ids = [tokenizer(text)["input_ids"] for text in texts * 2]
    rows = datasets.Dataset.from_list(
        [{"input_ids": x, "attention_mask": [1] * len(x), "labels": [-100, *x[1:]]} for x in ids]
    )
    other = build_other(size=290) if kind == "across" else renumbered(tokenizer)
    live = Live(TASK, build_llama(len(other)).double())
    if kind == "across":
        teacher, terms = (
            Across(live, Vocabulary(tokenizer), Vocabulary(other)),
            {"forward_kl": 0.5, "span_kl": 0.5},
        )
    else:
        teacher, terms = Aligned(live, align(tokenizer, other)), {"forward_kl": 0.5, "hidden_mse": 0.5}
    student = build_gpt2(len(tokenizer), width=32).double()
    found = [
        gradient(tmp_path, student, teacher, rows, "distillation", {"objectives": terms}, packing=packing)[0]
        for packing in (False, True)
    ]
    assert_close(found[1], found[0], 1e-12)
