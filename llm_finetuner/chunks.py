"""The head of a model and the losses of its logits, a chunk of positions at a time: [N, V] never exists.

A chunk's gradient is formed as soon as its logits are there, so the head is not run a second time in the backward pass.

Shapes: N positions that count, n a slice of them, D hidden width, V vocabulary.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

LOGITS_A_CHUNK = 2**24  # numbers: 64 MiB of float32 logits of each model exist at one time

# (logits [n, V], the slice, whether to learn) -> (summed loss, values to be added up). Where it is to learn it turns
# the logits into the gradient of the loss by them, in place.
Score = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor]]


def chunked(rows_ND: Tensor, layer: nn.Module, score: Score) -> tuple[Tensor, Tensor]:
    """Sum `score` over chunks of the layer's logits; the sum is differentiable by the rows and the layer's weights."""
    vocabulary = max((p.shape[0] for p in layer.parameters()), default=rows_ND.shape[1])
    size = max(1, LOGITS_A_CHUNK // vocabulary)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return _Chunked.apply(rows_ND, layer, score, size, *trained)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, layer, score, size, *trained):
        learn = any(ctx.needs_input_grad)
        head = (_Linear if _is_plain(layer, rows_ND) else _Layer)(layer, rows_ND, size, trained, learn)
        total, values = 0.0, 0.0
        # an empty chunk still tells the number of values, and keeps the graph whole on every process
        for start in range(0, max(len(rows_ND), 1), size):
            piece = slice(start, start + size)
            logits_nV = head.forward(rows_ND[piece])
            loss, seen = score(logits_nV, piece, learn)
            total, values = total + loss, values + seen
            if learn:
                head.backward(logits_nV, piece)
        if learn:
            ctx.save_for_backward(head.d_rows, *head.sums)
            ctx.kinds = [rows_ND.dtype, *(p.dtype for p in trained)]
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx, d_total, _):
        # in float32 to the end: a factor rounded to half precision would be wrong for all of them alike
        scaled = (
            d.mul_(d_total.to(d.dtype)).to(kind) for d, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        )
        d_rows, *d_trained = scaled
        return d_rows, None, None, None, *d_trained


@functools.lru_cache(maxsize=1)
def _room(count: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where logits [count, columns] stand, kept from step to step: fresh memory costs as much as what is done in it."""
    with torch.inference_mode(False):  # what is made inside could not be trained on later
        return torch.empty(count, columns, dtype=dtype, device=device)


def _zeros(like: Tensor) -> Tensor:
    """For sums over chunks, which want float32 where the weights have less."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _is_plain(layer: nn.Module, rows_ND: Tensor) -> bool:
    """Whether the layer is one matrix product and nothing else: no adapter, packed weight, hook or autocast."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    weight = layer.weight if type(layer) is nn.Linear else None
    return (
        type(weight) is nn.Parameter
        and not hooks
        and weight.dtype == rows_ND.dtype
        and weight.device == rows_ND.device
        and not torch.is_autocast_enabled(rows_ND.device.type)
    )


class _Linear:
    """One matrix product: logits and gradients go straight to where they stay."""

    def __init__(
        self, layer: nn.Linear, rows_ND: Tensor, size: int, trained: tuple[Tensor, ...], learn: bool
    ):
        self.weight, self.bias, self.trained, self.rows = layer.weight, layer.bias, trained, rows_ND
        self.logits = _room(size, len(layer.weight), rows_ND.dtype, rows_ND.device)
        self.d_rows = _zeros(rows_ND) if learn else None
        self.whole = torch.promote_types(rows_ND.dtype, torch.float32) == rows_ND.dtype
        self.sums = [torch.empty_like(p) if self._is_written(p) else _zeros(p) for p in trained]

    def _is_written(self, parameter: Tensor) -> bool:
        """Whether the first chunk writes its gradient over what stands there."""
        return self.whole and parameter is self.weight

    def forward(self, rows_nD: Tensor) -> Tensor:
        logits_nV = self.logits[: len(rows_nD)]
        if self.bias is None:
            return torch.mm(rows_nD, self.weight.t(), out=logits_nV)
        return torch.addmm(self.bias, rows_nD, self.weight.t(), out=logits_nV)

    def backward(self, d_logits_nV: Tensor, piece: slice) -> None:
        if self.whole:
            torch.mm(d_logits_nV, self.weight, out=self.d_rows[piece])
        else:
            self.d_rows[piece] = d_logits_nV @ self.weight
        for parameter, total in zip(self.trained, self.sums, strict=True):
            if parameter is self.bias:
                total += d_logits_nV.sum(0, dtype=total.dtype)
            elif self._is_written(parameter):
                total.addmm_(d_logits_nV.t(), self.rows[piece], beta=min(1, piece.start))
            else:
                total += d_logits_nV.t() @ self.rows[piece]


class _Layer:
    """Any layer, such as one with an adapter or a 4-bit weight: autograd goes through it, and through nothing else.

    Known weakness: under fp16 autocast the gradient of the logits is rounded to fp16 before the loss is scaled, so the
    smallest of them fade. bf16 has the range.
    """

    def __init__(
        self, layer: nn.Module, rows_ND: Tensor, size: int, trained: tuple[Tensor, ...], learn: bool
    ):
        self.layer, self.trained, self.learn = layer, trained, learn
        self.d_rows = _zeros(rows_ND) if learn else None
        self.sums = [_zeros(p) for p in trained]
        device = rows_ND.device.type
        self.autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,  # a cached cast would tie the graphs of two chunks together
        )

    def forward(self, rows_nD: Tensor) -> Tensor:
        self.inputs = rows_nD.detach().requires_grad_(self.learn)
        with torch.set_grad_enabled(self.learn), self.autocast:
            self.outputs = self.layer(self.inputs)
        return self.outputs.detach()

    def backward(self, d_logits_nV: Tensor, piece: slice) -> None:
        grads = torch.autograd.grad(
            self.outputs, [self.inputs, *self.trained], d_logits_nV, allow_unused=True
        )
        for into, grad in zip([self.d_rows[piece], *self.sums], grads, strict=True):
            if grad is not None:
                into += grad
        del self.inputs, self.outputs
