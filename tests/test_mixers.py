"""Students with Mamba-2 in the place of their teacher's attention, and the Mambas of transformers as both.

Letters: B sequences, T tokens, D width, N positions that count.
"""

import copy

import pytest
import torch
from conftest import build_gpt2, prepared_rows, save_model
from task_steps import gradient_of, gradient_of_step
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark import speed
from llm_finetuner.benchmark.text import continuations
from llm_finetuner.chain import stages_of
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.mixers import goes_on
from llm_finetuner.models.packing import check_packable, packable
from llm_finetuner.models.shrink import shrink
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.named_models import has_new_weights
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

V = 64
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "initializer_range": 0.2,
}  # fmt: skip


def llama(vocabulary=V, seed=1, **sizes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "vocab_size": vocabulary, "num_key_value_heads": 4, **sizes})
    )


def mamba(vocabulary=V, seed=2):
    torch.manual_seed(seed)
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def mamba2(vocabulary=V, seed=3):
    torch.manual_seed(seed)
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, num_heads=4, head_dim=8, n_groups=1,
            state_size=4, chunk_size=8, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
        )
    )  # fmt: skip


def swapped(vocabulary=V, seed=4):
    return shrink(llama(vocabulary), keep=1, mixer="mamba2", seed=seed)


def close(got, want):
    assert torch.allclose(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


KINDS = {"mamba": mamba, "mamba2": mamba2, "swapped": swapped}
NAMES = {"mamba": "mamba", "mamba2": "mamba2", "bamba": "swapped"}


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]().eval()


# ---- what is kept of the teacher, and what is new


@pytest.mark.parametrize("tied", [False, True])
def test_with_the_teachers_attention_put_back_the_student_is_the_teacher(tied):
    teacher = llama(tie_word_embeddings=tied, num_key_value_heads=2).eval()
    student = shrink(teacher, keep=1, mixer="mamba2").eval()
    ids_BT = torch.randint(2, V, (3, 9))
    said = []
    for block in blocks_of(teacher):
        block.self_attn.register_forward_hook(lambda _m, _i, output: said.append(output[0]))
    want = teacher(ids_BT).logits
    for block in blocks_of(student):
        block.mamba.register_forward_hook(lambda _m, _i, _o: said.pop(0))
    assert torch.equal(student(ids_BT).logits, want)
    assert not said


def test_a_mixer_begins_with_what_attention_projects_and_each_head_with_the_keys_that_it_shares():
    teacher = llama(num_key_value_heads=2)
    student = shrink(teacher, keep=1, mixer="mamba2")
    x_TD = torch.randn(5, 16)
    attention, mixer = blocks_of(teacher)[0].self_attn, blocks_of(student)[0].mamba
    _, values, keys, queries, _ = mixer.in_proj(x_TD).split([16, 16, 16, 16, 4], dim=-1)
    assert torch.allclose(queries, attention.q_proj(x_TD), atol=1e-6)
    for ours, theirs in ((values, attention.v_proj), (keys, attention.k_proj)):
        shared = theirs(x_TD).unflatten(-1, (2, 4))[:, [0, 0, 1, 1]].flatten(1)
        assert torch.allclose(ours, shared, atol=1e-6)
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)


def test_the_seed_decides_what_is_drawn():
    first, again, other = (shrink(llama(), keep=1, mixer="mamba2", seed=seed) for seed in (0, 0, 1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    gates = [blocks_of(model)[0].mamba.in_proj.weight[:16] for model in (first, other)]
    assert not torch.equal(*gates)


def test_nothing_is_shared_with_the_teacher_and_nothing_drawn_from_the_state_of_the_program():
    teacher = llama()
    before, state = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    student = shrink(teacher, keep=2, mixer="mamba2")
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert len(blocks_of(student)) == 1


def test_heads_wider_than_the_model_and_a_narrower_student():
    torch.manual_seed(0)
    wide = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8))
    student = shrink(wide, keep=1, mixer="mamba2")
    assert student.config.mamba_expand == 2
    assert student(torch.randint(0, V, (2, 7))).logits.shape == (2, 7, V)
    narrow = shrink(llama(), keep=1, width=0.5, mixer="mamba2")
    assert (narrow.config.hidden_size, narrow.config.mamba_n_heads, narrow.config.intermediate_size) == (
        8,
        2,
        12,
    )


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: build_gpt2(V), "the attention of a gpt2 cannot be replaced"),
        (
            lambda: llama(head_dim=6),
            "no multiple of the width 16",
        ),
        (
            lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)),
            "head that no model with Mamba-2 mixers has",
        ),
    ],
)
def test_what_has_no_such_student_is_told(build, says):
    with pytest.raises(ModelError, match=says):
        shrink(build(), keep=1, mixer="mamba2")


def test_an_unknown_mixer_is_told():
    with pytest.raises(RecipeError, match="mixer: 'rwkv' is not known"):
        shrink(llama(), keep=1, mixer="rwkv")


# ---- the three as models


def test_step_by_step_is_the_whole_text_at_once(model):
    ids_BT = torch.randint(2, V, (2, 7))
    how = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    said = model.generate(ids_BT, use_cache=goes_on(model), eos_token_id=None, **how)
    whole = model(said.sequences, use_cache=False).logits[:, 6:-1]
    close(torch.stack(said.logits, 1), whole)


def test_mixers_go_on_from_a_state_where_nobody_asks_for_attention():
    model, ids_BT = swapped().eval(), torch.randint(2, V, (2, 12))
    masks = {"full_attention": None, "linear_attention": None}
    out = model(ids_BT[:, :7], attention_mask=masks, use_cache=True)
    said = [out.logits]
    for t in range(7, 12):
        state = out.past_key_values
        out = model(ids_BT[:, t : t + 1], attention_mask=masks, use_cache=True, past_key_values=state)
        said.append(out.logits)
    close(torch.cat(said, 1), model(ids_BT).logits)


def test_texts_and_speeds(model, tokenizer):
    words = KINDS[NAMES[model.config.model_type]](len(tokenizer)).eval()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    together = continuations(words, tokenizer, prompts, max_new_tokens=5)
    alone = [continuations(words, tokenizer, [prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert together == alone
    speeds = speed.measure({"it": words}, torch.arange(5, 14)[None], repeats=1, new_tokens=3)
    assert speeds["it"]["latency_ms"] > 0


def test_padding_on_either_side_changes_nothing(model):
    ids_BT = torch.randint(2, V, (1, 6))
    want = model(ids_BT).logits
    for left, right in ((3, 0), (0, 5)):
        padded = torch.nn.functional.pad(ids_BT, (left, right), value=1)
        mask = torch.nn.functional.pad(torch.ones_like(ids_BT), (left, right))
        got = model(padded, attention_mask=mask).logits[:, left : left + 6]
        close(got, want)


def test_examples_cannot_share_rows(model):
    assert not packable(model)
    with pytest.raises(RecipeError, match=f"a {model.config.model_type} is not known to keep examples apart"):
        check_packable(model)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_refused_before_training(kind, tmp_path):
    recipe = Recipe(student=Model("s"), output=str(tmp_path), train=Train(steps=1, packing=True))
    with pytest.raises(RecipeError, match="not known to keep examples apart"):
        fit(recipe, Parts(student=KINDS[kind](), train=prepared_rows(vocabulary=V)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_step_through_hidden_states_and_answers(kind, tmp_path):
    """Against the formula on each row alone, so accumulation and padding are held as well."""
    student, teacher, rows = KINDS[kind]().double(), llama(seed=7).double(), prepared_rows(8, V)
    got, record = gradient_of_step(
        "causal_lm", tmp_path, student, teacher, rows, "feature_distillation",
        alpha=0.2, feature_layers=[[0, 0], [1, 1]], output_weight=0.5, temperature=2.0,
    )  # fmt: skip
    student.train()
    total, count = 0.0, 0
    for row in rows:
        ids_1T, labels_T = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        places_N = (labels_T[1:] != -100).nonzero()[:, 0]
        own, states = asked(student, ids_1T, places_N)
        with torch.no_grad():
            told, told_states = asked(teacher.eval(), ids_1T, places_N)
        p, q = (told / 2).softmax(-1), (own / 2).log_softmax(-1)
        apart = sum((a - b).square().mean(-1).sum() for a, b in zip(states, told_states, strict=True)) / 2
        truth = torch.nn.functional.cross_entropy(own, labels_T[1:][places_N], reduction="sum")
        total = total + 0.2 * truth + 0.8 * apart + 0.5 * 4 * (p * (p.log() - q)).sum()
        count += len(places_N)
    want = gradient_of(total / count, student)
    assert record["loss"] == pytest.approx((total / count).item(), rel=1e-6)
    for name, gradient in want.items():
        if gradient is not None:
            assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-6), name


def asked(model, ids_1T, places_N):
    """(logits, states after each block) at these positions of one row."""
    states, hooks = [], []
    for block in blocks_of(model):
        hooks.append(block.register_forward_hook(lambda _m, _i, out: states.append(out)))
    logits_NV = model(ids_1T, use_cache=False).logits[0, places_N].double()
    for hook in hooks:
        hook.remove()
    return logits_NV, [(out[0] if isinstance(out, tuple) else out)[0, places_N] for out in states]


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_teacher(kind, tmp_path):
    rows, teacher = prepared_rows(8, V), KINDS[kind]()
    result = fit(
        Recipe(
            method="feature_distillation", student=Model("s"), teacher=Teacher("t"), output=str(tmp_path),
            options={"output_weight": 1.0, "feature_layers": "uniform"},
            train=Train(steps=2, batch_size=4, gradient_accumulation_steps=1, save_every=0),
        ),
        Parts(student=llama(seed=9), teacher=teacher, train=rows),
    )  # fmt: skip
    assert result.history[-1]["forward_kl"] > 0
    assert result.history[-1]["hidden_mse"] > 0


# ---- a run from the recipe


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("llama"), llama(len(tokenizer)), tokenizer)


def recipe_of(llama_folder, data_file, output, **student):
    return Recipe(
        method="distillation", options={"objectives": {"hidden_mse": {"weight": 1.0, "layers": "uniform"}}},
        student=Model("teacher/1", mixer="mamba2", **student), teacher=Teacher(llama_folder),
        data=Data(source=data_file, max_length=48), output=str(output),
        train=Train(steps=4, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2,
                    eval_every=2, keep_best=False),
    )  # fmt: skip


def test_a_run_writes_a_folder_that_transformers_reads_alone(llama_folder, data_file, tmp_path):
    result = fit(recipe_of(llama_folder, data_file, tmp_path / "run"))
    assert result.history[-1]["hidden_mse"] < result.history[0]["hidden_mse"]
    found, trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval(), result.tuned.model.eval()
    ids_BT = torch.randint(2, 60, (2, 11))
    assert torch.equal(found(ids_BT).logits, trained(ids_BT).logits)
    assert torch.equal(
        found.generate(ids_BT, max_new_tokens=5, do_sample=False),
        trained.generate(ids_BT, max_new_tokens=5, do_sample=False),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_interrupted_ends_with_the_same_weights(kind, tmp_path):
    def recipe(name, steps):
        plan = Train(
            steps=steps, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2, save_every=2,
            schedule="constant", warmup=0, keep_best=False,
        )  # fmt: skip
        return Recipe(student=Model("s"), output=str(tmp_path / name), train=plan)

    parts = {"train": prepared_rows(vocabulary=V)}
    whole = fit(recipe("whole", 4), Parts(student=KINDS[kind](), **parts)).tuned.model.state_dict()
    fit(recipe("parts", 2), Parts(student=KINDS[kind](), **parts))
    resumed = fit(recipe("parts", 4), Parts(student=KINDS[kind](seed=99), **parts), resume=True)
    for name, weight in resumed.tuned.model.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_a_student_from_scratch_has_the_shape_only(llama_folder, data_file, tmp_path):
    result = fit(recipe_of(llama_folder, data_file, tmp_path / "run", from_scratch=True))
    student, teacher = result.tuned.model, AutoModelForCausalLM.from_pretrained(llama_folder)
    assert student.config.model_type == "bamba"
    apart = student.get_input_embeddings().weight - teacher.get_input_embeddings().weight
    assert apart.abs().max() > 0.3  # four steps of 1e-2 do not go so far
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert found.generate(torch.randint(2, 60, (1, 4)), max_new_tokens=3).shape[1] <= 7


def test_in_python(llama_folder, tokenizer, tmp_path):
    finetuner = LLMFineTuner(llama_folder, tmp_path / "run")
    finetuner.load_model("vanilla_distillation")
    finetuner.load_teacher_model(llama_folder)
    said = finetuner.student_from_teacher(1, mixer="mamba2")
    assert said.startswith("2 of 2 blocks, width 16 of 16")
    assert finetuner.model.config.model_type == "bamba"
    assert finetuner.recipe.student == Model("teacher/1", mixer="mamba2")
    finetuner.student_from_teacher(blocks=[1], mixer="mamba2")
    assert has_new_weights(finetuner.recipe.student) and not finetuner.recipe.warnings()


# ---- settings


def test_stages_train_the_mixers_of_the_first_on():
    stages = stages_of(
        Recipe(
            method="vanilla_distillation", student=Model("teacher/1", mixer="mamba2"), teacher=Teacher("big"),
            stages=[{"train.steps": 3}, {"student": "previous"}],
        )
    )  # fmt: skip
    assert stages[1].teacher.name == "big"
    assert has_new_weights(stages[0].student) and not has_new_weights(stages[1].student)
    assert not stages[1].warnings()


def test_a_mixer_without_a_part_of_the_teacher_is_warned_of():
    recipe = Recipe(student=Model("gpt2", mixer="mamba2"))
    assert "student.mixer=mamba2 has no effect" in recipe.warnings()[0]
    assert not has_new_weights(recipe.student)
