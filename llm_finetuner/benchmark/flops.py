"""Floating point operations of a forward pass, counted as it runs.

torch's own counter (torch.utils.flop_counter) knows matrix products, convolutions and attention on a GPU. Added here
are Fourier transforms, attention on a CPU, and what is multiplied and added element by element, as in a scan or in a
filter over channels. A product of complex numbers is 6 operations, a sum 2.

Not counted: functions such as exp, GELU and softmax, comparisons, moves; what libraries of their own compute (numpy,
weights of 4 or 8 bits). What a model makes of its weights once, and keeps, is not in it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def count(forward: Callable[[], Any]) -> int:
    """Operations of forward(), which has run before so that nothing is made for the first time."""
    with torch.no_grad(), Counted() as counter:
        forward()
    return counter.total


class Counted(TorchDispatchMode):
    """Adds up by torch's formulas and ours. torch's FlopCounterMode hooks modules too, which not every output bears."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        said = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in FORMULAS:
            self.total += round(FORMULAS[operation](said, *args))
        elif operation in flop_registry:
            self.total += flop_registry[operation](*args, **(kwargs or {}), out_val=said)
        return said


def _transform(said: Tensor, x: Tensor, dims: list[int], *_: Any) -> float:
    """5 n log2 n for a complex transform of n numbers, half of it where one side is real: customary (FFTW's)."""
    longer = said if said.numel() > x.numel() else x
    n = math.prod(longer.shape[dim] for dim in dims)
    return 5 * longer.numel() * math.log2(n) / 2


def _complex_transform(said: Tensor, x: Tensor, dims: list[int], *_: Any) -> float:
    return 5 * x.numel() * math.log2(math.prod(x.shape[dim] for dim in dims))


def _attention(_said: Any, query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, *_: Any) -> int:
    """Scores and their sums over the values."""
    scores = query_BHTD.shape[:3].numel() * key_BHSD.shape[2]
    return 2 * scores * (query_BHTD.shape[3] + value_BHSD.shape[3])


def _product(said: Tensor, *factors: Any) -> int:
    complex_ones = sum(
        isinstance(x, Tensor) and x.is_complex() or isinstance(x, complex) for x in factors[:2]
    )
    return (1, 2, 6)[complex_ones] * said.numel()


def _sum(said: Tensor, *_: Any) -> int:
    return (1 + said.is_complex()) * said.numel()


def _over(_said: Tensor, x: Tensor, *_: Any) -> int:
    """Sums along axes: of what is read."""
    return (1 + x.is_complex()) * x.numel()


def _product_added(said: Tensor, added: Tensor, *factors: Any) -> int:
    return _product(said, *factors) + _sum(said)


FORMULAS: dict[Any, Callable[..., float]] = {
    aten._fft_c2c: _complex_transform, aten._fft_r2c: _transform, aten._fft_c2r: _transform,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    **dict.fromkeys((aten.mul, aten.mul_, aten.div, aten.div_), _product),
    **dict.fromkeys((aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub), _sum),
    **dict.fromkeys((aten.sum, aten.mean, aten.cumsum), _over),
    **dict.fromkeys((aten.addcmul, aten.addcmul_), _product_added),
}  # fmt: skip
