"""S4D: a stack of diagonal state-space models with selectivity gates, complex in and complex out, or real.

Three equal ways to run it: a whole sequence; the same in chunks (`chunk=`, and `advance` as they come); a sample at a
time (`step`). The last two carry the state, and need memory for a chunk however long the sequence is.

The residual stream h of each layer becomes h + gate(h) * mix(activation(S4D(h))). A gate is a small network of |h| and
the angle of h, which enters as its cosine and sine. Widths, kernels and layers as in Gu et al. 2022 (arXiv 2206.11893)
and the networks for synthetic-aperture radar that were built on it.

Shapes: B sequences, L samples, I inputs, H width, O outputs, M modes. h is complex in a complex model.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.s4d_layers import ComplexLinear, Gate, parts, whole
from llm_finetuner.models.s4d_mixer import FREQUENCIES, S4DMixer, System
from llm_finetuner.ranges import check_count, check_number

GATES = ("channel", "layer", "shared", "off")
DISCRETIZATIONS = ("zoh", "bilinear")

State = list[Tensor]  # of each layer [B, H, M]


class S4DConfig(PretrainedConfig):
    """Sizes and kinds. Raises RecipeError.

    input_dim, model_dim, output_dim: channels, complex ones in a complex model. state_dim: real numbers of state a
    channel and layer. gate: one number for every channel, for every layer, for all layers, or off.
    bidirectional: every sample sees the whole sequence, which then cannot come in chunks.
    delay: a statement, not a computation: output t answers position t - delay, so that a model that looks back sees
    `delay` samples behind the position it answers. Training and scoring must read it so.
    dt_min, dt_max: time steps of the channels, log-uniform. Left out, dt_max is 2 / state_dim for "lin", where the
    fastest mode turns half a circle a sample, .1 for "inv", and dt_min a quarter of it.
    activation: a name of transformers; "linear" is none. It acts on real and imaginary parts.
    input_scale, output_scale: what 1 inside the model is in the units of the data, of each channel; training sets them
    (`S4DModel.set_scales`), and the model's weights hold them too.
    """

    model_type = "s4d"
    attribute_map = {"hidden_size": "model_dim", "num_hidden_layers": "num_layers"}

    def __init__(
        self, input_dim: int = 2, model_dim: int = 64, state_dim: int = 540, output_dim: int = 1,
        num_layers: int = 6, complex_valued: bool = True, gate: str = "channel", bidirectional: bool = False,
        delay: int = 0, frequencies: str = "lin", discretization: str = "zoh", dt_min: float | None = None,
        dt_max: float | None = None, activation: str = "gelu", input_scale: list[float] | None = None,
        output_scale: list[float] | None = None, **kwargs,
    ):  # fmt: skip
        counts = {
            "input_dim": input_dim,
            "model_dim": model_dim,
            "output_dim": output_dim,
            "num_layers": num_layers,
        }
        for name, value in counts.items():
            check_count(name, value, 1)
        check_count("state_dim", state_dim, 2)
        check_count("delay", delay, 0)
        gate = "off" if gate is False else gate  # as YAML reads it
        for name, value in (("complex_valued", complex_valued), ("bidirectional", bidirectional)):
            if not isinstance(value, bool):
                raise RecipeError(f"{name} must be true or false, got {value!r}")
        for name, value, known in (
            ("gate", gate, GATES), ("frequencies", frequencies, FREQUENCIES),
            ("discretization", discretization, DISCRETIZATIONS), ("activation", activation, ACT2FN),
        ):  # fmt: skip
            if not isinstance(value, str) or value not in known:
                raise RecipeError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if state_dim % 2:
            raise RecipeError(
                f"state_dim must be even, got {state_dim}", "a mode is a complex number, which counts as two"
            )
        if bidirectional and delay:
            raise RecipeError(
                f"delay={delay} of a bidirectional model has no use: it sees the future already", "choose one"
            )
        _check_scale("input_scale", input_scale, input_dim)
        _check_scale("output_scale", output_scale, output_dim)
        nyquist = 2 / state_dim
        dt_max = (nyquist if frequencies == "lin" else 0.1) if dt_max is None else dt_max
        check_number("dt_max", dt_max, 0)
        dt_min = dt_max / 4 if dt_min is None else dt_min
        check_number("dt_min", dt_min, 0)
        check_number("dt_max", dt_max, dt_min, closed=True)
        if frequencies == "lin" and discretization == "zoh" and dt_max > nyquist * (1 + 1e-9):
            warnings.warn(
                f"dt_max={dt_max:g} is above 2 / state_dim = {nyquist:.3g}: the fastest modes of S4D-Lin turn more "
                "than half a circle a sample and cannot be told from slower ones; leave dt_max out",
                stacklevel=2,
            )
        self.input_dim, self.model_dim, self.output_dim = input_dim, model_dim, output_dim
        self.state_dim, self.num_layers, self.complex_valued = state_dim, num_layers, complex_valued
        self.gate, self.bidirectional, self.delay = gate, bidirectional, delay
        self.frequencies, self.discretization, self.activation = frequencies, discretization, activation
        self.dt_min, self.dt_max = dt_min, dt_max
        self.input_scale, self.output_scale = input_scale, output_scale
        super().__init__(**kwargs)


def _check_scale(name: str, scale: Any, channels: int) -> None:
    """Raise RecipeError unless this is a number above 0 of each channel, or None."""
    if scale is not None and not (isinstance(scale, list | tuple) and len(scale) == channels):
        raise RecipeError(f"{name} must be a list of {channels} numbers, one of each channel; got {scale!r}")
    for value in scale or ():
        check_number(name, value, 0)


def parameter_count(config: S4DConfig) -> int:
    """Real numbers among the weights of a model: a closed formula."""
    H, c = config.model_dim, 1 + config.complex_valued
    features = (1 + c) * H
    inside = features * H + H
    gate = {
        "off": 0, "shared": inside + H + 1, "layer": config.num_layers * (inside + H + 1),
        "channel": config.num_layers * (inside + H * H + H),
    }[config.gate]  # fmt: skip
    modes = H * config.state_dim // 2
    mixer = 2 * modes + 2 * (1 + config.bidirectional) * modes + 2 * H
    ends = c * H * (config.input_dim + 1) + c * config.output_dim * (H + 1)
    return ends + config.num_layers * (mixer + c * H * (H + 1)) + gate


class S4DModel(PreTrainedModel):
    """[B, L, I] -> [B, L, O]. Hidden states of the blocks are what hooks on `layers` see: [B, L, H]."""

    config: S4DConfig
    config_class = S4DConfig
    base_model_prefix = ""
    main_input_name = "x"

    def __init__(self, config: S4DConfig):
        super().__init__(config)
        linear = ComplexLinear if config.complex_valued else nn.Linear
        self.read_in = linear(config.input_dim, config.model_dim)
        self.gate = Gate(config.model_dim, 1, config.complex_valued) if config.gate == "shared" else None
        self.layers = nn.ModuleList(S4DLayer(config) for _ in range(config.num_layers))
        self.read_out = linear(config.model_dim, config.output_dim)
        self.register_buffer("input_scale", torch.ones(config.input_dim))
        self.register_buffer("output_scale", torch.ones(config.output_dim))
        self._fill_scales()
        self.post_init()

    def forward(self, x: Tensor, chunk: int | None = None) -> Tensor:
        """The outputs of a whole sequence; `chunk`: that many samples at a time, with the state carried.

        Raises DataError, RecipeError; ModelError for chunks of a bidirectional model.
        """
        self._check(x, 3)
        with torch.autocast(x.device.type, enabled=False):
            if chunk is None:
                _check_finite(x)
                h_BLH, gate = self._begin(x)
                for layer in self.layers:
                    h_BLH = layer(h_BLH, gate)
                return self._end(h_BLH)
            check_count("chunk", chunk, 1)
            state, answers = self.initial_state(len(x)), []
            systems = self._systems(min(chunk, x.shape[1]), len(x))
            for number, part_BLI in enumerate(x.split(chunk, 1)):
                _check_finite(part_BLI, number * chunk)
                y, state = self._advance(part_BLI, state, systems)
                answers.append(y)
            return torch.cat(answers, 1)

    def initial_state(self, batch: int) -> State:
        """What `step` begins with. Raises ModelError for a bidirectional model."""
        self._check_carries()
        check_count("batch", batch, 1)
        return [layer.mixer.initial_state(batch) for layer in self.layers]

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next samples [B, L, I] behind `state`: (y [B, L, O], the next state). As many steps, and far faster.

        The state given stays as it is. Raises DataError, ModelError.
        """
        self._check(x, 3)
        _check_finite(x)
        self._check_state(state, len(x))
        with torch.autocast(x.device.type, enabled=False):
            return self._advance(x, state, self._systems(x.shape[1], len(x)))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The next sample [B, I] behind `state`: (y [B, O], the next state). The state given stays as it is.

        Raises DataError, ModelError.
        """
        self._check(x_t, 2)
        _check_finite(x_t)
        self._check_state(state, len(x_t))
        with torch.autocast(x_t.device.type, enabled=False):
            h_BH, gate = self._begin(x_t)
            behind = []
            for layer, before in zip(self.layers, state, strict=True):
                h_BH, after = layer.step(h_BH, gate, before)
                behind.append(after)
            return self._end(h_BH), behind

    def set_scales(self, inputs: list[float] | None, outputs: list[float] | None) -> None:
        """What 1 inside the model is in the units of the data, of each channel; None: as it was."""
        self.config.input_scale = inputs or self.config.input_scale
        self.config.output_scale = outputs or self.config.output_scale
        self._fill_scales()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args, **kwargs):
        """As of any module. The scales among the weights become those of the configuration; all 1 leave it unset."""
        told = super().load_state_dict(state_dict, *args, **kwargs)
        for name in ("input_scale", "output_scale"):
            scale, unset = getattr(self, name), getattr(self.config, name) is None
            if not (unset and torch.equal(scale, torch.ones_like(scale))):
                setattr(self.config, name, scale.tolist())
        return told

    def get_input_embeddings(self) -> nn.Module:
        return self.read_in

    def _systems(self, length: int, batch: int) -> list[System]:
        return [layer.mixer.system(length, batch) for layer in self.layers]

    def _advance(self, x_BLI: Tensor, state: State, systems: list[System]) -> tuple[Tensor, State]:
        h_BLH, gate = self._begin(x_BLI)
        behind = []
        for layer, before, system in zip(self.layers, state, systems, strict=True):
            h_BLH, after = layer.advance(h_BLH, gate, before, system)
            behind.append(after)
        return self._end(h_BLH), behind

    def _begin(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.read_in(x / self.input_scale)
        return h, (None if self.gate is None else self.gate(h))

    def _end(self, h: Tensor) -> Tensor:
        return self.read_out(h) * self.output_scale

    @torch.no_grad()
    def _fill_scales(self) -> None:
        for scale, given in (
            (self.input_scale, self.config.input_scale),
            (self.output_scale, self.config.output_scale),
        ):
            scale.copy_(torch.ones_like(scale) if given is None else scale.new_tensor(given))

    def _init_weights(self, module: nn.Module) -> None:
        """Every module has drawn its own; a folder that was written without scales has them in its configuration."""
        if module is self:
            self._fill_scales()

    def _check(self, x: Tensor, axes: int) -> None:
        weights, inputs = self.read_in.weight.dtype, self.config.input_dim
        if weights not in (torch.float32, torch.float64):
            raise ModelError(
                f"S4D runs in float32 or float64, and its weights are {weights}", "model.float()"
            )
        wanted = weights.to_complex() if self.config.complex_valued else weights
        if x.dtype != wanted:
            raise DataError(f"the input is {x.dtype}, and the model reads {wanted}", HINTS[wanted.is_complex])
        if x.ndim != axes or x.shape[-1] != inputs:
            shape = f"[batch, length, {inputs}]" if axes == 3 else f"[batch, {inputs}]"
            raise DataError(f"the input must be {shape}, got {list(x.shape)}")
        if not x.numel():
            raise DataError(
                f"the input is empty: {list(x.shape)}", "give at least one sequence of one sample"
            )

    def _check_carries(self) -> None:
        if self.config.bidirectional:
            raise ModelError(
                "a bidirectional model needs the whole sequence: it has no state to carry from chunk to chunk",
                "run model(x), or train a model with delay=d, whose output t answers position t - d",
            )

    def _check_state(self, state: State, batch: int) -> None:
        self._check_carries()
        dtype = self.read_in.weight.dtype.to_complex()
        wanted = [dtype, batch, self.config.model_dim, self.config.state_dim // 2]
        tensors = isinstance(state, list | tuple) and all(isinstance(part, Tensor) for part in state)
        found = [[part.dtype, *part.shape] for part in state] if tensors else state
        if found != [wanted] * self.config.num_layers:
            raise DataError(
                f"the state must be {self.config.num_layers} tensors of {wanted}, got {found!r:.200}",
                f"state = model.initial_state({batch}), then what each step returns",
            )


HINTS = {
    True: "x.to(torch.complex64) or x.to(torch.complex128); of two real arrays torch.complex(i, q)",
    False: "x.float() or x.double(); a complex signal as its real and imaginary channels, or complex_valued=True",
}


def _check_finite(x: Tensor, begun: int = 0) -> None:
    """Raise DataError for numbers that are none. begun: samples in front of these."""
    finite = torch.isfinite(x)
    if not finite.all():
        sequence, *place = (~finite).nonzero()[0].tolist()
        sample = f"sample {begun + place[0]}, " if len(place) == 2 else ""
        raise DataError(
            f"the input holds NaN or infinity, first in sequence {sequence}, {sample}channel {place[-1]}",
            "one such number would reach all samples behind it: put zeros for lost samples",
        )


class S4DLayer(nn.Module):
    """h -> h + gate * mix(activation(S4D(h))): [B, L, H] -> [B, L, H]. gate: given where all layers share one."""

    def __init__(self, config: S4DConfig):
        super().__init__()
        width, linear = config.model_dim, ComplexLinear if config.complex_valued else nn.Linear
        self.mixer = S4DMixer(
            width, config.state_dim, config.complex_valued, config.bidirectional, config.frequencies,
            config.discretization, config.dt_min, config.dt_max,
        )  # fmt: skip
        self.activation = ACT2FN[config.activation]
        self.linear = linear(width, width)
        outputs = {"channel": width, "layer": 1}.get(config.gate)
        self.gate = Gate(width, outputs, config.complex_valued) if outputs else None

    def forward(self, h: Tensor, gate: Tensor | None = None) -> Tensor:
        return self._add(h, self.mixer(h), gate)

    def advance(self, h: Tensor, gate: Tensor | None, state: Tensor, system: System) -> tuple[Tensor, Tensor]:
        """The next chunk behind `state`."""
        y, state = self.mixer.advance(h, state, system)
        return self._add(h, y, gate), state

    def step(self, h_BH: Tensor, gate: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next sample behind `state`."""
        y_BH, state = self.mixer.step(h_BH, state, self.mixer.system(1, 1))
        return self._add(h_BH, y_BH, gate), state

    def _add(self, h: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        y = self.linear(whole(self.activation(parts(y)), y.is_complex()))
        if self.gate is not None:
            gate = self.gate(h)
        return h + (y if gate is None else whole(parts(y) * gate[..., None], y.is_complex()))


AutoConfig.register(S4DConfig.model_type, S4DConfig, exist_ok=True)
AutoModel.register(S4DConfig, S4DModel, exist_ok=True)
