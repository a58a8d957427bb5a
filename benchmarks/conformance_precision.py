"""Rule 5 on the functions that the registry names: inputs of bfloat16, and inputs that only log space survives."""

import conformance_reference as ref
import objective_references as naive
import torch
from conformance_rules import Cell, judged, worst
from torch import Tensor

BFLOAT16 = 2**-8


def precision(case) -> Cell:
    """Inputs of bfloat16, then inputs that overflow or underflow what is not in log space."""
    torch.manual_seed(0)
    options = ref.EXTRA.get(case.name, {})
    told = naive.inputs(case.name, options)
    rounded = [_leaves(x, lambda x: x.detach().bfloat16() if x.is_floating_point() else x) for x in told]
    exact = [_leaves(x, lambda x: x.double() if x.is_floating_point() else x) for x in rounded]
    losses, slopes = [], []
    for inputs, function in ((rounded, case.function), (exact, getattr(naive, case.name))):
        own = _leaves(inputs[0], lambda x: x.clone().requires_grad_(x.is_floating_point()))
        loss = function(own, *inputs[1:], **options)
        losses.append(loss.detach().double())
        slopes.append(
            [
                g.double()
                for g in torch.autograd.grad(loss.sum(), _list(own), allow_unused=True)
                if g is not None
            ]
        )
    error = float((losses[0] - losses[1]).abs().max() / losses[1].abs().max())
    apart = worst((a - b).abs().max() / b.abs().max() for a, b in zip(*slopes, strict=True))
    finite = all(_finite(case, inputs) for inputs in _extremes(case, exact))
    note = f"gradient {apart:.1e}" + ("" if finite else "; not finite at the extremes")
    return judged(error, note, and_also=apart <= BFLOAT16 and finite)


def _leaves(value, change):
    return {k: change(x) for k, x in value.items()} if isinstance(value, dict) else change(value)


def _list(value) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _extremes(case, like: list):
    """Inputs of 1e4; where logits are read also certainty on other tokens, and columns masked on both sides."""
    big = [_leaves(x, lambda x: x.float() * 1e4 if x.is_floating_point() else x) for x in like]
    if case.name == "span_kl":
        big = [torch.tensor([-1e4, -1e-9, -0.0, -1e4]), torch.tensor([-0.0, -1e4, -0.0, -1e4])]
    yield big
    if case.kind in ("answers", "sorted"):
        sure = torch.eye(6, 16) * 1e4
        masked = torch.full((6, 4), -torch.inf)
        yield [torch.cat([sure, masked], 1), torch.cat([sure.flip(0), masked], 1)]


def _finite(case, inputs: list) -> bool:
    own = _leaves(inputs[0], lambda x: x.clone().requires_grad_())
    loss = case.function(own, *inputs[1:], **ref.EXTRA.get(case.name, {}))
    found = [g for g in torch.autograd.grad(loss.sum(), _list(own), allow_unused=True) if g is not None]
    return bool(loss.isfinite().all()) and all(bool(g.isfinite().all()) for g in found)
