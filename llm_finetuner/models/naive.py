"""Forecasts that learn nothing: what every other forecaster has to beat. Shapes: N windows, L look-back, H horizon."""

import torch
from torch import Tensor, nn

from llm_finetuner.errors import RecipeError
from llm_finetuner.models.forecaster import Forecast, Forecaster, ForecasterConfig
from llm_finetuner.ranges import check_count


class NaiveConfig(ForecasterConfig):
    """season: steps of what is repeated; 1 repeats the last value. Raises RecipeError for more than the look-back."""

    model_type = "naive"

    def __init__(self, season: int = 1, **kwargs):
        check_count("season", season, 1)
        self.season = season
        super().__init__(**kwargs)
        if season > self.lookback:
            raise RecipeError(
                f"season {season} is longer than look-back {self.lookback}",
                f"--lookback {season} holds a whole one; or another --season (data.series.season), or repeat-last",
            )


class Naive(Forecaster):
    """Repeats the last season of a window. It has no weights."""

    config_class = NaiveConfig

    def __init__(self, config: NaiveConfig):
        super().__init__(config)
        self.nothing = nn.Embedding(0, 1)  # where it stands; it has no weight
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.nothing

    def forward(self, context: Tensor) -> Forecast:
        season = self.config.season
        places_H = torch.arange(self.config.horizon, device=context.device) % season
        return Forecast(context[:, context.shape[1] - season + places_H], None)
