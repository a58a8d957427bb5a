"""A smaller state-space model begun with what matters of a larger one's weights: layers, channels, modes; gates folded.

Letters as in s4d.py: B sequences, L samples, I inputs, H channels, M modes; U hidden units of a gate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm_finetuner.errors import RecipeError
from llm_finetuner.models.narrow import best, spread
from llm_finetuner.models.s4d import S4DConfig, S4DLayer, S4DModel
from llm_finetuner.models.s4d_fit import fit_kernels
from llm_finetuner.models.s4d_layers import Gate
from llm_finetuner.models.s4d_mixer import S4DMixer
from llm_finetuner.models.shrink import choose_blocks

EQUAL = (
    "input_dim", "output_dim", "complex_valued", "bidirectional", "delay", "discretization", "activation",
)  # fmt: skip
AT_MOST = ("model_dim", "state_dim", "num_layers")


@torch.no_grad()
def transfer(
    teacher: S4DModel,
    student: S4DModel,
    *,
    layers: Sequence[int] | None = None,
    calibration: Tensor | None = None,
    lags: int | None = None,
) -> None:
    """Overwrite all weights of `student`, of at most the teacher's sizes and with no gates or gates of its kind.

    Layers: evenly spaced ones, the first and the last among them, or these numbers. Channels: those with the largest
    `channel_importance`, the same ones in all layers, for they are one residual stream. Modes: in each channel those
    with the largest `mode_importance`; with `lags`, where there are fewer, modes of the student's own that come nearest
    to the channel's filter over so many (s4d_fit.py). Gates that the student does not have: every layer's output times
    their mean over `calibration`, inputs [B, L, I]; without it times what they are where h = 0. A student of the
    teacher's sizes and gates is the teacher. Raises RecipeError.
    """
    check_fit(teacher.config, student.config)
    depth, count = len(teacher.layers), len(student.layers)
    numbers = choose_blocks(depth, count / depth, "uniform" if layers is None else list(layers))
    if len(numbers) != count:
        raise RecipeError(
            f"layers: {numbers} are {len(numbers)}, and the student has {count}", "give a number for each"
        )
    folds = gates_as_numbers(teacher, calibration) if student.config.gate == "off" else [None] * depth
    kept = best(channel_importance(teacher, numbers, folds), student.config.model_dim)
    _copy_linear(teacher.read_in, student.read_in, rows=kept)
    _copy_linear(teacher.read_out, student.read_out, columns=kept)
    _copy_gate(teacher.gate, student.gate, kept)
    student.set_scales(teacher.input_scale.tolist(), teacher.output_scale.tolist())
    for layer, number in zip(student.layers, numbers, strict=True):
        _copy_layer(teacher.layers[number], layer, kept, folds[number], lags)


def check_fit(teacher: S4DConfig, student: S4DConfig) -> None:
    """Raise RecipeError for a student that cannot hold a part of the teacher."""
    ours, theirs = student.to_dict(), teacher.to_dict()
    for name in EQUAL:
        if ours[name] != theirs[name]:
            raise RecipeError(
                f"a student that begins with its teacher's weights has its {name}: the teacher's is "
                f"{theirs[name]!r}, the student's {ours[name]!r}",
                f"{name}={theirs[name]!r}, or init=seed, which draws the student's weights",
            )
    for name in AT_MOST:
        if ours[name] > theirs[name]:
            raise RecipeError(
                f"a student that begins with its teacher's weights is no larger, and its {name} is {ours[name]} "
                f"against {theirs[name]}",
                f"at most {name}={theirs[name]}, or init=seed, which draws the student's weights",
            )
    if ours["gate"] not in ("off", theirs["gate"]):
        raise RecipeError(
            f"the teacher's gate is {theirs['gate']!r}, which the student's gate {ours['gate']!r} cannot hold",
            "gate=off, which takes gates as numbers, or the teacher's; init=seed draws the student's weights",
        )


def mode_importance(mixer: S4DMixer) -> Tensor:
    """The H2 norm of what each mode adds to the output, the root of its energy in answer to 1, 0, 0, ...: [H, M].

    |C B| / sqrt(1 - |dA|^2) of a complex mode; of a conjugate pair, whose kernel is 2 Re(C B dA^l), the root of
    2 |C B|^2 / (1 - |dA|^2) + 2 Re((C B)^2 / (1 - dA^2)). Both sum geometric series. H2 norm: Antoulas, Approximation
    of Large-Scale Dynamical Systems (SIAM 2005), section 5.5. Of two directions the energies are added.
    """
    w_HM, gain_dHM = mixer.discretise()
    energy_dHM = gain_dHM.abs().square() / -torch.expm1(2 * w_HM.real)
    if not mixer.complex_valued:
        energy_dHM = 2 * energy_dHM + 2 * (gain_dHM.square() / (1 - (2 * w_HM).exp())).real
    return energy_dHM.sum(0).clamp_min(0).sqrt()


def channel_importance(model: S4DModel, layers: Sequence[int], folds: Sequence[Tensor | None]) -> Tensor:
    """What is written to each channel at most, times what is read of it at most, by norms of weights: [H].

    Written by the input and these layers, whose outputs are taken `folds` times; read by these layers, behind the H2
    norm of the channel's own system, and by the output. 0 where nothing is written or read: the channel does nothing.
    """
    written_H, read_H = _rows(model.read_in), _columns(model.read_out)
    for number in layers:
        layer, fold = model.layers[number], folds[number]
        written_H = written_H + _rows(layer.linear) * (1 if fold is None else fold.double().square())
        energy_H = mode_importance(layer.mixer).square().sum(1) + layer.mixer.D.double().square()
        read_H = read_H + energy_H * _columns(layer.linear)
    return (written_H * read_H).sqrt()


def gates_as_numbers(model: S4DModel, calibration: Tensor | None = None) -> list[Tensor | None]:
    """What each layer's gate is in the mean over inputs [B, L, I], or where h = 0: [H] or [1]; None without gates."""
    gates = [model.gate if layer.gate is None else layer.gate for layer in model.layers]
    if model.config.gate == "off":
        return gates
    means: dict[nn.Module, Tensor] = {}

    def note(gate: nn.Module, _inputs: tuple, values: Tensor) -> None:
        means[gate] = values.double().flatten(0, -2).mean(0).to(values.dtype)

    hooks = [gate.register_forward_hook(note) for gate in set(gates)]
    try:
        if calibration is None:
            weight = model.read_in.weight
            dtype = weight.dtype.to_complex() if model.config.complex_valued else weight.dtype
            for gate in set(gates):
                gate(torch.zeros(1, model.config.model_dim, dtype=dtype, device=weight.device))
        else:
            model(calibration)
    finally:
        for hook in hooks:
            hook.remove()
    return [means[gate] for gate in gates]


def _copy_layer(old: S4DLayer, new: S4DLayer, kept: Tensor, fold: Tensor | None, lags: int | None) -> None:
    source, mixer = old.mixer, new.mixer
    mixer.D.copy_(source.D[kept])
    if lags is not None and mixer.decay.shape[1] < source.decay.shape[1]:
        fit_kernels(source, mixer, kept, lags)
    else:
        _copy_modes(source, mixer, kept)
    _copy_linear(old.linear, new.linear, rows=kept, columns=kept)
    if fold is not None:
        factor_H = fold.expand(len(old.mixer.D))[kept]
        for weight in (new.linear.weight, new.linear.bias):
            weight.mul_(factor_H.reshape(-1, *[1] * (weight.ndim - 1)))
    _copy_gate(old.gate, new.gate, kept)


def _copy_modes(source: S4DMixer, mixer: S4DMixer, kept: Tensor) -> None:
    modes_HM = best(mode_importance(source)[kept], mixer.decay.shape[1])
    mixer.log_dt.copy_(source.log_dt[kept])
    for name in ("decay", "frequency"):
        getattr(mixer, name).copy_(getattr(source, name)[kept].gather(1, modes_HM))
    mixer.C.copy_(source.C[:, kept[:, None], modes_HM])


def _copy_linear(
    old: nn.Module, new: nn.Module, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    weight, bias = old.weight, old.bias
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    new.weight.copy_(weight if columns is None else weight[:, columns])
    new.bias.copy_(bias)


def _copy_gate(old: Gate | None, new: Gate | None, kept: Tensor) -> None:
    """The gate of the kept channels, with the hidden units that write most of what they read."""
    if new is None:
        return
    width = old.inside.weight.shape[0]
    angles = old.inside.weight.shape[1] // width - 1  # numbers a channel's angle is
    units = best((_rows(old.inside) * _columns(old.out)).sqrt(), len(kept))
    read = torch.cat([kept, width + spread(kept, angles)])
    _copy_linear(old.inside, new.inside, rows=units, columns=read)
    _copy_linear(old.out, new.out, rows=kept if len(old.out.bias) == width else None, columns=units)


def _rows(linear: nn.Module) -> Tensor:
    """Squared norm of what makes each output, its bias included: [out]."""
    weight, bias = linear.weight.double().flatten(1), linear.bias.double().reshape(len(linear.bias), -1)
    return weight.square().sum(1) + bias.square().sum(1)


def _columns(linear: nn.Module) -> Tensor:
    """Squared norm of what is made of each input: [in]."""
    return linear.weight.double().transpose(0, 1).flatten(1).square().sum(1)
