"""Activations in one operation: the same function and gradient, and nothing of it in what is saved."""

import pytest
import torch
from conftest import build_gpt2, build_llama
from torch import nn
from transformers.activations import ACT2FN

from llm_finetuner.models import activations


@pytest.mark.parametrize("kind", ["gelu_new", "gelu_fast"])
def test_the_function_and_its_gradient_stay(kind):
    model = build_gpt2(64)
    act = model.transformer.h[0].mlp.act = ACT2FN[kind]
    x_N = torch.linspace(-12, 12, 1001, dtype=torch.float64, requires_grad=True)
    wanted_N = 0.5 * x_N * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x_N + 0.044715 * x_N**3)))
    (d_wanted_N,) = torch.autograd.grad(wanted_N.square().sum(), x_N)
    with activations.Fused(model):
        assert type(model.transformer.h[0].mlp.act) is nn.GELU
        y_N = model.transformer.h[0].mlp.act(x_N)
    (d_N,) = torch.autograd.grad(y_N.square().sum(), x_N)
    torch.testing.assert_close(y_N, wanted_N, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(d_N, d_wanted_N, rtol=1e-12, atol=1e-12)
    assert model.transformer.h[0].mlp.act is act


def test_a_model_answers_the_same_inside_and_is_itself_outside_also_after_an_error():
    model, ids_BT = build_gpt2(64).double().eval(), torch.arange(12).view(2, 6)
    before, kinds = model(ids_BT).logits, [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), activations.Fused(model):
        torch.testing.assert_close(model(ids_BT).logits, before, rtol=1e-12, atol=1e-14)
        raise RuntimeError("stop")
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(ids_BT).logits, before)


def test_models_without_it_or_with_blocks_computed_twice_are_left_alone():
    twice = build_gpt2(64)
    twice.gradient_checkpointing_enable()
    assert activations.Fused(build_llama(64), twice).places == []
