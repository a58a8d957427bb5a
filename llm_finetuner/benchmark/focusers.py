"""Models of sequences that learn nothing, which a trained one has to beat: zeros, and what focuses radar columns.

Shapes: B sequences, L samples, I inputs, O outputs.
"""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_finetuner.data import sar_files
from llm_finetuner.data.sar import Radar
from llm_finetuner.data.sar_processors import PROCESSORS
from llm_finetuner.data.sar_scenes import Columns, Scene
from llm_finetuner.data.signals import Signals
from llm_finetuner.models.s4d import S4DConfig

FILTERS = tuple(PROCESSORS)
SIMPLE = ("zeros", "unfocused", *FILTERS)  # of radar columns


class Zeros(PreTrainedModel):
    """[B, L, I] -> zeros [B, L, O]: what an error is held against. It has no weights, as the others here."""

    config_class = S4DConfig

    def __init__(self, config: S4DConfig):
        super().__init__(config)
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)  # where it stands
        self.post_init()

    def forward(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.new_zeros(*x_BLI.shape[:2], self.config.output_dim)


class Unfocused(Zeros):
    """The echo itself, times one complex number."""

    def __init__(self, config: S4DConfig, factor: complex):
        super().__init__(config)
        self.factor = factor

    def forward(self, x_BLI: Tensor) -> Tensor:
        return self.factor * x_BLI[..., :1]


class Filter(Zeros):
    """One of sar_processors.PROCESSORS, at the range that the position channel tells."""

    def __init__(self, config: S4DConfig, radar: Radar, scene: Scene, name: str):
        super().__init__(config)
        self.radar, self.scene, self.process = radar, scene, PROCESSORS[name]

    def forward(self, x_BLI: Tensor) -> Tensor:
        inputs = x_BLI.cpu().numpy()
        share = inputs[:, 0, 1].real.astype(float)
        slant_range = self.radar.slant_range * (1 + self.scene.range_spread * (2 * share - 1))
        focused = self.process(self.radar, Columns(inputs, inputs[..., :1], slant_range, slice(None)))
        return torch.from_numpy(focused)[..., None].to(x_BLI)


def simple_models(train: Signals) -> list[tuple[str, nn.Module]]:
    """Zeros; of simulated radar columns also the echo, at its best on the training rows, and matched filters."""
    complex_valued = np.iscomplexobj(train.targets)
    config = S4DConfig(
        input_dim=train.inputs.shape[2], output_dim=max(1, train.targets.shape[2]), model_dim=1, state_dim=2,
        num_layers=1, gate="off", bidirectional=True, complex_valued=complex_valued,
    )  # fmt: skip
    about = train.recording.about
    if about.get("kind") != sar_files.KIND:
        return [("zeros", Zeros(config))]
    radar, scene = sar_files.read_geometry(about, train.recording.name)
    filters = [(name, Filter(config, radar, scene, name)) for name in FILTERS]
    return [("zeros", Zeros(config)), ("unfocused", Unfocused(config, _best_factor(train))), *filters]


def _best_factor(train: Signals) -> complex:
    """Least squares over the rows that have a truth."""
    inner, power = 0j, 0.0
    for number in np.flatnonzero(train.labelled).tolist():
        row = train[number]
        echo, truth = row["inputs"][row["counted"], 0], row["targets"][row["counted"], 0]
        inner, power = inner + np.vdot(echo, truth), power + np.vdot(echo, echo).real
    return complex(inner / power) if power else 0j
