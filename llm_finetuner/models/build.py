"""Models that transformers does not give, built from a name and a few settings. A name is one line of registry.MODELS.

Heavy imports stand inside, so that naming a model costs nothing. What series ask for (look-back, horizon, quantiles,
description) is taken from `data.series`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_finetuner.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import nn

    from llm_finetuner.models import prompt

BACKBONES = (
    "bert",
    "gpt2",
    "llama",
)  # families that are built from sizes; any other name is a folder or of the hub


def repeat_last(*, lookback: int = 96, horizon: int = 96) -> nn.Module:
    """The last value, again and again."""
    return seasonal_naive(lookback=lookback, horizon=horizon, season=1)


def seasonal_naive(*, lookback: int = 96, horizon: int = 96, season: int | None = 24) -> nn.Module:
    """The last season, again and again. Raises RecipeError where no season is named."""
    from llm_finetuner.models.naive import Naive, NaiveConfig

    if season is None:
        raise RecipeError(
            "seasonal-naive repeats a season, and none is given", "--season 24 (data.series.season), in steps"
        )
    return Naive(NaiveConfig(lookback=lookback, horizon=horizon, season=season))


def linear(
    *, lookback: int = 96, horizon: int = 96, quantiles: Sequence[float] = (), closed_form: bool = True
) -> nn.Module:
    """One matrix from look-back to horizon, for all channels; closed_form: least squares on the training rows.

    Without closed_form, and as a student, it is moved by gradient steps.
    """
    from llm_finetuner.models.linear_forecaster import LinearForecaster, LinearForecasterConfig

    return LinearForecaster(
        LinearForecasterConfig(
            lookback=lookback, horizon=horizon, quantiles=quantiles, closed_form=closed_form and not quantiles
        )
    )


def patch(
    *, lookback: int = 96, horizon: int = 96, quantiles: Sequence[float] = (), hidden_size: int = 64,
    num_layers: int = 2, num_heads: int = 4, patch_length: int = 16, stride: int = 8, dropout: float = 0.1,
) -> nn.Module:  # fmt: skip
    """A transformer over patches, without a language model."""
    from llm_finetuner.models.patch_forecaster import PatchForecaster, PatchForecasterConfig

    _check_heads(hidden_size, num_heads)
    config = PatchForecasterConfig(
        hidden_size=hidden_size, num_hidden_layers=num_layers, num_attention_heads=num_heads,
        patch_length=patch_length, stride=stride, dropout=dropout, lookback=lookback, horizon=horizon,
        quantiles=quantiles,
    )  # fmt: skip
    return PatchForecaster(config)


def time_llm(
    weights: bool = True, *, lookback: int = 96, horizon: int = 96, quantiles: Sequence[float] = (),
    description: str = "", backbone: str = "bert", hidden_size: int = 64, num_layers: int | None = None,
    num_heads: int = 4, prototypes: int = 100, heads: int = 4, head_width: int = 32, patch_width: int = 16,
    read: int = 32, patch_length: int = 16, stride: int = 8, dropout: float = 0.1,
) -> nn.Module:  # fmt: skip
    """Time-LLM on a backbone: bert, gpt2 or llama are built with hidden_size, num_layers (3) and num_heads.

    Any other backbone is a folder or hub name whose weights are loaded, and its first num_layers blocks taken (all).
    weights: whether they are, and the model is not only to be measured.
    """
    from torch.nn import init

    from llm_finetuner.models import prompt
    from llm_finetuner.models.forecaster import count_patches
    from llm_finetuner.models.time_llm import TimeLLM, TimeLLMConfig

    if not description.strip():
        raise RecipeError(
            "Time-LLM's prompt says what the data are, and no description was given",
            "one sentence: --description 'hourly load and oil temperature of a transformer' "
            "(data.series.description)",
        )
    settings: dict[str, Any] = {
        "lookback": lookback, "horizon": horizon, "quantiles": quantiles, "description": description,
        "prototypes": prototypes, "heads": heads, "head_width": head_width, "patch_width": patch_width,
        "patch_length": patch_length, "stride": stride, "dropout": dropout,
    }  # fmt: skip
    count = count_patches(lookback, patch_length, stride)
    if backbone not in BACKBONES:
        return _on_pretrained(backbone, num_layers, count, read, settings, weights)
    _check_heads(hidden_size, num_heads)
    slots, tokens = prompt.of_buckets(lookback)
    sizes = (hidden_size, num_layers or 3, num_heads)
    inner = _inner(backbone, *sizes, tokens, len(slots) + count, dropout)
    model = TimeLLM(
        TimeLLMConfig(backbone=inner, slots=_plain(slots), read=min(read, hidden_size), **settings)
    )
    # Words as far apart as pretrained ones: at the families' own spread of .02 all prototypes are one, and patches too
    init.normal_(model.words.weight)
    return model


def _on_pretrained(
    name: str, layers: int | None, count: int, read: int, settings: dict[str, Any], weights: bool
) -> nn.Module:
    """Time-LLM on the first blocks of a model from a folder or the hub. Raises ModelError."""
    from llm_finetuner.models import loading, prompt
    from llm_finetuner.models.time_llm import TimeLLM, TimeLLMConfig

    load = loading.load_pretrained if weights else loading.without_weights
    whole, tokenizer = load(name, auto="AutoModel"), loading.load_tokenizer(name)
    inner, room = whole.config.get_text_config(), loading.positions_of(whole)
    wide = whole.get_input_embeddings().embedding_dim
    if wide != inner.hidden_size:
        raise ModelError(
            f"the words of {name} are {wide} numbers wide and its blocks {inner.hidden_size}: prototypes made of such "
            "words do not fit",
            "take a backbone whose embeddings are as wide as its blocks",
        )
    if not getattr(
        inner, "num_attention_heads", None
    ):  # a state-space model, which no mask hides padding from
        raise ModelError(
            f"{name} ({inner.model_type}) is a model without attention",
            "take BERT, GPT-2, Llama or their kin",
        )
    inner.num_hidden_layers = min(layers or inner.num_hidden_layers, inner.num_hidden_layers)
    if getattr(inner, "layer_types", None):  # of each block
        inner.layer_types = inner.layer_types[: inner.num_hidden_layers]
    slots = prompt.of_text(tokenizer, settings["description"], settings["lookback"], settings["horizon"])
    if room and len(slots) + count > room:
        raise ModelError(
            f"{name} reads {room} positions, and the prompt takes {len(slots)} beside {count} patches",
            "shorten the description or the look-back, or take a larger stride",
        )
    config = TimeLLMConfig(
        backbone=inner.to_dict(), slots=_plain(slots), read=min(read, inner.hidden_size), **settings
    )
    model = TimeLLM(config)
    if weights:
        held = whole.state_dict()
        model.backbone.load_state_dict({key: held[key] for key in model.backbone.state_dict()})
    return model


def _inner(
    family: str, width: int, layers: int, heads: int, tokens: int, positions: int, dropout: float
) -> dict[str, Any]:
    """The configuration of a language model of this family.

    Attention maps are not dropped out: that would take the slow path through attention, at three times the step.
    """
    if family == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": tokens,
            "n_positions": positions, "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": 0.0,
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip
    sizes = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": tokens,
        "intermediate_size": 4 * width, "max_position_embeddings": positions,
    }  # fmt: skip
    if family == "llama":
        return {"model_type": "llama", "num_key_value_heads": heads, **sizes}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    return {"model_type": "bert", "type_vocab_size": 1, "pad_token_id": None, **dropouts, **sizes}


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise RecipeError(
            f"hidden_size={width} cannot be shared among num_heads={heads}", "give a multiple of the heads"
        )


def _plain(slots: list[prompt.Slot]) -> list[tuple[list[int], str]]:
    return [(list(slot.ids), slot.reads) for slot in slots]


def empty(make: Any, shape: dict[str, Any]) -> nn.Module:
    """A model of this builder without storage, to be measured. Raises RecipeError, ModelError."""
    import torch

    with torch.device("meta"):
        return make(*((False,) if make is time_llm else ()), **shape)


def drawn(make: Any, seed: int, shape: dict[str, Any]) -> nn.Module:
    """A model of this builder, its weights drawn from the seed. Raises RecipeError, ModelError."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**shape)


def check_ready(model: nn.Module, name: str) -> None:
    """Raise RecipeError for a model just built that has to be trained before it can forecast."""
    from llm_finetuner.models.linear_forecaster import waits_for_rows
    from llm_finetuner.models.naive import Naive

    if not isinstance(model, Naive) and not waits_for_rows(model):
        raise untrained(name)


def untrained(name: str) -> RecipeError:
    """What is said of a teacher that was just built."""
    return RecipeError(
        f"{name} was built with weights that nobody has trained, so it has nothing to teach",
        "name the folder of a run that trained it, or linear, which is fitted (without quantiles) to the same rows",
    )
