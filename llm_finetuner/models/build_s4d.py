"""State-space models from a name and a few settings (registry.MODELS), drawn from the seed or begun from a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_finetuner.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llm_finetuner.models.s4d import S4DConfig

# A student's time steps are those of its own size, for whoever draws its weights anew; scales are copied as weights.
OWN = ("dt_min", "dt_max", "input_scale", "output_scale")


def s4d(
    *, preset: str = "standard", input_dim: int | None = None, model_dim: int | None = None,
    state_dim: int | None = None, output_dim: int | None = None, num_layers: int | None = None,
    complex_valued: bool | None = None, gate: str | None = None, bidirectional: bool | None = None,
    delay: int | None = None, frequencies: str | None = None, discretization: str | None = None,
    dt_min: float | None = None, dt_max: float | None = None, activation: str | None = None,
) -> nn.Module:  # fmt: skip
    """S4D. preset: teacher, standard, compressed or tiny. The rest, of S4DConfig, goes before what the preset says."""
    settings = locals()
    from llm_finetuner.models.s4d import S4DConfig, S4DModel

    return S4DModel(S4DConfig(**_given(settings)))


def from_teacher(
    teacher: nn.Module, shape: dict[str, Any], calibration: Tensor | None = None, lags: int | None = None
) -> nn.Module:
    """A student of this shape that begins with what matters of its teacher's weights (s4d_transfer.py).

    shape: options of `s4d`; what neither it nor its preset says is as the teacher has it. calibration: inputs [B, L, I]
    that gates are measured on. lags: how far filters reach that are fitted to fewer modes, at least as many as
    these; by default a quarter more than the student has numbers of state. The student is trainable, on the teacher's
    device. Raises RecipeError, ModelError.
    """
    import torch

    from llm_finetuner.models.s4d import S4DModel
    from llm_finetuner.models.s4d_transfer import transfer

    if not isinstance(teacher, S4DModel):
        raise ModelError(
            f"an S4D begins with the weights of another, and its teacher is a {type(teacher).__name__}",
            "init: seed, or a teacher that is an S4D",
        )
    config = begun_config(teacher.config, shape)
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are overwritten
        student = S4DModel(config).to(teacher.device, teacher.dtype)
    lags = max(lags or config.state_dim * 5 // 4, config.state_dim // 2)  # fewer would not tell modes apart
    transfer(teacher, student, calibration=calibration, lags=lags)
    return student


def begun_config(teacher: S4DConfig, shape: dict[str, Any]) -> S4DConfig:
    """Of a student of this shape that begins with such a teacher. Raises RecipeError where it cannot."""
    from llm_finetuner.models.s4d import S4DConfig
    from llm_finetuner.models.s4d_transfer import check_fit

    inherited = {name: value for name, value in teacher.to_dict().items() if name not in OWN}
    config = S4DConfig.from_dict({**inherited, **_given(shape)})
    check_fit(teacher, config)
    return config


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """What the preset says, and over it what is given."""
    from llm_finetuner.models.s4d_configs import preset

    rest = {name: value for name, value in settings.items() if name != "preset" and value is not None}
    return {**preset(settings["preset"]), **rest}
