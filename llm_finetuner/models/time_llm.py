"""Time-LLM (Jin et al. 2024, arXiv 2310.01728): patches of a series told to a language model in its own vocabulary.

Patches attend to prototypes, which are mixtures of the model's word embeddings; what comes out stands behind a prompt
in the model's input, and a flat layer reads the forecast off the first numbers of the last states. Other than
published code: prompts are of one length and seen through a mask, so that a forecast never depends on its neighbours
in a batch (prompt.py); all of it runs in float32.

Shapes: N windows, L look-back, P patches, T prompt tokens, S prototypes, V vocabulary, D width of the backbone, h
heads, k width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from llm_finetuner.errors import RecipeError
from llm_finetuner.models import prompt
from llm_finetuner.models.forecaster import FlatHead, Forecaster, ForecasterConfig, count_patches, patches
from llm_finetuner.ranges import check_count

Slots = list[tuple[list[int], str]]  # ids and what chooses among them


class TimeLLMConfig(ForecasterConfig):
    """backbone: the configuration of the language model. slots: the prompt. folded: prototypes are constants (fold.py).

    description: what the data are. prototypes: S. patch_width: numbers a patch is embedded in. heads, head_width: of
    the attention to prototypes. read: numbers of each last state that the forecast is read off.
    """

    model_type = "time_llm"

    def __init__(
        self, backbone: dict[str, Any] | None = None, slots: Slots = (), description: str = "", patch_length: int = 16,
        stride: int = 8, patch_width: int = 16, prototypes: int = 100, heads: int = 4, head_width: int = 32,
        read: int = 32, folded: bool = False, **kwargs,
    ):  # fmt: skip
        counts = {"prototypes": prototypes, "heads": heads, "head_width": head_width, "read": read}
        for name, value in {**counts, "patch_width": patch_width}.items():
            check_count(name, value, 1)
        self.backbone, self.slots, self.description = (
            backbone or {},
            [list(slot) for slot in slots],
            description,
        )
        self.patch_length, self.stride, self.patch_width = patch_length, stride, patch_width
        self.prototypes, self.heads, self.head_width, self.read = prototypes, heads, head_width, read
        self.folded = folded
        super().__init__(**kwargs)

    def get_text_config(self, *_args, **_kwargs) -> PretrainedConfig:
        """The language model's: its blocks and its width are those that features are read of."""
        settings = dict(self.backbone)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)


class TimeLLM(Forecaster):
    config_class = TimeLLMConfig
    base_model_prefix = "backbone"  # what adapters go into; the rest is Time-LLM's own, and moves whole

    def __init__(self, config: TimeLLMConfig):
        super().__init__(config)
        inner = config.get_text_config()
        width, count = inner.hidden_size, count_patches(config.lookback, config.patch_length, config.stride)
        self.patches = count
        if config.read > width:
            raise RecipeError(
                f"read={config.read} is more than the backbone's width of {width}", f"at most {width}"
            )
        self.slots = [prompt.Slot(tuple(ids), reads) for ids, reads in config.slots]
        self.backbone = _trunk(inner)
        self.embed = nn.Linear(config.patch_length, config.patch_width)
        self.reprogram = Reprogramming(config, width, inner.vocab_size)
        self.head = FlatHead(count, config.read, config.outputs, config.dropout)
        self.post_init()

    def core(self, z_NL: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words
        x_NPk = self.embed(patches(z_NL, self.config.patch_length, self.config.stride))
        x_NPD = self.reprogram(x_NPk, words.weight)
        told_NTD = words(prompt.token_ids(self.slots, z_NL))
        seen_NTD = torch.cat([told_NTD, x_NPD], 1)
        places_NT = torch.arange(seen_NTD.shape[1], device=seen_NTD.device).expand(len(seen_NTD), -1)
        states_NTD = self.backbone(inputs_embeds=seen_NTD, position_ids=places_NT).last_hidden_state
        hidden_NPD = states_NTD[:, -x_NPD.shape[1] :]
        return self.head(hidden_NPD[..., : self.config.read]), hidden_NPD

    @property
    def words(self) -> nn.Embedding:
        """The backbone's own input layer, of which prompts and prototypes are made."""
        return self.backbone.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed  # what a series is read by


class Reprogramming(nn.Module):
    """Attention of patches to prototypes: [N, P, patch_width] and the word embeddings [V, D] -> [N, P, D]."""

    def __init__(self, config: TimeLLMConfig, width: int, vocabulary: int):
        super().__init__()
        self.heads, inside = config.heads, config.heads * config.head_width
        self.query = nn.Linear(config.patch_width, inside)
        if config.folded:  # what the three below give at every step, once and for all
            self.keys = nn.Parameter(torch.zeros(config.heads, config.prototypes, config.head_width))
            self.values = nn.Parameter(torch.zeros(config.heads, config.prototypes, config.head_width))
        else:
            self.mapping = nn.Linear(vocabulary, config.prototypes)
            self.key, self.value = nn.Linear(width, inside), nn.Linear(width, inside)
        self.folded = config.folded
        self.out = nn.Linear(inside, width)

    def forward(self, patches_NPk: Tensor, words_VD: Tensor) -> Tensor:
        query_NhPk = self.query(patches_NPk).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys_hSk, values_hSk = (self.keys, self.values) if self.folded else self.constants(words_VD)
        count = len(patches_NPk)
        mixed_NhPk = F.scaled_dot_product_attention(
            query_NhPk, keys_hSk.expand(count, -1, -1, -1), values_hSk.expand(count, -1, -1, -1)
        )
        return self.out(mixed_NhPk.transpose(1, 2).flatten(2))

    def constants(self, words_VD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prototypes: [h, S, k] each. They hang on no window."""
        prototypes_SD = self.mapping(words_VD.T).T
        parts = (layer(prototypes_SD).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value))
        keys, values = (part.transpose(0, 1) for part in parts)
        return keys, values


def _trunk(inner: PretrainedConfig) -> PreTrainedModel:
    """The language model without what follows its blocks. Raises RecipeError for one with an encoder and a decoder."""
    if inner.is_encoder_decoder:
        raise RecipeError(
            f"the backbone {inner.model_type} has an encoder and a decoder", "take BERT, GPT-2, Llama or their kin"
        )  # fmt: skip
    model = AutoModel.from_config(inner)
    if "pooler" in dict(model.named_children()):
        model.pooler = None  # nobody reads it
    return model
