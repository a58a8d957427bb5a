"""Sums over positions, a chunk at a time, with the gradients formed on the way: [N, V] never exists.

Shapes: N positions that count, n a slice of them, D hidden width, V vocabulary.
"""

import torch
from torch import Tensor, nn

LOGITS_A_CHUNK = 2**24  # numbers: 64 MiB of float32 logits exist at one time


def chunked(rows_ND: Tensor, layer: nn.Module, evaluate) -> tuple[Tensor, Tensor]:
    """Sum `evaluate(rows, slice) -> (loss, values)` over chunks of positions; the gradients are formed on the way.

    [N, V] never exists, and the head is not run a second time in the backward pass.
    """
    vocabulary = max(p.shape[0] for p in layer.parameters())
    size = max(1, LOGITS_A_CHUNK // vocabulary)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return _Chunked.apply(rows_ND, evaluate, size, *trained)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, evaluate, size, *parameters):
        needed = ctx.needs_input_grad[0] or any(ctx.needs_input_grad[3:])
        d_rows = torch.zeros_like(rows_ND) if needed else None
        d_parameters = [torch.zeros_like(p) for p in parameters] if needed else []
        total, values = 0.0, 0.0
        device_type = rows_ND.device.type
        autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
            cache_enabled=False,  # a cached cast would tie the graphs of two chunks together
        )
        # an empty chunk still tells the number of values, and keeps the graph whole on every process
        for start in range(0, max(len(rows_ND), 1), size):
            piece = slice(start, start + size)
            rows = rows_ND[piece].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed), autocast:
                loss, seen = evaluate(rows, piece)
            total, values = total + loss.detach(), values + seen
            if loss.requires_grad:  # not where only features are learned
                grads = torch.autograd.grad(loss, [rows, *parameters], allow_unused=True)
                for into, grad in zip([d_rows[piece], *d_parameters], grads, strict=True):
                    if grad is not None:
                        into += grad
        if needed:
            ctx.save_for_backward(d_rows, *d_parameters)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx, d_total, _):
        d_rows, *d_parameters = ctx.saved_tensors
        return (
            d_total.to(d_rows.dtype) * d_rows,
            None,
            None,
            *(d_total.to(d.dtype) * d for d in d_parameters),
        )
