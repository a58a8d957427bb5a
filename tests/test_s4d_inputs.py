"""Settings, inputs and states that S4D is given: they work, or are told of."""

import warnings

import pytest
import torch
import yaml
from s4d_models import apart, both, model_of, reference, signal

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.build_s4d import s4d
from llm_finetuner.models.s4d import S4DConfig, S4DModel


@pytest.mark.parametrize("length", [1, 2, 3, 101])
@both
def test_one_sequence_of_any_length(kind, length):
    model = model_of(kind)
    x = signal(model, 1, length)
    assert model(x).shape == model(x, chunk=4).shape == (1, length, 1)
    assert apart(model(x), reference(model, x)) < 1e-10


BAD = {
    "nan": (lambda x: x * float("nan"), "NaN or infinity, first in sequence 0, sample 0, channel 0"),
    "dtype": (lambda x: x.real, "the input is torch.float64, and the model reads torch.complex128"),
    "precision": (lambda x: x.to(torch.complex64), "the input is torch.complex64"),
    "channels": (lambda x: x[..., :1], r"must be \[batch, length, 2\], got \[2, 8, 1\]"),
    "axes": (lambda x: x[0], r"must be \[batch, length, 2\], got \[8, 2\]"),
    "no sample": (lambda x: x[:, :0], r"the input is empty: \[2, 0, 2\]"),
    "no sequence": (lambda x: x[:0], r"the input is empty: \[0, 8, 2\]"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("way", [{}, {"chunk": 3}])
def test_bad_inputs_are_told_of(bad, way):
    model, (spoil, message) = model_of(), BAD[bad]
    with pytest.raises(DataError, match=message):
        model(spoil(signal(model, 2, 8)), **way)


def test_a_lost_sample_is_named_in_any_chunk():
    model = model_of()
    x = signal(model, 2, 30)
    x[1, 22, 1] = complex(0, float("inf"))
    for way in ({}, {"chunk": 7}):
        with pytest.raises(DataError, match="sequence 1, sample 22, channel 1"):
            model(x, **way)
    with pytest.raises(DataError, match="sequence 1, channel 1"):
        model.step(x[:, 22], model.initial_state(2))


def test_states_that_do_not_fit_are_told_of():
    model = model_of()
    x = signal(model, 2, 1)[:, 0]
    for state in (
        model.initial_state(3),
        model.initial_state(2)[:1],
        [s.to(torch.complex64) for s in model.initial_state(2)],
        None,
        [1, 2],
    ):
        for run in (model.step, lambda x, state: model.advance(x[:, None], state)):
            with pytest.raises(DataError, match="the state must be 2 tensors of"):
                run(x, state)


def test_half_precision_and_chunks_of_both_directions_are_refused():
    model = model_of(bidirectional=True)
    x = signal(model, 1, 8)
    state = model_of().initial_state(1)
    for run in (
        lambda: model(x, chunk=4), lambda: model.initial_state(1), lambda: model.advance(x, state),
        lambda: model.step(x[:, 0], state),
    ):  # fmt: skip
        with pytest.raises(ModelError, match="needs the whole sequence"):
            run()
    with pytest.raises(ModelError, match="its weights are torch.bfloat16"):
        model_of().bfloat16()(x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"state_dim": 7}, {"state_dim": 0}, {"gate": "some"}, {"frequencies": "legs"}, {"discretization": "euler"},
        {"activation": "glu?"}, {"num_layers": 0}, {"delay": -1}, {"bidirectional": True, "delay": 2},
        {"dt_min": 0.0}, {"dt_max": 0.1, "dt_min": 0.2}, {"dt_max": float("inf")}, {"dt_max": "long"},
        {"model_dim": 2.5},
        {"complex_valued": "no"}, {"bidirectional": None},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        S4DConfig(**wrong)


def test_autocast_leaves_it_alone():
    model = model_of().float()
    x = signal(model, 1, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    assert torch.equal(found, model(x))


def test_the_default_band_ends_where_half_a_circle_a_sample_does():
    for complex_valued in (True, False):
        config = S4DConfig(complex_valued=complex_valued, num_layers=1, gate="off")
        mixer = S4DModel(config).layers[0].mixer
        turns = mixer.frequency.abs().amax(1) * mixer.log_dt.exp()
        assert 0.2 * torch.pi < turns.max() <= torch.pi


def test_time_steps_that_alias_are_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S4DConfig(), S4DConfig(dt_min=1e-3, dt_max=2 / 540), S4DConfig(frequencies="inv", dt_max=0.1)
    with pytest.warns(UserWarning, match=r"dt_max=0.1 is above 2 / state_dim = 0.0037.*half a circle"):
        S4DConfig(dt_min=1e-3, dt_max=0.1)


def test_gates_are_off_in_yaml_too():
    found = yaml.safe_load("{gate: off}")
    assert S4DConfig(**found).gate == "off"
    assert s4d(preset="teacher", model_dim=4, state_dim=6, num_layers=1, **found).layers[0].gate is None
