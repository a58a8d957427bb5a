"""What terms read inside the models, and the gradients of terms over it: hidden states, attention, states, embeddings.

Letters: N positions that count, D width, H heads, T tokens.
"""

import copy

import objective_references as naive
import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from step_reference import assert_close, blocks_of, gradients, said_of, step_of
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.learner import Learner
from llm_finetuner.output import Want
from llm_finetuner.recipe import Recipe, Teacher
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.live import Live

V = 64
TASK = CausalLM()


def build_grouped(width: int = 32, layers: int = 4):
    """A Llama of four heads that share two keys and values."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, max_position_embeddings=128, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def states_of(model, block: int, hidden_TD):
    """Queries, keys and values of a block from what goes into it: {role: [T, D]}."""
    layer = blocks_of(model)[block]
    if model.config.model_type == "gpt2":
        parts = layer.attn.c_attn(layer.ln_1(hidden_TD)).split(hidden_TD.shape[-1], -1)
        return dict(zip(("query", "key", "value"), parts, strict=True))
    normed, attention = layer.input_layernorm(hidden_TD), layer.self_attn
    return {
        "query": attention.q_proj(normed), "key": attention.k_proj(normed), "value": attention.v_proj(normed),
    }  # fmt: skip


def read(model, row: dict, kind: str, block: int):
    """What a term reads of a row of N positions, from the model's own outputs."""
    model.set_attn_implementation("eager")
    *_, at_N, after = said_of(model, row, blocks=True)
    if kind == "hidden" or kind == "features":
        return after[block][at_N]
    said = model(torch.tensor([row["input_ids"]]), output_hidden_states=True, output_attentions=True)
    if kind == "attention":
        return said.attentions[block][0].transpose(0, 1)[at_N]
    before_TD = said.hidden_states[block][0]
    if kind == "embeddings":
        return before_TD[at_N]
    return {role: x[at_N] for role, x in states_of(model, block, before_TD).items()}


# ---- what is read


@pytest.mark.parametrize(
    ("build", "close"),
    [(lambda: build_gpt2(V, layers=3), 1e-12), (build_grouped, 1e-5)],  # Llama's norms round to float32
)
def test_read_outs_are_the_models_own(build, close):
    model, rows = build().double().eval(), prepared_rows(4, V)
    want = Want(layers=(0, 2), attention=(1,), states=(0, 2), embeddings=True)
    TASK.prepare(model, want)
    said = TASK.run(model, TASK.collate(rows.to_list()), want)
    for i, row in enumerate(rows):
        where = said.examples == i
        for block in want.layers:
            assert (said.features[block][where] - read(model, row, "hidden", block)).abs().max() < close
        for block in want.states:
            for role, x in read(model, row, "states", block).items():
                assert (said.states[block][role][where] - x).abs().max() < close
        maps_NHT = read(model, row, "attention", 1)
        assert (said.attention[1][where][..., : maps_NHT.shape[-1]] - maps_NHT).abs().max() < close
        assert said.attention[1][where][..., maps_NHT.shape[-1] :].abs().sum() == 0  # the padding
        assert (said.embeddings[where] - read(model, row, "embeddings", 0)).abs().max() < close
    assert set(said.features) == {0, 2} and set(said.states) == {0, 2} and set(said.attention) == {1}


def hooks_in(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_else_is_read_and_no_hook_stays(tmp_path):
    student, teacher = build_gpt2(V), build_llama(V)
    objectives = {"cross_entropy": 1, "value_relation": {"layers": [[1, 2]]}, "embedding_mse": 1, "cka": 1}
    *_, after = step_of(
        tmp_path, student, teacher, prepared_rows(8, V), "distillation", objectives=objectives
    )
    assert hooks_in(after) == 0
    batch = TASK.collate(prepared_rows(4, V).to_list())
    plain = TASK.run(student, batch, Want())
    assert not plain.features and not plain.attention and not plain.states and plain.embeddings is None
    with pytest.raises(IndexError):
        TASK.run(
            student, {**batch, "input_ids": batch["input_ids"] + V}, Want(layers=(0, 1), embeddings=True)
        )
    assert hooks_in(student) == 0  # after a failure too


def test_a_fused_layer_of_another_order_is_refused():
    """GPT-BigCode interleaves its queries, keys and values by head: cut in three they would be other numbers."""
    config = GPTBigCodeConfig(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, multi_query=False)
    model = GPTBigCodeForCausalLM(config)
    with pytest.raises(ModelError, match="no query, key and value layers"):
        TASK.run(model, TASK.collate(prepared_rows(2, V).to_list()), Want(states=(0,)))


# ---- gradients of terms


TERMS = {  # objective -> what it reads, options, pairs of blocks
    "attention_kl": ("attention", {}, [[0, 1], [1, 3]]),
    "attention_mse": ("attention", {"heads": "averaged"}, [[1, 0]]),
    "value_relation": ("states", {"of": ["query", "key", "value"], "heads": 4}, [[0, 1], [1, 3]]),
    "cka": ("hidden", {}, [[0, 3]]),
    "distance": ("hidden", {}, [[0, 1], [1, 2]]),
    "angle": ("hidden", {"positions": 5}, [[1, 2]]),
    "similarity": ("hidden", {}, [[1, 2]]),
    "token_relation": ("hidden", {}, [[0, 0], [1, 3]]),
    "embedding_mse": ("embeddings", {}, None),
    "hidden_normalized": ("features", {}, [[1, 2]]),
}


@pytest.mark.parametrize(("name", "grouped"), [*((name, False) for name in TERMS), ("value_relation", True)])
def test_gradients_of_terms(tmp_path, name, grouped):
    """0.4 of cross-entropy beside the term, against the objective's naive form over the naive read-outs."""
    kind, options, pairs = TERMS[name]
    student, rows = build_gpt2(V).double(), prepared_rows(5, V)
    teacher = (build_grouped() if grouped else build_gpt2(V, width=32, layers=4, seed=1)).double()
    exact = (
        1e-6 if grouped else 1e-9
    )  # Llama's norm computes in float32, where 1e-16 before it may round otherwise
    term = {"weight": 0.6, **options, **({"layers": pairs} if pairs else {}), "projection": "orthogonal"}
    got, _, record, _ = step_of(
        tmp_path, student, teacher, rows, "distillation", batch_size=2, gradient_accumulation_steps=3,
        objectives={"cross_entropy": 0.4, name: term},
    )  # fmt: skip
    torch.manual_seed(0)  # as fit does, right before it draws a projection
    drawn = torch.nn.Linear(16, 32, bias=False).double()
    torch.nn.init.orthogonal_(drawn.weight)
    student = copy.deepcopy(student).train()
    ce, sums, count = 0.0, [0.0] * len(pairs or [0]), 0
    for row in rows:
        logits, targets, *_ = said_of(student, row)
        ce = ce + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        for i, (s, t) in enumerate(pairs or [(0, 0)]):
            own = read(student, row, kind, s)
            with torch.no_grad():
                other = read(teacher.eval(), row, kind, t)
            own = own @ drawn.weight.detach().T if kind in ("embeddings", "features") else own
            extra = [torch.zeros(len(targets))] if "examples" in naive.reads(name) else []
            sums[i] = sums[i] + getattr(naive, name)(own, other, *extra, **options).sum()
        count += len(targets)
    term_value = sum(sums) / len(sums) / count
    assert record[name] == pytest.approx(term_value.item(), rel=exact)
    assert_close(got, gradients(0.4 * ce / count + 0.6 * term_value, student), tolerance=exact)


def test_relational_terms_do_not_depend_on_how_a_step_is_cut(tmp_path):
    # not a Llama, whose norms round to float32
    student, teacher = build_gpt2(V).double(), build_gpt2(V, width=32, layers=4, seed=1).double()
    rows = prepared_rows(8, V)
    names = ("distance", "angle", "similarity", "token_relation", "cka", "value_relation", "attention_kl")
    objectives = {name: {"weight": 0.5, "layers": "first-last"} for name in names}
    found = [
        step_of(
            tmp_path, student, teacher, rows, "distillation", batch_size=size, gradient_accumulation_steps=8 // size,
            objectives=objectives,
        )
        for size in (8, 4, 2, 1)
    ]  # fmt: skip
    for got, _, record, _ in found[1:]:
        assert_close(got, found[0][0])
        assert all(record[name] == pytest.approx(found[0][2][name], rel=1e-9) for name in names)


def test_gradient_checkpointing_reads_the_same(tmp_path):
    student, teacher, rows = build_gpt2(V).double(), build_llama(V).double(), prepared_rows(8, V)
    objectives = {"cross_entropy": 1, "value_relation": 1, "attention_kl": 1, "cka": 1, "embedding_mse": 1}
    plain, again = (
        step_of(tmp_path, student, teacher, rows, "distillation", gradient_checkpointing=on, objectives=objectives)
        for on in (False, True)
    )  # fmt: skip
    assert_close(again[0], plain[0])


def test_relation_distillation_weighs_angles_twice(tmp_path):
    student, teacher, rows = build_gpt2(V).double(), build_llama(V).double(), prepared_rows(8, V)
    got, _, record, _ = step_of(tmp_path, student, teacher, rows, "relation_distillation", alpha=0.4)
    objectives = {
        "cross_entropy": 0.4, "distance": {"weight": 0.6, "layers": "final"},
        "angle": {"weight": 1.2, "layers": "final"},
    }  # fmt: skip
    same, _, _, _ = step_of(tmp_path, student, teacher, rows, "distillation", objectives=objectives)
    assert all(torch.equal(got[name], same[name]) for name in got)
    want = 0.4 * record["cross_entropy"] + 0.6 * record["distance"] + 1.2 * record["angle"]
    assert record["loss"] == pytest.approx(want, rel=1e-12)


# ---- projections


def learner_for(student, teacher, **options) -> Learner:
    recipe = Recipe(method="feature_distillation", options=options, teacher=Teacher("t"))
    return Learner(TASK, student, recipe.scheme, Live(TASK, teacher))


@pytest.mark.parametrize(("own", "other"), [(16, 32), (32, 16)])
def test_orthogonal_projections_keep_lengths_at_the_start(own, other):
    student, teacher = build_gpt2(V, width=own), build_llama(V, width=other)
    learner = learner_for(student, teacher, projection="orthogonal", feature_layers="first-last")
    assert sorted(learner.projections) == ["0", "1"]
    for projection in learner.projections.values():
        w = projection.weight
        gram = w.T @ w if own < other else w @ w.T
        assert w.shape == (other, own) and (gram - torch.eye(16)).abs().max() < 1e-5
        assert w.requires_grad
    linear = learner_for(student, teacher, feature_layers="first-last").projections["0"].weight
    assert (linear.T @ linear if own < other else linear @ linear.T).sub(torch.eye(16)).abs().max() > 0.05


def test_no_projection_where_widths_agree_or_do_not_matter():
    student, teacher = build_gpt2(V, width=32), build_llama(V)
    assert not learner_for(student, teacher).projections
    assert not learner_for(student, teacher, feature_loss="embedding_mse").projections
    for loss in ("cka", "attention_kl", "value_relation"):
        assert not learner_for(build_gpt2(V), teacher, feature_loss=loss).projections
    assert list(learner_for(build_gpt2(V), teacher, feature_loss="embedding_mse").projections) == [
        "embeddings"
    ]


def test_heads_that_do_not_match_are_told(tmp_path):
    with pytest.raises(RecipeError, match="the student has 2, the teacher 4"):
        step_of(
            tmp_path, build_gpt2(V), build_grouped(), prepared_rows(8, V), "feature_distillation",
            feature_loss="attention_kl",
        )  # fmt: skip
