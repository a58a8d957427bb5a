"""Models that transformers does not give, built from a name and a few settings. A name is one line of registry.MODELS.

A builder takes what the series ask for (`Need`) and, after *, the settings that a recipe gives as `student.shape`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models import loading, prompt
from llm_finetuner.models.forecaster import count_patches
from llm_finetuner.models.linear_forecaster import LinearForecaster, LinearForecasterConfig
from llm_finetuner.models.patch_forecaster import PatchForecaster, PatchForecasterConfig
from llm_finetuner.models.time_llm import TimeLLM, TimeLLMConfig

BACKBONES = (
    "bert",
    "gpt2",
    "llama",
)  # families that are built from sizes; any other name is a folder or of the hub


@dataclass(frozen=True)
class Need:
    """What a forecaster is built for."""

    lookback: int
    horizon: int
    description: str = ""
    quantiles: list[float] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {"lookback": self.lookback, "horizon": self.horizon, "quantiles": self.quantiles}


def linear(need: Need) -> nn.Module:
    """One matrix from look-back to horizon, for all channels."""
    return LinearForecaster(LinearForecasterConfig(**need.settings()))


def patch(
    need: Need, *, hidden_size: int = 64, num_layers: int = 2, num_heads: int = 4, patch_length: int = 16,
    stride: int = 8, dropout: float = 0.1,
) -> nn.Module:  # fmt: skip
    """A transformer over patches, without a language model."""
    _check_heads(hidden_size, num_heads)
    config = PatchForecasterConfig(
        hidden_size=hidden_size, num_hidden_layers=num_layers, num_attention_heads=num_heads,
        patch_length=patch_length, stride=stride, dropout=dropout, **need.settings(),
    )  # fmt: skip
    return PatchForecaster(config)


def time_llm(
    need: Need, *, backbone: str = "bert", hidden_size: int = 64, num_layers: int | None = None, num_heads: int = 4,
    prototypes: int = 100, heads: int = 4, head_width: int = 32, patch_width: int = 16, read: int = 32,
    patch_length: int = 16, stride: int = 8, dropout: float = 0.1,
) -> nn.Module:  # fmt: skip
    """Time-LLM on a backbone: bert, gpt2 or llama are built with hidden_size, num_layers (3) and num_heads.

    Any other backbone is a folder or hub name whose weights are loaded, and its first num_layers blocks taken (all).
    """
    if not need.description.strip():
        raise RecipeError(
            "Time-LLM's prompt says what the data are, and no description was given",
            "one sentence: --description 'hourly load and oil temperature of a transformer' (series.description)",
        )
    settings: dict[str, Any] = {
        "description": need.description, "prototypes": prototypes, "heads": heads, "head_width": head_width,
        "patch_width": patch_width, "patch_length": patch_length, "stride": stride, "dropout": dropout,
        **need.settings(),
    }  # fmt: skip
    count = count_patches(need.lookback, patch_length, stride)
    if backbone in BACKBONES:
        _check_heads(hidden_size, num_heads)
        slots, tokens = prompt.of_buckets(need.lookback)
        sizes = (hidden_size, num_layers or 3, num_heads)
        inner = _inner(backbone, *sizes, tokens, len(slots) + count, dropout)
        config = TimeLLMConfig(backbone=inner, slots=_plain(slots), read=min(read, hidden_size), **settings)
        return TimeLLM(config)
    whole, tokenizer = loading.load_pretrained(backbone, auto="AutoModel"), loading.load_tokenizer(backbone)
    inner = whole.config.get_text_config()
    inner.num_hidden_layers = min(num_layers or inner.num_hidden_layers, inner.num_hidden_layers)
    slots, room = (
        prompt.of_text(tokenizer, need.description, need.lookback, need.horizon),
        loading.positions_of(whole),
    )
    if room and len(slots) + count > room:
        raise ModelError(
            f"{backbone} reads {room} positions, and the prompt takes {len(slots)} beside {count} patches",
            "shorten the description or the look-back, or take a larger stride",
        )
    config = TimeLLMConfig(
        backbone=inner.to_dict(), slots=_plain(slots), read=min(read, inner.hidden_size), **settings
    )
    model, weights = TimeLLM(config), whole.state_dict()
    model.backbone.load_state_dict({name: weights[name] for name in model.backbone.state_dict()})
    return model


def _inner(
    family: str, width: int, layers: int, heads: int, tokens: int, positions: int, dropout: float
) -> dict[str, Any]:
    """The configuration of a language model of this family."""
    if family == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": tokens,
            "n_positions": positions, "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout,
        }  # fmt: skip
    sizes = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": tokens,
        "intermediate_size": 4 * width, "max_position_embeddings": positions,
    }  # fmt: skip
    if family == "llama":
        return {"model_type": "llama", "num_key_value_heads": heads, "attention_dropout": dropout, **sizes}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return {"model_type": "bert", "type_vocab_size": 1, "pad_token_id": None, **dropouts, **sizes}


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise RecipeError(
            f"hidden_size={width} cannot be shared among num_heads={heads}", "give a multiple of the heads"
        )


def _plain(slots: list[prompt.Slot]) -> list[tuple[list[int], str]]:
    return [(list(slot.ids), slot.reads) for slot in slots]


def drawn(make, need: Need, seed: int, shape: dict[str, Any]) -> nn.Module:
    """A model of this builder, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(need, **shape)
