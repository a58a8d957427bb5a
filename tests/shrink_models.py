"""Tiny models of every family that can be shrunk, in float64, and what the tests ask of them."""

import torch
import transformers
from torch import nn

V, D, DEPTH, TINY = 60, 32, 4, 1e-30
DECODER = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.3, "rms_norm_eps": TINY,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
WINDOW = {"use_sliding_window": True, "sliding_window": 3, "layer_types": WINDOWS}
GPT2 = {
    "vocab_size": V, "n_embd": D, "n_layer": DEPTH, "n_head": 4, "n_positions": 64, "initializer_range": 0.3,
    "layer_norm_epsilon": TINY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 64, "initializer_range": 0.3, "layer_norm_eps": TINY, "bos_token_id": 0,
}  # fmt: skip
KINDS = {  # class, config class, settings; together: tied and untied heads, biases, windows, explicit head_dim
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2 untied": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"tie_word_embeddings": False, "n_inner": 40}),
    "gpt2 classes": ("GPT2ForSequenceClassification", "GPT2Config", GPT2 | {"num_labels": 3}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER | WINDOW | {"tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        DECODER | {"head_dim": 6, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert masked": ("BertForMaskedLM", "BertConfig", BERT),
    "bert classes": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
    "bert tokens": ("BertForTokenClassification", "BertConfig", BERT | {"num_labels": 3}),
}
CAUSAL = [kind for kind, (name, _, _) in KINDS.items() if name.endswith(("CausalLM", "LMHeadModel"))]


def build(kind: str, **settings) -> nn.Module:
    """A float64 model with no weight left at 0 or 1, for those would hide a cut in the wrong place."""
    name, config, usual = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**usual | settings)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def batches(count: int = 2) -> list[dict]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[0, 6:] = 0
    return [
        {"input_ids": torch.randint(2, V, (3, 10), generator=draw), "attention_mask": mask}
        for _ in range(count)
    ]


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    """Logits (or states) of one batch, where there is no padding."""
    batch = batches(1)[0]
    out = model(**batch)[0]
    return out[batch["attention_mask"].bool()] if out.dim() == 3 else out


def sizes(model: nn.Module) -> tuple[int, int, int, int]:
    config = model.config.to_dict()
    inner = config.get("intermediate_size") or config["n_inner"] or 4 * D
    heads = model.config.num_attention_heads
    return model.config.hidden_size, heads, config.get("num_key_value_heads", heads), inner
