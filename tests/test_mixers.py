"""Students with Mamba-2 in the place of their teacher's attention.

Letters: B sequences, T tokens, D width, V vocabulary.
"""

import copy

import pytest
import torch
from conftest import build_gpt2, save_model
from mamba_models import SIZES, V, close, llama, needs_new, swapped
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_finetuner.chain import stages_of
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import mixers
from llm_finetuner.models.shrink import shrink
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.named_models import has_new_weights
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

pytestmark = needs_new


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


def test_the_verdict_holds_it_against_the_same_student_alone(llama_folder, data_file, tmp_path):
    recipe = recipe_of(llama_folder, data_file, tmp_path / "run")
    fit(recipe)
    verdict = compare_run(tmp_path / "run", baseline=True)
    alone = next(model for model in verdict["models"] if model["role"] == "baseline_steps")
    untouched = next(model for model in verdict["models"] if model["role"] == "untouched")
    assert alone["parameters"] == untouched["parameters"] and alone["latency_ms"] > 0
    assert alone["perplexity"] != untouched["perplexity"]


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


def test_an_older_version_of_transformers_is_told(monkeypatch):
    monkeypatch.setattr(mixers, "OLDEST", "99.0")
    with pytest.raises(ModelError, match="needs transformers 99.0, and .* is here"):
        shrink(llama(), keep=1, mixer="mamba2")
