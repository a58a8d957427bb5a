"""S4D against a recurrence written out in float64, and its three ways to run against each other."""

import pytest
import torch
from s4d_models import KINDS, TINY, apart, both, kernel, loss, model_of, reference, signal, stepped
from transformers import AutoModel

from llm_finetuner.models.s4d import GATES, S4DModel, parameter_count

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))


# ---- against the definition


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_are_those_of_the_recurrence(kind, bidirectional):
    model = model_of(kind, bidirectional=bidirectional)
    x = signal(model, 2, 37)
    assert apart(model(x), reference(model, x)) < 1e-10


@kinds
def test_kernels_are_powers_one_after_the_other(kind):
    model = model_of(kind, bidirectional=True)
    for length in (1, 2, 97, 1000):
        found = model.layers[0].mixer.kernel(length)
        assert apart(found, kernel(model.layers[0].mixer, model.config, length)) < 1e-10


@both
def test_kernels_of_full_size_are_exact(kind):
    model = model_of(kind, model_dim=3, state_dim=540, num_layers=1)
    wanted = kernel(model.layers[0].mixer, model.config, 4096)
    assert apart(model.layers[0].mixer.kernel(4096), wanted) < 1e-10
    assert apart(model.float().layers[0].mixer.kernel(4096), wanted) < 5e-6


@both
def test_gradients_are_those_of_the_recurrence(kind):
    model = model_of(kind, bidirectional=True)
    x = signal(model, 2, 23).requires_grad_()
    weights = [x, *model.parameters()]
    found = torch.autograd.grad(loss(model(x)), weights)
    for one, wanted in zip(found, torch.autograd.grad(loss(reference(model, x)), weights), strict=True):
        assert apart(one, wanted) < 1e-10


# ---- three ways to run


@kinds
def test_whole_chunked_and_stepped_are_equal(kind, length=16):
    model = model_of(kind)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        x = signal(model, 2, length)
        with torch.no_grad():
            whole = model(x)
            for chunk in (1, 7, 128, length + 5):
                assert apart(model(x, chunk=chunk), whole) < bound, chunk
            assert apart(stepped(model, x), whole) < bound


@both
def test_whole_chunked_and_stepped_are_equal_over_several_chunks(kind):
    test_whole_chunked_and_stepped_are_equal(kind, 151)


@pytest.mark.slow
@both
def test_long_sequences_are_equal_too(kind):
    model = model_of(kind, state_dim=540, num_layers=1)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        x = signal(model, 1, 4096)
        with torch.no_grad():
            whole = model(x)
            for chunk in (128, 1000, 5000):
                assert apart(model(x, chunk=chunk), whole) < bound, chunk
    assert apart(stepped(model.eval().requires_grad_(False), x), whole) < bound  # where rounding adds up


@kinds
def test_gradients_of_the_three_ways_are_equal(kind):
    model = model_of(kind)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        x = signal(model, 2, 19).requires_grad_()
        weights = [x, *model.parameters()]
        whole = torch.autograd.grad(loss(model(x)), weights)
        for other in (model(x, chunk=7), stepped(model, x)):
            for one, wanted in zip(torch.autograd.grad(loss(other), weights), whole, strict=True):
                assert apart(one, wanted) < bound


@both
def test_steps_go_on_behind_any_state_and_leave_it(kind):
    model = model_of(kind)
    x = signal(model, 2, 12)
    state, kept = model.initial_state(2), None
    for t in range(6):
        _, state = model.step(x[:, t], state)
    kept = [part.clone() for part in state]
    once, _ = model.step(x[:, 6], state)
    again, _ = model.step(x[:, 6], state)
    assert torch.equal(once, again) and all(map(torch.equal, kept, state))


@both
def test_chunks_of_any_length_as_they_come(kind):
    model = model_of(kind)
    x = signal(model, 2, 60)
    for run in (torch.enable_grad, torch.no_grad):
        with run():
            state, said = model.initial_state(2), []
            for part in x.split([1, 17, 30, 5, 7], 1):
                kept = [one.clone() for one in state]
                y, after = model.advance(part, state)
                assert all(map(torch.equal, kept, state))
                said, state = [*said, y], after
            assert apart(torch.cat(said, 1), model(x)) < 1e-10
            y_t, _ = model.step(x[:, 0], state)  # a state is a state
            y, _ = model.advance(x[:, :1], state)
            assert apart(y[:, 0], y_t) < 1e-10


@both
def test_a_sequence_is_the_same_alone_and_in_any_batch(kind):
    model = model_of(kind)
    x = signal(model, 5, 50)
    for way in ({}, {"chunk": 16}):
        assert apart(torch.cat([model(one[None], **way) for one in x]), model(x, **way)) < 1e-12


# ---- what a model is


def test_gates_are_four_different_networks():
    x = signal(model_of(), 2, 40)
    said = [model_of((True, gate, "zoh", "lin")) for gate in GATES]
    counts = [sum(weight.numel() for weight in model.parameters()) for model in said]
    assert len(set(counts)) == 4
    off = said[GATES.index("off")]
    for model in said[:-1]:  # all else equal
        held = {name: weight for name, weight in model.state_dict().items() if name in off.state_dict()}
        off.load_state_dict(held)
        assert apart(model(x), off(x)) > 1e-3


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_parameters_are_counted_by_a_formula(kind, bidirectional):
    for sizes in (
        TINY,
        {**TINY, "model_dim": 7, "state_dim": 10, "num_layers": 3, "input_dim": 3, "output_dim": 2},
    ):
        model = model_of(kind, bidirectional=bidirectional, **sizes)
        assert parameter_count(model.config) == sum(weight.numel() for weight in model.parameters())


@kinds
def test_a_folder_holds_all_of_it(kind, tmp_path):
    model = model_of(kind, delay=3, activation="linear")
    x = signal(model, 1, 20)
    model.save_pretrained(tmp_path)
    for found in (S4DModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(found) is S4DModel and found.config.delay == 3
        assert torch.equal(found.eval()(x), model(x))
