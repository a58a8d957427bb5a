"""A student made from its teacher: which blocks, that it runs, saves and trains, and the teacher stays as it was."""

import copy

import pytest
import torch
import transformers
from conftest import build_gpt2
from shrink_models import CAUSAL, GPT2, KINDS, WINDOWS, V, answer, batches, build
from torch import nn

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.families import FAMILIES
from llm_finetuner.models.shrink import choose_blocks, describe, parse_share, shrink
from llm_finetuner.models.stacks import blocks_of


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_is_the_same_bit_for_bit(kind):
    teacher = build(kind)
    student = shrink(teacher, keep=1.0)
    assert torch.equal(answer(student), answer(teacher))
    assert student is not teacher and student.dtype == torch.float64
    assert all(weight.requires_grad for weight in student.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks, numbers", [("uniform", [0, 3]), ([1, 2], [1, 2])])
def test_half_is_the_teacher_without_the_other_blocks(kind, blocks, numbers):
    teacher = build(kind)
    student = shrink(teacher, keep=0.5, blocks=blocks)
    assert len(blocks_of(student)) == student.config.num_hidden_layers == 2
    plain = copy.deepcopy(teacher)
    for number, block in enumerate(blocks_of(plain)):
        if number not in numbers:
            block.register_forward_hook(lambda block, inputs, output: inputs[0])
    torch.testing.assert_close(answer(student), answer(plain), rtol=0, atol=1e-6)
    assert (answer(student) - answer(teacher)).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"width": 0.7, "activations": batches()}], ids=str)
def test_the_teacher_stays_what_it_was_and_shares_nothing(kind, options):
    teacher = build(kind).train()
    for weight in teacher.parameters():
        weight.requires_grad_(False)
    before, config, state = (
        copy.deepcopy(teacher.state_dict()),
        teacher.config.to_dict(),
        torch.get_rng_state(),
    )
    student = shrink(teacher, **options)
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers are left alone"
    assert not storages(teacher) & storages(student)
    assert teacher.config.to_dict() == config and teacher.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_it_is_an_ordinary_folder(kind, width, tmp_path):
    student = shrink(build(kind), width=width, activations=batches())
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path, dtype=torch.float64).eval()
    kept, written = student.state_dict(), again.state_dict()
    assert kept.keys() == written.keys() and all(torch.equal(kept[name], written[name]) for name in kept)
    # not to the last bit: what lies elsewhere in memory may be multiplied in another order
    torch.testing.assert_close(answer(again), answer(student), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_cache_changes_nothing(kind, width):
    student = shrink(build(kind), width=width, blocks=[1, 3])
    prompt = batches(1)[0]["input_ids"][1:]
    how = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with_cache, without = (student.generate(prompt, use_cache=use, **how) for use in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.logits, without.logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_tied_heads_stay_tied_and_others_do_not(width):
    for kind in (*CAUSAL, "bert masked"):
        teacher = build(kind)
        student = shrink(teacher, width=width)
        tied = [
            m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (teacher, student)
        ]
        assert tied[0] == tied[1] == (kind in ("gpt2", "qwen2", "bert masked")), kind


def test_the_bias_of_a_head_goes_along():
    torch.manual_seed(0)
    config = transformers.PhiConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=0,
    )
    teacher = transformers.PhiForCausalLM(config)
    nn.init.normal_(teacher.lm_head.bias)
    assert torch.equal(shrink(teacher).lm_head.bias, teacher.lm_head.bias)
    masked = build("bert masked")
    student = shrink(masked, width=0.5)
    assert torch.equal(student.cls.predictions.bias, masked.cls.predictions.bias)
    assert student.cls.predictions.decoder.bias is student.cls.predictions.bias


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training_helps(kind):
    student, batch = shrink(build(kind), width=0.5, activations=batches()), batches(1)[0]
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    aim = torch.randn(
        student(**batch)[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    losses = []
    for _ in range(2):
        loss = (student(**batch)[0] - aim).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]


def test_the_smaller_model_is_described():
    teacher = build_gpt2(50, width=16, layers=4)
    block = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 4 * 16
    rest = 50 * 16 + 128 * 16 + 2 * 16  # the head is tied
    line = describe(teacher, shrink(teacher))
    assert line == (
        f"2 of 4 blocks, width 16 of 16, {rest + 2 * block:,} of {rest + 4 * block:,} parameters "
        f"({(rest + 2 * block) / (rest + 4 * block):.0%})"
    )
    assert describe(teacher, shrink(teacher, keep=4, width=0.5)).startswith("1 of 4 blocks, width 8 of 16, ")


def test_which_blocks():
    assert choose_blocks(12, 2) == choose_blocks(12, 0.5) == [0, 2, 4, 7, 9, 11]  # as DistilBERT does
    assert choose_blocks(12, 4) == [0, 6, 11]
    assert choose_blocks(24, 3) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert choose_blocks(4, 4) == choose_blocks(4, 4, "first-last") == [0]
    assert choose_blocks(5, 2, "first-last") == [0, 1, 4]
    assert (
        choose_blocks(5, 1) == choose_blocks(5, 1.0) == choose_blocks(5, 1, "first-last") == [0, 1, 2, 3, 4]
    )
    assert choose_blocks(5, 0.5, [1, 4]) == [1, 4]
    for depth in range(1, 50):
        for count in range(1, depth + 1):
            chosen = choose_blocks(depth, count / depth)
            assert len(set(chosen)) == count and chosen == sorted(chosen) and chosen[0] == 0
            assert count == 1 or chosen[-1] == depth - 1


def test_names_of_a_part_of_the_teacher():
    assert [parse_share(name) for name in ("teacher/2", " teacher/12 ", "teacher/1")] == [2, 12, 1]
    for name in (
        "gpt2",
        "teacher",
        "teacher/",
        "teacher/final",
        "my-teacher/2",
        "teachers/2",
        "teacher/2b",
        "./teacher/2",
    ):
        assert parse_share(name) is None, name
    for name in ("teacher/0", "teacher/-2", "teacher/1.5", "teacher/.5", "teacher/02"):
        with pytest.raises(RecipeError, match="whole number"):
            parse_share(name)


@pytest.mark.parametrize(
    "error, options, words",
    [
        (RecipeError, {"keep": 0}, "no part of the teacher"),
        (RecipeError, {"keep": -1}, "no part of the teacher"),
        (RecipeError, {"keep": 1.5}, "no part of the teacher"),
        (RecipeError, {"keep": True}, "no part of the teacher"),
        (RecipeError, {"keep": float("nan")}, "no part of the teacher"),
        (ModelError, {"keep": 100}, "4 blocks, which cannot be divided by 100"),
        (ModelError, {"keep": 0.1}, "keeps none of the teacher.s 4 blocks"),
        (RecipeError, {"blocks": "middle"}, "uniform, first-last"),
        (ModelError, {"blocks": [2, 1]}, "from 0 to 3"),
        (ModelError, {"blocks": [1, 1]}, "from 0 to 3"),
        (ModelError, {"blocks": [0, 4]}, "from 0 to 3"),
        (ModelError, {"blocks": [-1]}, "from 0 to 3"),
        (ModelError, {"blocks": []}, "from 0 to 3"),
        (RecipeError, {"width": 0.0}, "share of the teacher's width"),
        (RecipeError, {"width": 1.5}, "share of the teacher's width"),
        (DataError, {"width": 0.5, "activations": []}, "no token"),
    ],
    ids=str,
)
def test_mistakes(error, options, words):
    with pytest.raises(error, match=words):
        shrink(build("llama"), **options)


def test_other_families_lose_blocks_and_not_width():
    config = transformers.OPTConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16,
    )  # fmt: skip
    teacher = transformers.OPTForCausalLM(config).eval()
    assert len(blocks_of(shrink(teacher))) == 2
    with pytest.raises(ModelError, match=", ".join(FAMILIES)):
        shrink(teacher, width=0.5)


def test_lists_of_the_config_are_cut():
    teacher = build("qwen2")
    student = shrink(teacher, blocks=[1, 3])
    assert student.config.layer_types == ["sliding_attention", "full_attention"]
    assert teacher.config.layer_types == WINDOWS
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]
    assert [layer.self_attn.sliding_window for layer in student.model.layers] == [3, None]


def test_a_block_that_would_change_is_refused():
    scaled = build("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="block"):
        shrink(scaled)
    assert len(blocks_of(shrink(scaled, blocks=[0, 1]))) == 2
    alternating = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=4,
            num_heads=2,
            attention_types=[[["global", "local"], 2]],
        )
    )
    with pytest.raises(ModelError):
        shrink(alternating)


def test_models_without_whole_weights_are_refused():
    with torch.device("meta"):
        empty = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    with pytest.raises(ModelError, match="not in memory"):
        shrink(empty)
    with pytest.raises(ModelError, match="transformers model"):
        shrink(nn.Linear(2, 2))
    biased = build("gpt2 untied")
    biased.lm_head.bias = nn.Parameter(torch.zeros(V, dtype=torch.float64))
    with pytest.raises(ModelError, match="lm_head.bias"):  # its config cannot say so: a reload would lose it
        shrink(biased)


def test_half_precision_stays():
    teacher = build("qwen2").to(torch.bfloat16)
    student = shrink(teacher, width=0.5, activations=batches())
    assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}
    assert answer(student).isfinite().all()
