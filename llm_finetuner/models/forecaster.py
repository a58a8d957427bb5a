"""What every forecaster is: numbers of a look-back -> numbers of a horizon, the window's level and scale taken out.

Each channel of a series is a window of its own. Shapes: N windows, L look-back, H horizon, Q quantiles, P patches,
D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import check_count, check_levels, check_number

FLAT = 1e-5  # of the largest number of a window: a smaller spread is taken for rounding


# times as pandas writes them, or whole numbers; of a series without times how many rows, and their digest
Until = str | int | dict[str, str | int | list] | None


class ForecasterConfig(PretrainedConfig):
    """lookback, horizon: steps. quantiles: levels in (0, 1), ascending, with .5; empty: one number a step.

    trained_until: the last time of the rows that it was trained on, whose errors are smaller than those to come; of
    several series with times of their own by their names, and so of series without times, whose rows are counted.
    """

    def __init__(
        self, lookback: int = 96, horizon: int = 96, quantiles: Sequence[float] = (), dropout: float = 0.1,
        trained_until: Until = None, **kwargs,
    ):  # fmt: skip
        check_count("lookback", lookback, 2)
        check_count("horizon", horizon, 1)
        check_number("dropout", dropout, 0, 1, closed=True)
        self.lookback, self.horizon, self.dropout = lookback, horizon, dropout
        self.quantiles, self.trained_until = check_levels(quantiles), trained_until
        super().__init__(**kwargs)

    @property
    def outputs(self) -> int:
        """Numbers of a forecast: H, or H x Q."""
        return self.horizon * max(1, len(self.quantiles))


@dataclass
class Forecast(ModelOutput):
    """values [N, H], or [N, H, Q] sorted by level; hidden [N, P, D]: what the last layer reads, None of a line."""

    values: Tensor | None = None
    hidden: Tensor | None = None


class Forecaster(PreTrainedModel):
    """Subclasses give `core`. f(a x + b) = a f(x) + b for a > 0: the core sees a window in its own units only.

    Reversible instance normalisation without learned factors (Kim et al. 2022, openreview cGDAkQo1C0p).
    """

    config: ForecasterConfig
    config_class = ForecasterConfig
    base_model_prefix = ""
    main_input_name = "context"

    def core(self, z_NL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Windows of mean 0 and spread 1 -> (forecasts in the same units [N, H x Q], hidden [N, P, D] or None)."""
        raise NotImplementedError

    def forward(self, context: Tensor) -> Forecast:
        """Forecast windows [N, L]."""
        level_N1, spread_N1 = units(context)
        values, hidden = self.core((context - level_N1) / torch.where(spread_N1 > 0, spread_N1, 1))
        values = level_N1 + spread_N1 * values
        if self.config.quantiles:  # sorted, so that they cannot cross
            values = values.unflatten(1, (self.config.horizon, -1)).sort(-1).values
        return Forecast(values, hidden)

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initial weights; a backbone has drawn its own."""


def later(one: Until, other: Until) -> Until:
    """Until when a model was trained that learned from both; of times that cannot be compared the second."""
    if one is None or other is None:
        return other if one is None else one
    if type(one) is not type(other):
        return other
    if isinstance(one, dict):
        return {name: later(one.get(name), other.get(name)) for name in {**one, **other}}
    return max(one, other)


def units(context_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each window [N, 1]; 0 where it is flat, whose forecast is then its level."""
    level_N1 = context_NL.mean(1, keepdim=True)
    spread_N1 = (context_NL - level_N1).square().mean(1, keepdim=True).sqrt()
    flat_N1 = spread_N1 <= FLAT * context_NL.abs().amax(1, keepdim=True)
    return level_N1, torch.where(flat_N1, 0, spread_N1)


def point(values: Tensor, quantiles: Sequence[float]) -> Tensor:
    """The one number a step that a forecast is judged by: the median of quantiles: [N, H] or [N, H, Q] -> [N, H]."""
    return values[..., list(quantiles).index(0.5)] if quantiles else values


def patches(z_NL: Tensor, length: int, stride: int) -> Tensor:
    """Overlapping patches, the last value repeated for one more (Nie et al. 2023, arXiv 2211.14730): [N, P, length]."""
    padded = torch.cat([z_NL, z_NL[:, -1:].expand(-1, stride)], 1)
    return padded.unfold(1, length, stride)


def count_patches(lookback: int, length: int, stride: int) -> int:
    """P. Raises RecipeError for patches longer than the look-back."""
    check_count("patch_length", length, 1)
    check_count("stride", stride, 1)
    if length > lookback:
        raise RecipeError(
            f"patch_length={length} is longer than lookback={lookback}", "take shorter patches or a longer look-back"
        )  # fmt: skip
    return (lookback - length) // stride + 2


class FlatHead(nn.Module):
    """What patches became, side by side, -> the forecast: [N, P, D] -> [N, H x Q]."""

    def __init__(self, count: int, width: int, outputs: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(count * width, outputs)

    def forward(self, hidden_NPD: Tensor) -> Tensor:
        return self.linear(self.dropout(hidden_NPD.flatten(1)))
