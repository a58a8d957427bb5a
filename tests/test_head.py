"""Logits a chunk of positions at a time, for every kind of head, and over vocabularies of different widths."""

import copy

import pytest
import torch
import transformers
from conftest import build_gpt2, build_llama, build_tokenizer, prepared_rows
from test_gradients import assert_close, gradient_of_fit, reference, sgd  # noqa: F401

from llm_finetuner import chunks
from llm_finetuner.assembly import Parts
from llm_finetuner.checks import common_vocabulary
from llm_finetuner.errors import ModelError
from llm_finetuner.models.loading import check_head
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.trainer import fit

V = 64
HEADS = {
    "plain": ("LlamaConfig", {"tie_word_embeddings": False}),
    "tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "biased": ("PhiConfig", {}),
    "soft-capped": ("Gemma2Config", {"final_logit_softcapping": 0.5, "head_dim": 8}),
    "divided": ("GraniteConfig", {"logits_scaling": 3.0}),
    "scaled": ("CohereConfig", {"logit_scale": 0.25}),
}


def build(kind: str, blocks: int, seed: int):
    """A model in float64 throughout: transformers' own norms compute in float32, LayerNorm stands in for them."""
    name, more = HEADS[kind]
    config = getattr(transformers, name)(
        vocab_size=V, hidden_size=16, num_hidden_layers=blocks, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None, **more,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("Norm") and not isinstance(module, torch.nn.LayerNorm):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, torch.nn.LayerNorm(module.weight.numel()))
    for weight in model.parameters():  # a bias of zeros would hide that it is used, a small head every scale
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(weight.numel() + seed))
    return model.double()


@pytest.mark.parametrize(
    ("blocks", "tolerance"), [(0, 1e-12), (2, 1e-5)]
)  # attention and rotations compute in float32 in some families
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_have_the_gradient_of_the_models_own_logits(tmp_path, monkeypatch, kind, blocks, tolerance):
    student, teacher = build(kind, blocks, seed=1), build(kind, blocks, seed=2)
    assert (student.get_output_embeddings().bias is not None) == (kind == "biased")
    sizes: list = []
    student.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0])) if inputs[0].dim() == 2 else None
    )
    rows = prepared_rows(8, V)
    options = {"temperature": 2.0, "alpha": 0.3}
    whole, _ = gradient_of_fit(tmp_path, student, teacher, rows, "vanilla_distillation", **options)
    assert len(sizes) == 2 and min(sizes) > 6  # two batches
    sizes.clear()
    monkeypatch.setattr(chunks, "LOGITS_A_CHUNK", 3 * V)
    pieces, record = gradient_of_fit(tmp_path, student, teacher, rows, "vanilla_distillation", **options)
    assert len(sizes) > 4 and max(sizes) == 3
    assert_close(pieces, whole, tolerance)
    want, ce, kd = reference(student, teacher, rows, alpha=0.3, temperature=2.0)
    assert_close(pieces, want, tolerance)
    assert record["cross_entropy"] == pytest.approx(ce, rel=tolerance)
    assert record["forward_kl"] == pytest.approx(kd, rel=tolerance) and kd > 0.01


class DoublesItsLogits(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        said = super().forward(*args, **kwargs)
        said.logits = said.logits * 2
        return said


def test_logits_changed_in_an_unknown_way_are_refused(tmp_path):
    odd = DoublesItsLogits(build_llama(V).config)
    check_head(build_llama(V), "known")
    with pytest.raises(ModelError, match="odd.*DoublesItsLogits.*does not know"):
        check_head(odd, "odd")
    for student, teacher in ((odd, build_llama(V)), (build_gpt2(V), odd)):
        with pytest.raises(ModelError, match="DoublesItsLogits"):
            gradient_of_fit(tmp_path, student, teacher, prepared_rows(8, V), "vanilla_distillation")


def test_features_alone(tmp_path):
    """No term reads logits: no gradient comes from the head, and nothing is said of cross-entropy."""
    student, teacher = build_gpt2(V).double(), build_llama(V).double()
    got, record = gradient_of_fit(
        tmp_path, student, teacher, prepared_rows(8, V), "feature_distillation", alpha=0.0, output_weight=0.0
    )
    assert got["transformer.h.0.attn.c_attn.weight"].abs().max() > 1e-6
    assert got["transformer.ln_f.weight"].abs().max() == 0  # after the last block, so only the head sees it
    assert not {"cross_entropy", "forward_kl"} & record.keys()
    assert record["loss"] == pytest.approx(record["hidden_mse"], rel=1e-12) and record["loss"] > 0


def test_a_teacher_of_whom_no_answers_are_read_stops_early(tmp_path):
    """Its blocks above those that are compared and its head do not run; the loss is that of one that runs whole."""
    rows, records = prepared_rows(8, V), []
    for output_weight in (0.0, 0.5):
        student, teacher = build_gpt2(V).double(), build_llama(V, layers=4).double()
        ran: list[str] = []
        for name, module in [("head", teacher.lm_head), *enumerate(teacher.model.layers)]:
            module.register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
        options = {"feature_layers": [[0, 0], [1, 2]], "alpha": 0.5, "output_weight": output_weight}
        _, record = gradient_of_fit(tmp_path, student, teacher, rows, "feature_distillation", **options)
        records.append(record)
        batches = (
            2 if output_weight == 0 else 0
        )  # before them the whole model is asked once whether its head is known
        assert ran.count(0) == ran.count(2) == ran.count(3) + batches > 2
        assert ran.count("head") >= 1 and (ran[-1] == 2) == (output_weight == 0)
    assert records[0]["hidden_mse"] == records[1]["hidden_mse"] > 0
    assert records[0]["teacher_nll"] is None and records[1]["teacher_nll"] > 0


def test_a_teacher_in_training_mode_answers_without_dropout(tmp_path):
    student, rows = build_llama(V).double(), prepared_rows(8, V)
    gradients = []
    for dropout in (0.0, 0.5):
        teacher = build_gpt2(V, dropout=dropout).double().train()
        assert teacher.training
        gradients.append(gradient_of_fit(tmp_path, student, teacher, rows, "vanilla_distillation", alpha=0.0))
    (calm, one), (noisy, two) = gradients
    assert all(torch.equal(calm[name], noisy[name]) for name in calm)
    assert one["forward_kl"] == two["forward_kl"] > 0


# ---- vocabularies of different widths


def resized(model, width: int, seed: int):
    torch.manual_seed(seed)
    model.resize_token_embeddings(width, mean_resizing=False)
    return model.double()


# columns beyond the tokens, of (student, teacher); what they share is what both can say
WIDTHS = [((0, 0), None), ((5, 37), 0), ((37, 5), 0), ((5, 5), 0), ((0, 5), 0), ((-3, 0), -3), ((-3, 5), -3),
          ((0, -2), -2), ((-3, -3), None)]  # fmt: skip


@pytest.mark.parametrize(("extra", "shared"), WIDTHS)
def test_only_columns_that_name_a_token_of_both_are_compared(tmp_path, extra, shared):
    tokenizer = build_tokenizer()
    tokens, rows = len(tokenizer), prepared_rows(8, V)
    student = resized(build_gpt2(tokens), tokens + extra[0], seed=5)
    teacher = resized(build_llama(tokens), tokens + extra[1], seed=6)
    columns = common_vocabulary(CausalLM(), student, teacher, tokenizer, tokenizer)
    assert columns == (None if shared is None else tokens + shared)
    dense, count, total = copy.deepcopy(student), 0, 0.0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        counted = labels != -100
        log_s = torch.log_softmax(dense(ids).logits[0, :-1][counted][:, :columns], -1)
        log_t = torch.log_softmax(teacher(ids).logits[0, :-1][counted][:, :columns].detach(), -1)
        total, count = total + (log_t.exp() * (log_t - log_s)).sum(), count + int(counted.sum())
    names, weights = zip(*dense.named_parameters(), strict=True)
    want = dict(zip(names, torch.autograd.grad(total / count, weights), strict=True))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recipe = Recipe(
        method="vanilla_distillation", options={"temperature": 1.0, "alpha": 0.0}, student=Model("s"),
        teacher=Teacher("t"), output=str(tmp_path / "run"),
        train=Train(steps=1, batch_size=8, gradient_accumulation_steps=1, learning_rate=1.0, warmup=0,
                    schedule="constant", max_grad_norm=0, optimizer="test_gradients:sgd", save_every=0),
    )  # fmt: skip
    parts = Parts(
        student=student, teacher=teacher, tokenizer=tokenizer, teacher_tokenizer=tokenizer, train=rows,
        device="cpu",
    )  # fmt: skip
    result = fit(recipe, parts)
    got = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    assert_close(got, want)
    assert result.history[0]["forward_kl"] == pytest.approx(float(total.detach() / count), rel=1e-9)


def test_widths_that_differ_without_tokenizers_are_refused():
    student, teacher = build_gpt2(V), build_llama(V + 2)
    with pytest.raises(ModelError, match=f"{V} logits and the teacher {V + 2}"):
        common_vocabulary(CausalLM(), student, teacher, None, None)
    assert common_vocabulary(CausalLM(), student, build_llama(V), None, None) is None
