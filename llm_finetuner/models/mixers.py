"""A copy of a transformer in which state-space mixers stand where attention stood, all else with its own weights.

What is made is a Bamba of transformers without attention: embeddings, norms, MLPs and head are copied as they are. A
Mamba-2 mixer (arXiv 2405.21060) reads, for each head, x, B and C where attention reads values, keys and queries, so it
begins with those projections and with the one behind the heads (Mamba in the Llama, arXiv 2408.15237). Rotary
positions, and the biases and norms of queries and keys, have no place in it and are dropped. What attention does not
have (gate, convolution, step sizes) is drawn as transformers draws it.

Known weakness: transformers 5.23 asks a model's first attention how far a text has been read, so a Bamba without any
cannot go on from a cache in `generate`, though its mixers can. Such a model is marked use_cache false, and reads its
text again for every token. Transformers 5.3 cannot write with it at all.
"""

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import BambaConfig, BambaForCausalLM, PretrainedConfig

from llm_finetuner.errors import ModelError

MAMBA = BambaConfig.model_type
OLDEST = "5.23"  # the version of transformers that this was tried with; 5.3 is too old
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model_type: a norm, attention, a norm and a gated MLP
CHUNK = 64  # tokens of a block of the scan: about the fastest on a CPU; answers do not hang on it
RENAMED = {
    "post_attention_layernorm.": "pre_ff_layernorm.",
    "mlp.": "feed_forward.",
    "model.norm.": "model.final_layernorm.",
}
SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "rms_norm_eps", "initializer_range", "tie_word_embeddings", "max_position_embeddings", "pad_token_id",
    "bos_token_id", "eos_token_id",
)  # fmt: skip


def mamba_config(config: PretrainedConfig) -> BambaConfig:
    """The config of the same model with Mamba-2 mixers, as many and as wide as its heads. Raises ModelError."""
    if Version(transformers.__version__) < Version(OLDEST):
        raise ModelError(
            f"a student with Mamba-2 for attention needs transformers {OLDEST}, and {transformers.__version__} is here",
            "pip install -U transformers",
        )
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"the attention of a {config.model_type} cannot be replaced, only that of {', '.join(FAMILIES)}",
            "make a folder with a Mamba2Config and the teacher's tokenizer, and give it with from_scratch",
        )
    heads, size = config.num_attention_heads, _head_dim(config)
    if heads * size % config.hidden_size:
        raise ModelError(
            f"{heads} heads of {size} are no multiple of the width {config.hidden_size}, which a Mamba-2 mixer needs",
            "choose another teacher, or another keep_width",
        )
    known = config.to_dict()
    return BambaConfig(
        **{name: known[name] for name in SAME}, mlp_bias=known.get("mlp_bias", False), num_key_value_heads=heads,
        mamba_n_heads=heads, mamba_d_head=size, mamba_expand=heads * size // config.hidden_size, mamba_n_groups=heads,
        mamba_d_state=size, mamba_chunk_size=CHUNK, use_cache=False,
    )  # fmt: skip


def with_mamba(model: nn.Module, seed: int) -> BambaForCausalLM:
    """The model with Mamba-2 mixers, new and trainable; what is drawn comes from the seed. Raises ModelError."""
    config = mamba_config(model.config)
    if not type(model).__name__.endswith("ForCausalLM"):
        raise ModelError(
            f"{type(model).__name__} has a head that no model with Mamba-2 mixers has", "task causal_lm only"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = BambaForCausalLM._from_config(config, dtype=model.dtype)
    state = student.state_dict()
    for name, weight in model.state_dict().items():
        if ".self_attn." not in name:
            for theirs, ours in RENAMED.items():
                name = name.replace(theirs, ours)
            state[name] = weight
    student.load_state_dict(state)
    with torch.no_grad():
        for own, block in zip(student.model.layers, model.model.layers, strict=True):
            _begin_as(own.mamba, block.self_attn)
    student.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    student.generation_config.use_cache = False
    student.name_or_path = model.name_or_path
    return student.to(model.device).train(model.training)


def goes_on(model: nn.Module) -> bool:
    """Whether the model can go on from what it has read, and need not read it again for every token."""
    return model.config.model_type != MAMBA or bool(model.config.attn_layer_indices)


def _begin_as(mixer: nn.Module, attention: nn.Module) -> None:
    """Copy what attention projects into what the mixer does; keys and values once for each head that shares them."""
    inner, size = mixer.intermediate_size, mixer.head_dim

    def spread(weight_KD: Tensor) -> Tensor:
        shared = inner // weight_KD.shape[0]
        return weight_KD.unflatten(0, (-1, size)).repeat_interleave(shared, 0).flatten(0, 1)

    parts = (spread(attention.v_proj.weight), spread(attention.k_proj.weight), attention.q_proj.weight)
    mixer.in_proj.weight[inner : 4 * inner] = torch.cat(parts)  # behind the gate: x, B, C
    mixer.out_proj.weight.copy_(attention.o_proj.weight)


def _head_dim(config: PretrainedConfig) -> int:
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
