"""A line: one matrix from the look-back to the horizon, the same for all channels.

It is the comparator of every other forecaster: fitted in closed form in about a second it is as good as published
transformers on much-used data (Toner and Darlow 2024, arXiv 2403.14587). Shapes: n windows, N of them at once, L
look-back, H horizon.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models.forecaster import Forecaster, ForecasterConfig

RIDGE = 1e-2  # of the mean variance of the look-back


class LinearForecasterConfig(ForecasterConfig):
    model_type = "linear"

    def __init__(self, closed_form: bool = False, **kwargs):
        """closed_form: to be fitted by least squares before it is first used."""
        self.closed_form = closed_form
        super().__init__(**kwargs)


class LinearForecaster(Forecaster):
    """`fit_closed_form` sets the matrix; training moves it like any weights."""

    config_class = LinearForecasterConfig

    def __init__(self, config: LinearForecasterConfig):
        super().__init__(config)
        self.linear = nn.Linear(config.lookback, config.outputs, bias=bool(config.quantiles))
        nn.init.zeros_(self.linear.weight)  # the forecast begins as the window's mean
        self.post_init()

    def core(self, z_NL: Tensor) -> tuple[Tensor, None]:
        return self.linear(z_NL), None

    def get_input_embeddings(self) -> nn.Module:
        return self.linear


def waits_for_rows(model: nn.Module | None) -> bool:
    """Whether a line is still to be fitted in closed form."""
    return _closed(model) and not model.linear.weight.any()


@torch.no_grad()
def forget(model: LinearForecaster) -> None:
    """Have it fitted anew, to other rows."""
    model.linear.weight.zero_()


def is_fitted(model: nn.Module) -> bool:
    """Whether a line was fitted in closed form."""
    return _closed(model) and bool(model.linear.weight.any())


def _closed(model: nn.Module | None) -> bool:
    return isinstance(model, LinearForecaster) and model.config.closed_form


@torch.no_grad()
def fit_closed_form(
    model: LinearForecaster, parts: Iterable[tuple[np.ndarray, np.ndarray]], ridge: float = RIDGE
) -> None:
    """Least squares with a ridge, in float64, of windows less their mean: parts give ([n, L], [n, H]) in turn.

    Raises RecipeError for a model of quantiles, DataError where there is no window.
    """
    if model.config.quantiles:
        raise RecipeError(
            "the closed form gives one number a step", "quantiles: [], or train the line by gradient steps"
        )
    look, ahead = model.config.lookback, model.config.horizon
    xx_LL, xy_LH, count = np.zeros((look, look)), np.zeros((look, ahead)), 0
    for x_nL, y_nH in parts:
        level_n1 = x_nL.mean(1, keepdims=True, dtype=np.float64)
        x_nL, y_nH = x_nL - level_n1, y_nH - level_n1
        xx_LL += x_nL.T @ x_nL
        xy_LH += x_nL.T @ y_nH
        count += len(x_nL)
    if not count:
        raise DataError(
            "no window to fit a line to", "give a longer series or a shorter look-back and horizon"
        )
    variance = max(float(np.trace(xx_LL)) / look, np.finfo(np.float64).tiny)
    weight_LH = np.linalg.solve(xx_LL + ridge * variance * np.eye(look), xy_LH)
    model.linear.weight.copy_(torch.from_numpy(weight_LH.T))
