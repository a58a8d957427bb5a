"""What a run saves of a model that came with an adapter on its tied head: the same outputs, and plain weights."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import build_gpt2, prepared_rows
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from step_reference import recipe_of
from transformers import AutoModelForCausalLM

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Tuning
from llm_finetuner.trainer import fit
from llm_finetuner.tuning.tuned import Tuned

IDS = torch.arange(1, 9)[None]
TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


def config_of(where: str) -> LoraConfig:
    return LoraConfig(r=2, target_modules=[where], init_lora_weights=False, fan_in_fan_out=where == "c_fc")


def logits_of(model):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(IDS).logits


@TIED
@pytest.mark.parametrize("where", ["lm_head", "c_fc"])
def test_full_tuning_saves_an_injected_adapter_folded(tmp_path, where):
    model = build_gpt2(64)
    inject_adapter_in_model(config_of(where), model)
    assert model.lm_head.weight is model.transformer.wte.weight
    recipe = recipe_of(tmp_path, "fine_tuning", {}, learning_rate=1e-2)
    recipe = replace(recipe, teacher=None, tuning=Tuning("full"))
    fit(recipe, Parts(student=model, train=prepared_rows(8, 64), device="cpu"))
    saved = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    assert torch.allclose(logits_of(saved), logits_of(model), atol=1e-5)
    assert saved.config.tie_word_embeddings == (where == "c_fc")
    assert model.config.tie_word_embeddings and not any("lora" in name for name, _ in saved.named_modules())


@TIED
@pytest.mark.parametrize("where", ["lm_head", "c_fc"])
def test_merging_keeps_the_outputs_of_a_tied_head(tmp_path, where):
    wrapped = get_peft_model(build_gpt2(64), config_of(where))
    tuned = Tuned(wrapped.get_base_model(), peft=wrapped)
    want = logits_of(tuned.model)
    tuned.save(tmp_path, whole=True)
    assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(str(tmp_path))), want, atol=1e-5)
    assert torch.allclose(logits_of(tuned.merge()), want, atol=1e-5)
