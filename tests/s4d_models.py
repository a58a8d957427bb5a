"""Small state-space models for tests, and what they compute, written out in float64 without an FFT or a table."""

import itertools

import pytest
import torch
from torch import Tensor

from llm_finetuner.models.s4d import GATES, S4DConfig, S4DModel

# complex or real, gate, discretisation, frequencies
KINDS = [*itertools.product((True, False), GATES, ("zoh", "bilinear"), ("lin", "inv"))]
both = pytest.mark.parametrize("kind", [KINDS[0], KINDS[16]], ids=["complex", "real"])
TINY = {"input_dim": 2, "model_dim": 4, "state_dim": 6, "output_dim": 1, "num_layers": 2}


def model_of(kind: tuple = KINDS[0], seed: int = 0, **changes) -> S4DModel:
    """A model of a kind, in float64 and eval mode, with biases and gates that are not nothing."""
    complex_valued, gate, discretization, frequencies = kind
    settings = {**TINY, "complex_valued": complex_valued, "gate": gate, "discretization": discretization}
    torch.manual_seed(seed)
    model = S4DModel(S4DConfig(**{**settings, "frequencies": frequencies, **changes})).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name or "gate" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            if name.endswith("decay"):
                weight.add_(0.5 * torch.randn_like(weight))
    return model


def signal(model: S4DModel, batch: int, length: int, seed: int = 1) -> Tensor:
    """Inputs in the model's precision: [B, L, I]."""
    weight = model.read_in.weight
    dtype = weight.dtype.to_complex() if model.config.complex_valued else weight.dtype
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, model.config.input_dim, dtype=dtype, generator=generator)


def stepped(model: S4DModel, x: Tensor) -> Tensor:
    """The outputs of a sequence by `step`."""
    state, said = model.initial_state(len(x)), []
    for x_t in x.unbind(1):
        y_t, state = model.step(x_t, state)
        said.append(y_t)
    return torch.stack(said, 1)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def loss(y: torch.Tensor) -> torch.Tensor:
    """A number that hangs on every output differently."""
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.real.dtype).reshape(y.shape)
    return (weights * y.abs().square()).sum() + (weights * y.real).sum()


# ---- the reference: x[t] = dA x[t-1] + dB u[t], y[t] = C x[t] + D u[t], one sample after the other


def reference(model: S4DModel, x: Tensor) -> Tensor:
    """What the model is defined to put out."""
    config = model.config
    h = _affine(model.read_in, x)
    shared = None if model.gate is None else _gate(model.gate, h)
    for layer in model.layers:
        y = _system(layer.mixer, h, config)
        parts = (y.real, y.imag) if config.complex_valued else (y,)
        parts = [0.5 * part * (1 + torch.erf(part / 2**0.5)) for part in parts]
        y = _affine(layer.linear, torch.complex(*parts) if config.complex_valued else parts[0])
        gate = shared if layer.gate is None else _gate(layer.gate, h)
        h = h + (y if gate is None else gate * y)
    return _affine(model.read_out, h)


def kernel(mixer, config: S4DConfig, length: int) -> Tensor:
    """Powers of dA, one after the other: [directions, H, L]."""
    dA, dB, C = _matrices(mixer, config)
    power, found = torch.ones_like(dA), []
    for _ in range(length):
        term = (C * dB * power).sum(-1)
        found.append(term if config.complex_valued else 2 * term.real)
        power = power * dA
    return torch.stack(found, -1)


def _matrices(mixer, config: S4DConfig) -> tuple[Tensor, Tensor, Tensor]:
    A = -mixer.decay.exp() + 1j * mixer.frequency
    dt = mixer.log_dt.exp()[:, None]
    if config.discretization == "zoh":
        dA = torch.exp(dt * A)
        dB = (dA - 1) / A
    else:
        dA, dB = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    return dA, dB, mixer.C[..., 0] + 1j * mixer.C[..., 1]


def _system(mixer, u_BLH: Tensor, config: S4DConfig) -> Tensor:
    dA, dB, C = _matrices(mixer, config)
    y = mixer.D * u_BLH
    runs = [(C[0], u_BLH)] + ([(C[1], u_BLH.flip(1).roll(1, 1))] if config.bidirectional else [])
    for number, (gain, u) in enumerate(runs):
        if number:  # the sample itself is not of its future
            u = torch.cat([torch.zeros_like(u[:, :1]), u[:, 1:]], 1)
        state, said = torch.zeros(len(u), *dA.shape, dtype=torch.complex128), []
        for u_t in u.unbind(1):
            state = dA * state + dB * u_t[..., None]
            said.append((gain * state).sum(-1))
        run = torch.stack(said, 1)
        run = run if config.complex_valued else 2 * run.real
        y = y + (run.flip(1) if number else run)
    return y


def _affine(linear, x: Tensor) -> Tensor:
    weight, bias = linear.weight, linear.bias
    if x.is_complex():
        weight, bias = weight[..., 0] + 1j * weight[..., 1], bias[..., 0] + 1j * bias[..., 1]
    return x @ weight.T + bias


def _gate(gate, h: Tensor) -> Tensor:
    size = (h.abs() ** 2 + 1e-6).sqrt()
    angle = torch.stack([h.real / size, h.imag / size], -1).flatten(-2) if h.is_complex() else h / size
    inside = torch.cat([size, angle], -1) @ gate.inside.weight.T + gate.inside.bias
    inside = 0.5 * inside * (1 + torch.erf(inside / 2**0.5))
    return torch.sigmoid(inside @ gate.out.weight.T + gate.out.bias)
