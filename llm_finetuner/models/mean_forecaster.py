"""Several forecasters as one, whose forecast is the mean of theirs. Shapes: N windows, L look-back."""

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from llm_finetuner.models.forecaster import Forecast, Forecaster, ForecasterConfig, later


class MeanForecaster(Forecaster):
    """What an ensemble of teachers says, as one model that can be measured. weights: shares that sum to 1."""

    def __init__(self, members: Sequence[Forecaster], weights: Sequence[float]):
        first, times = members[0].config, [member.config.trained_until for member in members]
        super().__init__(
            ForecasterConfig(
                lookback=first.lookback, horizon=first.horizon, quantiles=first.quantiles,
                trained_until=functools.reduce(later, times),
            )
        )  # fmt: skip
        self.members, self.weights = nn.ModuleList(members), list(weights)

    def forward(self, context: Tensor) -> Forecast:
        """[N, L] -> the mean of values; no hidden states."""
        said = [member(context).values for member in self.members]
        return Forecast(sum(w * values for w, values in zip(self.weights, said, strict=True)), None)

    def get_input_embeddings(self) -> nn.Module:
        return self.members[0].get_input_embeddings()
