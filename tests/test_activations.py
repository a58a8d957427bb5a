"""Activations in one operation: the same function and gradient, and nothing of it in what is saved."""

import copy

import pytest
import torch
from conftest import build_gpt2, build_llama
from torch import nn
from transformers import AutoConfig
from transformers.activations import ACT2FN

from llm_finetuner.models import activations


@pytest.mark.parametrize("kind", ["gelu_new", "gelu_fast"])
def test_the_function_and_its_gradient_stay(kind):
    holder = nn.Sequential(ACT2FN[kind])
    x_N = torch.linspace(-12, 12, 1001, dtype=torch.float64, requires_grad=True)
    wanted_N = 0.5 * x_N * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x_N + 0.044715 * x_N**3)))
    (d_wanted_N,) = torch.autograd.grad(wanted_N.square().sum(), x_N)
    activations.fuse(holder)
    y_N = holder(x_N)
    (d_N,) = torch.autograd.grad(y_N.square().sum(), x_N)
    assert type(holder[0]) is nn.GELU
    torch.testing.assert_close(y_N, wanted_N, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(d_N, d_wanted_N, rtol=1e-12, atol=1e-12)


def test_a_model_answers_the_same_and_saves_the_same(tmp_path):
    model = build_gpt2(64).double().eval()
    before, ids_BT = copy.deepcopy(model), torch.arange(12).view(2, 6)
    activations.fuse(model)
    assert any(type(m) is nn.GELU for m in model.modules())
    torch.testing.assert_close(model(ids_BT).logits, before(ids_BT).logits, rtol=1e-12, atol=1e-14)
    assert model.state_dict().keys() == before.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).activation_function == "gelu_new"


def test_other_activations_are_left_alone():
    model = build_llama(64)
    kinds = [type(m) for m in model.modules()]
    activations.fuse(model)
    assert [type(m) for m in model.modules()] == kinds
