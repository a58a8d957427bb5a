"""A student of S4D begun with its teacher's weights: what is kept, what is dropped, what stays equal."""

import pytest
import torch
from s4d_models import apart, both, loss, model_of, signal

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models.build import drawn
from llm_finetuner.models.build_s4d import from_teacher, s4d
from llm_finetuner.models.linear_forecaster import LinearForecaster, LinearForecasterConfig
from llm_finetuner.models.s4d import S4DModel
from llm_finetuner.models.s4d_transfer import channel_importance, gates_as_numbers, mode_importance, transfer
from llm_finetuner.named_models import redrawn

gates = pytest.mark.parametrize("gate", ["off", "shared", "layer", "channel"])


def of_gate(kind: tuple, gate: str, **changes) -> S4DModel:
    return model_of((kind[0], gate, *kind[2:]), **changes)


@both
@gates
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_student_of_the_same_size_and_gates_is_the_teacher(kind, gate, bidirectional):
    teacher, student = (of_gate(kind, gate, seed=seed, bidirectional=bidirectional) for seed in (0, 1))
    x = signal(teacher, 2, 40)
    transfer(teacher, student)
    assert torch.equal(student(x), teacher(x))
    held = student.state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in teacher.state_dict().items())


@both
def test_it_shares_no_storage_and_is_trainable(kind):
    teacher, student = model_of(kind), model_of(kind, seed=1)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    transfer(teacher.requires_grad_(False), student)
    loss(student(signal(teacher, 1, 9))).backward()
    with torch.no_grad():
        for weight in student.parameters():
            weight.sub_(weight.grad)
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())


# ---- modes


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_importance_is_the_h2_norm_of_a_mode(kind, bidirectional):
    mixer = model_of(kind, bidirectional=bidirectional).layers[0].mixer
    found = mode_importance(mixer)
    C = mixer.C.detach().clone()
    for mode in range(C.shape[2]):
        with torch.no_grad():
            mixer.C.zero_()[:, :, mode] = C[:, :, mode]
        energy_H = mixer.kernel(4000).abs().square().sum((0, -1))
        assert apart(found[:, mode], energy_H.sqrt()) < 1e-10


@both
def test_modes_that_do_nothing_are_dropped_and_nothing_changes(kind):
    teacher, student = model_of(kind, state_dim=12), model_of(kind, state_dim=8, seed=1)
    with torch.no_grad():
        for number, layer in enumerate(teacher.layers):
            for channel in range(4):  # other ones in every channel
                layer.mixer.C[:, channel, [(channel + number) % 6, (channel + number + 3) % 6]] = 0
    transfer(teacher, student)
    x = signal(teacher, 2, 60)
    assert apart(student(x), teacher(x)) < 1e-12


@both
def test_of_modes_those_with_the_least_energy_are_dropped(kind):
    teacher, student = model_of(kind, state_dim=12), model_of(kind, state_dim=6, seed=1)
    transfer(teacher, student)
    for old, new in zip(teacher.layers, student.layers, strict=True):
        energies_HM = mode_importance(old.mixer).sort(1, descending=True).values[:, :3]
        assert apart(mode_importance(new.mixer).sort(1, descending=True).values, energies_HM) < 1e-12


# ---- channels and layers


@pytest.mark.parametrize("silent", ["never written", "never read"])
@both
def test_channels_that_do_nothing_are_dropped_and_nothing_changes(kind, silent):
    kind = (kind[0], "off", *kind[2:])
    teacher, student = model_of(kind, model_dim=6), model_of(kind, model_dim=4, seed=1)
    with torch.no_grad():
        for module in [teacher.read_in, *(layer.linear for layer in teacher.layers)]:
            if silent == "never written":
                module.weight[[1, 4]], module.bias[[1, 4]] = 0, 0
        for module in [teacher.read_out, *(layer.linear for layer in teacher.layers)]:
            if silent == "never read":
                module.weight[:, [1, 4]] = 0
    importance = channel_importance(teacher, [0, 1], [None, None])
    assert (importance == 0).nonzero().flatten().tolist() == [1, 4]
    transfer(teacher, student)
    x = signal(teacher, 2, 30)
    assert apart(student(x), teacher(x)) < 1e-12


@pytest.mark.parametrize(("layers", "kept"), [(None, [0, 2, 3, 5]), ([0, 1, 3, 4], [0, 1, 3, 4])])
def test_layers_are_evenly_spaced_or_as_given(layers, kept):
    teacher, student = model_of(num_layers=6), model_of(num_layers=4, seed=1)
    transfer(teacher, student, layers=layers)
    for new, number in zip(student.layers, kept, strict=True):
        assert torch.equal(new.linear.weight, teacher.layers[number].linear.weight)


# ---- gates


@both
@gates
def test_constant_gates_are_folded_and_nothing_changes(kind, gate):
    teacher, student = of_gate(kind, gate), of_gate(kind, "off", seed=1)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if "gate.out.weight" in name:
                weight.zero_()  # a gate of its bias alone
    x = signal(teacher, 2, 40)
    for calibration in (None, signal(teacher, 3, 20)):
        transfer(teacher, student, calibration=calibration)
        assert apart(student(x), teacher(x)) < 1e-12


@both
@pytest.mark.parametrize("gate", ["shared", "layer", "channel"])
def test_gates_are_their_mean_over_the_calibration(kind, gate):
    teacher = of_gate(kind, gate)
    x, seen = signal(teacher, 3, 20), []
    shared = teacher.gate(teacher.read_in(x)) if gate == "shared" else None
    h = teacher.read_in(x)
    for layer in teacher.layers:
        seen.append((shared if shared is not None else layer.gate(h)).mean((0, 1)))
        h = layer(h, shared)
    for found, wanted in zip(gates_as_numbers(teacher, x), seen, strict=True):
        assert apart(found, wanted) < 1e-12
    nothing = gates_as_numbers(teacher)
    wanted = (teacher.gate or teacher.layers[1].gate)(torch.zeros_like(h[0, 0]))
    assert apart(nothing[1], wanted) < 1e-12


@both
@pytest.mark.parametrize("gate", ["shared", "layer", "channel"])
def test_gates_of_fewer_channels_read_and_write_the_kept_ones(kind, gate):
    teacher, student = of_gate(kind, gate, model_dim=6), of_gate(kind, gate, model_dim=4, seed=1)
    with torch.no_grad():
        for module in [teacher.read_in, *(layer.linear for layer in teacher.layers)]:
            module.weight[[1, 4]], module.bias[[1, 4]] = 0, 0
        angles = 2 if kind[0] else 1
        quiet = [c for c in (1, 4)] + [6 + angles * c + k for c in (1, 4) for k in range(angles)]
        for net in {teacher.gate, *(layer.gate for layer in teacher.layers)} - {None}:
            net.inside.weight[:, quiet] = 0
            net.out.weight[:, [0, 5]] = 0  # hidden units that nobody reads
    transfer(teacher, student)
    x = signal(teacher, 2, 30)
    assert apart(student(x), teacher(x)) < 1e-12


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_dim": 5}, "is no larger, and its model_dim is 5 against 4"),
        ({"state_dim": 8}, "state_dim is 8 against 6"),
        ({"num_layers": 3}, "num_layers is 3 against 2"),
        ({"delay": 2}, "has its delay: the teacher's is 0, the student's 2"),
        ({"bidirectional": True}, "has its bidirectional"),
        ({"gate": "layer"}, "the teacher's gate is 'channel', which the student's gate 'layer' cannot hold"),
    ],
)
def test_students_that_cannot_hold_a_part_are_refused(changes, message):
    teacher = model_of((True, "channel", "zoh", "lin"))
    with pytest.raises(RecipeError, match=message):
        transfer(teacher, model_of(**{"seed": 1, **changes}))


def test_layers_of_another_number_are_refused():
    with pytest.raises(RecipeError, match=r"layers: \[0\] are 1, and the student has 2"):
        transfer(model_of(num_layers=3), model_of(seed=1), layers=[0])


# ---- as a recipe says it


def test_a_shape_is_filled_with_its_preset_and_the_teacher():
    teacher = s4d(
        preset="teacher", model_dim=6, state_dim=12, num_layers=3, delay=4, activation="linear", input_dim=3
    )
    shape = {"preset": "tiny", "model_dim": 4, "state_dim": 8, "num_layers": 2, "delay": None}
    student = from_teacher(teacher.requires_grad_(False), shape)
    found = {
        name: getattr(student.config, name)
        for name in ("model_dim", "state_dim", "num_layers", "gate", "delay")
    }
    assert found == {"model_dim": 4, "state_dim": 8, "num_layers": 2, "gate": "off", "delay": 4}
    assert student.config.activation == "linear" and student.config.input_dim == 3
    assert all(weight.requires_grad for weight in student.parameters())
    with pytest.raises(RecipeError, match="has its delay"):
        from_teacher(teacher, {**shape, "delay": 1})
    teacher.set_scales([2.0, 3.0, 4.0], None)
    with pytest.raises(RecipeError, match="has its input_dim"):
        from_teacher(teacher, {**shape, "input_dim": 2})


def test_weights_drawn_anew_of_its_configuration_are_as_of_its_shape_alone():
    """The teacher's time steps would leave modes of a smaller student in a part of the band."""
    teacher = s4d(preset="teacher", model_dim=6, state_dim=32, num_layers=3)
    shape = {"preset": "tiny", "model_dim": 4, "state_dim": 8, "num_layers": 2}
    begun, alone = redrawn(from_teacher(teacher, shape), 3), drawn(s4d, 3, shape)
    for (name, got), weight in zip(begun.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(got, weight), name
    given = from_teacher(teacher, {**shape, "dt_min": 0.01, "dt_max": 0.02}).config
    assert (given.dt_min, given.dt_max) == (0.01, 0.02)


@both
def test_scales_are_the_teachers(kind):
    teacher, student = model_of(kind), model_of(kind, seed=1)
    teacher.set_scales([2.0, 0.5], [3.0])
    student.set_scales([7.0, 7.0], [7.0])
    transfer(teacher, student)
    x = signal(teacher, 2, 20)
    assert torch.equal(student(x), teacher(x))
    assert (student.config.input_scale, student.config.output_scale) == ([2.0, 0.5], [3.0])


def test_another_kind_of_teacher_is_refused():
    line = LinearForecaster(LinearForecasterConfig())
    with pytest.raises(ModelError, match="of another, and its teacher is a LinearForecaster"):
        from_teacher(line, {"preset": "tiny"})
