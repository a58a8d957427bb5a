"""Tiny models whose text passes through a state: Mamba, Mamba-2, and a Llama with Mamba-2 for attention."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from llm_finetuner.models.mixers import OLDEST
from llm_finetuner.models.shrink import shrink

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


NEW = Version(transformers.__version__) >= Version(OLDEST)
needs_new = pytest.mark.skipif(not NEW, reason="transformers is too old for a Bamba without attention")
KINDS = {"mamba": mamba, "mamba2": mamba2, **({"swapped": swapped} if NEW else {})}
NAMES = {"mamba": "mamba", "mamba2": "mamba2", "bamba": "swapped"}
