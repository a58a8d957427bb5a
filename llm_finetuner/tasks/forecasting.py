"""Forecasting: the next steps of a series from its last ones.

Shapes: B windows of several channels, C channels, N windows of one channel each, L look-back, H horizon, Q quantiles, P patches,
D width. The positions that count are the N; a row of an answer is a whole forecast, H numbers or H x Q. What is read of the
blocks belongs to the N x P patches.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.data import series, windows
from llm_finetuner.data.windows import Windows
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.layer_maps import POOLED
from llm_finetuner.models.anatomy import capture, sort_out
from llm_finetuner.models.forecaster import Forecaster
from llm_finetuner.models.linear_forecaster import LinearForecaster, fit_closed_form
from llm_finetuner.output import Head, Output, Want
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.task import Asked, Task

OF_QUANTILES = ("spectrum", "multi_scale")  # read one number a step


class Forecasting(Task):
    """Models of registry.MODELS: time_llm, patch, linear."""

    pooled = True
    exclusive = False

    def translate(self, scheme: Scheme, model: nn.Module) -> Scheme:
        """The terms as they read numbers: cross-entropy is the error to the truth, forward KL that to the teacher."""
        levels = model.config.quantiles
        return replace(scheme, terms=tuple(_term(term, levels) for term in scheme.terms))


def _term(term: Term, levels: Sequence[float]) -> Term:
    name = {"cross_entropy": "mse", "forward_kl": "output_mse"}.get(term.objective, term.objective)
    if levels and name == "mse":
        return replace(term, objective="pinball", options={"quantiles": list(levels)})
    if levels and name in OF_QUANTILES:
        raise RecipeError(
            f"{name} reads one number a step, and this model gives quantiles",
            "leave it out, or quantiles: []",
        )
    options = {} if name != term.objective else term.options
    return replace(term, objective=name, options=options)
