"""A transformer over patches, without a language model: what is left of Time-LLM when that is taken out.

After PatchTST (Nie et al. 2023, arXiv 2211.14730) and the ablations of Tan et al. 2024 (arXiv 2406.16964). Shapes: N
windows, P patches, D width.
"""

import torch
from torch import Tensor, nn

from llm_finetuner.models.forecaster import (
    FlatHead,
    Forecaster,
    ForecasterConfig,
    count_patches,
    patches,
)
from llm_finetuner.ranges import check_count


class PatchForecasterConfig(ForecasterConfig):
    model_type = "patch"

    def __init__(
        self, hidden_size: int = 64, num_hidden_layers: int = 2, num_attention_heads: int = 4,
        patch_length: int = 16, stride: int = 8, **kwargs,
    ):  # fmt: skip
        for name, value in (
            ("num_hidden_layers", num_hidden_layers),
            ("num_attention_heads", num_attention_heads),
        ):
            check_count(name, value, 1)
        check_count("hidden_size", hidden_size, 1)
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.patch_length, self.stride = patch_length, stride
        super().__init__(**kwargs)


class PatchForecaster(Forecaster):
    config_class = PatchForecasterConfig

    def __init__(self, config: PatchForecasterConfig):
        super().__init__(config)
        width = config.hidden_size
        self.patches = count = count_patches(config.lookback, config.patch_length, config.stride)
        self.embed = nn.Linear(config.patch_length, width)
        self.places = nn.Parameter(0.02 * torch.randn(count, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.num_attention_heads,
                4 * width,
                config.dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )  # fmt: skip
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = FlatHead(count, width, config.outputs, config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def core(self, z_NL: Tensor) -> tuple[Tensor, Tensor]:
        x_NPD = self.embed(patches(z_NL, self.config.patch_length, self.config.stride)) + self.places
        for layer in self.layers:
            x_NPD = layer(x_NPD)
        x_NPD = self.norm(x_NPD)
        return self.head(x_NPD), x_NPD
