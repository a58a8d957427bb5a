"""What S4D keeps in memory: tables of its weights in eval, and no more of a long sequence than a chunk."""

import copy

import pytest
import torch
from s4d_models import apart, both, loss, model_of, signal, stepped
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """The largest tensor that any operation puts out, outputs of the model aside."""

    def __init__(self, outputs: tuple[int, ...]):
        super().__init__()
        self.numbers, self.outputs = 0, outputs

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view() and tensor.shape != self.outputs:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@both
def test_memory_of_chunks_is_flat_in_length(kind):
    model, seen = model_of(kind).float(), []
    for length in (10_000, 100_000):
        x = signal(model, 1, length)
        with torch.no_grad(), Largest((1, length, 1)) as largest:
            model(x, chunk=1000)
        seen.append(largest.numbers)
    assert seen[0] == seen[1] < 50_000


def test_what_is_made_of_the_weights_is_made_once_in_eval_and_not_in_training():
    model = model_of()
    x = signal(model, 1, 30)
    calls = []
    for layer in model.layers:
        layer.mixer.discretise = lambda mixer=layer.mixer: (
            calls.append(1) or type(mixer).discretise(mixer)
        )  # counted, and done

    def times(run) -> int:
        calls.clear()
        run()
        return len(calls)

    with torch.no_grad():
        assert times(lambda: model(x)) == 2
        assert times(lambda: model(x)) == 0
        assert times(lambda: model(x, chunk=7)) == 2
        assert times(lambda: (model(x, chunk=7), model(x))) == 0
        model.train()
        assert times(lambda: (model(x), model(x))) == 4
    model.eval()
    assert times(lambda: (model(x), model(x))) == 4  # gradients are wanted
    with torch.inference_mode():
        assert times(lambda: (model(x), model(x))) == 2
    assert times(lambda: (model.requires_grad_(False), model(x))) == 0


def _stepped_once(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model(x)).backward()
    optimizer.step()


CHANGES = {
    "optimizer": _stepped_once,
    "load_state_dict": lambda model, x: model.load_state_dict(model_of(seed=5).state_dict()),
    "data": lambda model, x: model.layers[1].mixer.C.data.mul_(2.0),
    "data of dt": lambda model, x: model.layers[1].mixer.log_dt.data.add_(0.5),
    "set_": lambda model, x: setattr(model.layers[0].mixer.D, "data", torch.zeros(4, dtype=torch.float64)),
    "to": lambda model, x: model.to(torch.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_is_never_stale(change):
    model = model_of()
    x = signal(model, 1, 30)
    with torch.no_grad():
        before = (model(x), model(x, chunk=7), stepped(model, x))
    CHANGES[change](model, x)
    model.eval()
    x = x.to(model.read_in.weight.dtype.to_complex())
    fresh = model_of(seed=9).to(x.real.dtype)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        after = (model(x), model(x, chunk=7), stepped(model, x))
        for found, wanted, old in zip(
            after, (fresh(x), fresh(x, chunk=7), stepped(fresh, x)), before, strict=True
        ):
            assert torch.equal(found, wanted)
            assert change == "to" or apart(old, wanted) > 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_that_was_used_is_copied_and_trained_on(mode):
    model = model_of()
    x = signal(model, 1, 20)
    with mode():
        said = model(x).clone()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), said)
    _stepped_once(twin.train(), x)
    assert torch.equal(model(x), said) and apart(twin(x), said) > 1e-6
