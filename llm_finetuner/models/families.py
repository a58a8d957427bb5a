"""Which axis of which weight is hidden width, heads or MLP, for the model families whose width can be cut.

Letters of an axis: D hidden, Q heads of the queries, K heads of keys and values, A queries, keys and values in one
(GPT-2), M channels of the MLP, P pooled vector (BERT), - kept whole. "DQ" takes D and gives Q.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_finetuner.errors import ModelError


@dataclass(frozen=True)
class Family:
    """The names of one family; those of layers are ends of module names."""

    axes: dict[str, str]  # layer -> what it takes and gives
    values: str  # the layer that makes the values
    attention: str  # the layer that reads the heads' answers
    mlp: str  # the layer that reads the MLP's channels
    inner: str  # what the config calls the MLP's width
    free: bool  # the config sets head_dim and key-value heads: heads x head_dim need not be the hidden width


_LLAMA = Family(
    axes={
        "embed_tokens": "-D",
        "self_attn.q_proj": "DQ",
        "self_attn.k_proj": "DK",
        "self_attn.v_proj": "DK",
        "self_attn.o_proj": "QD",
        "self_attn.q_norm": "--",  # over head_dim
        "self_attn.k_norm": "--",
        "mlp.gate_proj": "DM",
        "mlp.up_proj": "DM",
        "mlp.down_proj": "MD",
        "input_layernorm": "DD",
        "post_attention_layernorm": "DD",
        "norm": "DD",
        "lm_head": "D-",
        "score": "D-",
        "qa_outputs": "D-",
    },
    values="self_attn.v_proj",
    attention="self_attn.o_proj",
    mlp="mlp.down_proj",
    inner="intermediate_size",
    free=True,
)
_GPT2 = Family(
    axes={
        "wte": "-D",
        "wpe": "-D",
        "attn.c_attn": "DA",
        "attn.c_proj": "QD",
        "mlp.c_fc": "DM",
        "mlp.c_proj": "MD",
        "ln_1": "DD",
        "ln_2": "DD",
        "ln_f": "DD",
        "lm_head": "D-",
        "score": "D-",
        "classifier": "D-",
        "qa_outputs": "D-",
    },
    values="attn.c_attn",
    attention="attn.c_proj",
    mlp="mlp.c_proj",
    inner="n_inner",
    free=False,
)
_BERT = Family(
    axes={
        "word_embeddings": "-D",
        "position_embeddings": "-D",
        "token_type_embeddings": "-D",
        "attention.self.query": "DQ",
        "attention.self.key": "DQ",
        "attention.self.value": "DQ",
        "attention.output.dense": "QD",
        "intermediate.dense": "DM",
        "output.dense": "MD",  # behind attention.output.dense, for the first end that fits is taken
        "LayerNorm": "DD",
        "pooler.dense": "DP",
        "classifier": "P-",
        "seq_relationship": "P-",
        "qa_outputs": "D-",
        "transform.dense": "DD",  # gives what is compared with the word embeddings
        "decoder": "D-",
        "predictions": "--",  # the head's bias
    },
    values="attention.self.value",
    attention="attention.output.dense",
    mlp="output.dense",
    inner="intermediate_size",
    free=False,
)
FAMILIES = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "bert": _BERT,
}


def family_of(model: nn.Module) -> Family:
    """The family of a model. Raises ModelError where its width cannot be cut."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"the width of {type(model).__name__} ({kind}) cannot be cut, only that of {', '.join(FAMILIES)}",
            "keep the whole width (width: 1.0) and drop blocks instead",
        )
    return FAMILIES[kind]


def layers_of(model: nn.Module, family: Family) -> dict[str, tuple[str, nn.Module]]:
    """Module name -> (its axes, itself), of all that own weights. Raises ModelError where one is not known."""
    found = {}
    for name, module in model.named_modules():
        if not module._parameters:
            continue
        axes = [axes for end, axes in family.axes.items() if is_at(name, end)]
        if not axes:
            raise ModelError(
                f"{name} of {type(model).__name__} is a layer whose width this version does not know",
                "keep the whole width (width: 1.0) and drop blocks instead",
            )
        found[name] = (axes[0], module)
    return found


def is_at(name: str, end: str) -> bool:
    """Whether a module's name ends with these parts."""
    return f".{name}".endswith(f".{end}")


def is_norm(axes: str, module: nn.Module) -> bool:
    """Whether it normalises over the hidden width."""
    return axes == "DD" and not isinstance(module, (nn.Linear, Conv1D))


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The weight as [in, out], which a Linear holds the other way round."""
    return module.weight.T if isinstance(module, nn.Linear) else module.weight
