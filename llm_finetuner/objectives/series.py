"""Losses of forecasts: to what came, and to what a teacher said would come.

Shapes: n windows, H steps, Q quantiles, F frequencies. A forecast is [n, H], or [n, H x Q] where a step has
quantiles, those of a step side by side. Squared units of the scaled data, or units for pinball losses, averaged over
the steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_finetuner.errors import RecipeError
from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_count, check_levels


def output_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two forecasts: [n, V], [n, V] -> [n].

    alpha MSE(student, truth) + beta MSE(student, teacher) is (alpha + beta) times the squared error to the mixture
    (alpha truth + beta teacher) / (alpha + beta), plus what no student changes: only beta / alpha matters. Of sorted
    quantiles it is the squared 2-Wasserstein distance of the two distributions, read at their levels.
    """
    return (at_least_float32(student) - at_least_float32(teacher)).square().mean(-1)


def pinball(student: Tensor, targets: Tensor, *, quantiles: Sequence[float] = (0.5,)) -> Tensor:
    """Mean pinball loss of the quantiles of each step (Koenker and Bassett 1978): [n, H x Q], [n, H] -> [n].

    Its minimum is the quantile of each level; twice its mean over many levels is the CRPS. Raises RecipeError where
    the numbers of a step are not one for each level.
    """
    levels = check_levels(quantiles)
    if not levels or student.shape[1] != targets.shape[1] * len(levels):
        raise RecipeError(
            f"{student.shape[1]} numbers of a forecast do not hold quantiles {levels} of {targets.shape[1]} steps",
            "build the model with these quantiles: --quantiles 0.1 0.5 0.9 (series.quantiles)",
        )
    said_nHQ = at_least_float32(student).unflatten(1, (-1, len(levels)))
    gap_nHQ, levels_Q = targets.to(said_nHQ.dtype)[..., None] - said_nHQ, said_nHQ.new_tensor(levels)
    return torch.maximum(levels_Q * gap_nHQ, (levels_Q - 1) * gap_nHQ).mean((1, 2))


def spectrum(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats of how the energy is shared among frequencies: [n, H], [n, H] -> [n].

    After TimeDistill (Ni et al. 2025, arXiv 2502.15016); amplitudes over their mean stand for logits there, as here.
    The level, frequency 0, is left out.
    """
    told_nF, said_nF = (_amplitudes(x).log_softmax(-1) for x in (teacher, student))
    return (told_nF.exp() * (told_nF - said_nF)).sum(-1)


def multi_scale(student: Tensor, teacher: Tensor, *, scales: int = 3) -> Tensor:
    """Mean squared difference of two forecasts averaged over 2, 4, ... 2^scales steps: [n, H], [n, H] -> [n].

    After TimeDistill (arXiv 2502.15016). A last run that is shorter is averaged over what there is.
    """
    check_count("scales", scales, 1)
    gap_nH = at_least_float32(student) - at_least_float32(teacher)
    found = []
    for scale in range(1, scales + 1):
        pooled = torch.nn.functional.avg_pool1d(gap_nH[:, None], 2**scale, ceil_mode=True)
        found.append(pooled.square().mean((1, 2)))
    return torch.stack(found).mean(0)


def _amplitudes(forecast_nH: Tensor) -> Tensor:
    if not len(forecast_nH):  # some FFT libraries refuse an empty batch
        return at_least_float32(forecast_nH)[:, 1 : forecast_nH.shape[1] // 2 + 1]
    found_nF = torch.fft.rfft(at_least_float32(forecast_nH)).abs()[:, 1:]
    return found_nF / found_nF.mean(-1, keepdim=True).clamp(min=1e-12)
