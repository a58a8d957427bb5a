"""What a complex stack is made of beside its state-space models: gates and matrices, in products of real numbers.

Shapes: H width; complex numbers are pairs of real ones along one more axis.
"""

import torch
from torch import Tensor, nn

FLOOR = 1e-6  # added to |h|^2, so that the angle of nothing has a gradient


class Gate(nn.Module):
    """A factor in (0, 1) for each channel, or one for all: [..., H] -> [..., H] or [..., 1]."""

    def __init__(self, width: int, outputs: int, complex_valued: bool):
        super().__init__()
        self.inside = nn.Linear((2 + complex_valued) * width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, h: Tensor) -> Tensor:
        pairs = parts(h)
        size = (pairs.square().sum(-1) + FLOOR).sqrt()
        angle = (pairs / size[..., None]).flatten(-2)  # cosine and sine, which know no jump at half a turn
        return torch.sigmoid(self.out(nn.functional.gelu(self.inside(torch.cat([size, angle], -1)))))


class ComplexLinear(nn.Module):
    """A complex matrix and bias, held as pairs of real numbers, as one real product: twice as fast as a complex one."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        scale = (2 * inputs) ** -0.5
        self.weight = nn.Parameter(scale * torch.randn(outputs, inputs, 2))
        self.bias = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, z: Tensor) -> Tensor:
        real, imaginary = self.weight.unbind(-1)
        rows = torch.stack(
            [self.weight * self.weight.new_tensor([1, -1]), torch.stack([imaginary, real], -1)], 1
        )
        product = nn.functional.linear(
            parts(z).flatten(-2), rows.flatten(2).flatten(0, 1), self.bias.flatten()
        )
        return torch.view_as_complex(product.unflatten(-1, (-1, 2)))


def parts(h: Tensor) -> Tensor:
    """Real and imaginary part, or the number itself, along one more axis: [..., 2] or [..., 1]."""
    return torch.view_as_real(h) if h.is_complex() else h[..., None]


def whole(pairs: Tensor, complex_valued: bool) -> Tensor:
    """What `parts` took apart."""
    return torch.view_as_complex(pairs) if complex_valued else pairs[..., 0]
