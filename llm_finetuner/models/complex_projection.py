"""A learned map between complex states that are held as pairs of real numbers.

Shapes: N positions, I and O complex numbers of a state before and behind it.
"""

import torch
from torch import Tensor, nn


class ComplexProjection(nn.Module):
    """[N, 2 I] -> [N, 2 O], linear over complex numbers: weight [O, I, 2] holds real and imaginary parts.

    start: linear (of the size that keeps the states' own), orthogonal (rows or columns are unitary), or identity,
    which takes both widths to be one.
    """

    def __init__(self, inputs: int, outputs: int, start: str = "linear"):
        super().__init__()
        if start == "identity" and inputs == outputs:
            weight = torch.eye(outputs, dtype=torch.complex64)
        else:
            weight = torch.randn(outputs, inputs, dtype=torch.complex64) / inputs**0.5
            if start == "orthogonal":
                tall = weight if outputs >= inputs else weight.mH
                unitary = torch.linalg.qr(tall)[0]
                weight = unitary if outputs >= inputs else unitary.mH
        self.weight = nn.Parameter(torch.view_as_real(weight.resolve_conj()).contiguous().clone())

    def forward(self, pairs_N2I: Tensor) -> Tensor:
        real, imaginary = self.weight.unbind(-1)
        # the rows of a real and of an imaginary part of the answer, over pairs of the state
        matrix = torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], 1)
        return nn.functional.linear(pairs_N2I, matrix.flatten(2).flatten(0, 1))
