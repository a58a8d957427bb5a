"""What the layers of a learner do in an optimizer step: norms and histograms of gradients and weights, and updates.

A layer is a block, by the path of its module (`student.transformer.h.0`), or a module outside of the blocks that holds
weights (`student.transformer.wte`). Only weights that train are read, complex numbers as pairs of real ones. Norms are
L2, over all weights of a layer together.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.learner import Learner

TOTAL = "total"  # the row over all layers
BINS = 64
PIECE = 2**24  # numbers that are counted at once: a float32 counts no further


@dataclass
class Histogram:
    """Numbers counted in bins of equal width: counts [BINS], edges [BINS + 1]. The sums are of the numbers."""

    counts: list[float]
    edges: list[float]
    sum: float
    sum_squares: float

    def record(self) -> dict[str, float | list[int]]:
        """As a log holds it: where the first bin begins and the last one ends, and the counts."""
        return {"low": self.edges[0], "high": self.edges[-1], "counts": [int(count) for count in self.counts]}


@dataclass
class Before:
    """A step as it is between its gradients and its update: norms, a copy of each weight, histograms, by layer."""

    gradient_norms: dict[str, float]
    weight_norms: dict[str, float]
    copies: dict[str, list[Tensor]]
    histograms: dict[str, Histogram]  # "gradients/<layer>" and "weights/<layer>", where a number is finite


class Gauges:
    """Reads the layers every `every` optimizer steps, 0: never. draw is handed the histograms by tag, and the step.

    A step that is read holds one more copy of the weights that train, until it is over.
    """

    def __init__(
        self, learner: Learner, every: int, draw: Callable[[dict[str, Histogram], int], None] | None
    ):
        self.layers = layers_of(learner) if every else {}
        self.every, self.draw = every, draw

    @torch.no_grad()
    def before(self, step: int) -> Before | None:
        """To be called with the gradients of the whole step, unscaled and not clipped. None: the step is not read."""
        if not self.every or step % self.every:
            return None
        gradients = {name: _gradients(weights) for name, weights in self.layers.items()}
        kinds = {"gradients": gradients, "weights": self.layers}
        drawn = {f"{kind}/{name}": histogram(of[name]) for kind, of in kinds.items() for name in of}
        drawn = {tag: found for tag, found in drawn.items() if found is not None}
        if self.draw is not None:
            self.draw(drawn, step)
        copies = {name: [p.detach().clone() for p in weights] for name, weights in self.layers.items()}
        return Before(norms(gradients), norms(copies), copies, drawn)

    @torch.no_grad()
    def after(self, before: Before | None) -> dict[str, Any]:
        """What a record of the step gets, or nothing where it is not read.

        {"layers": {layer: {figure: number}}, "histograms": {"weights/<layer>": {"low", "high", "counts"}}}.
        gradient_norm: before clipping. weight_norm: |w| before the update. update_ratio: |w_after - w| / |w|. The
        row `total` is over all layers. None: not finite, or the ratio to weights that were all 0.
        """
        if before is None:
            return {}
        moves = norms(
            {
                name: (_plain(p.detach()) - _plain(old) for p, old in zip(weights, before.copies[name], strict=True))
                for name, weights in self.layers.items()
            }
        )  # fmt: skip
        rows = {name: (before.gradient_norms[name], before.weight_norms[name], moves[name]) for name in moves}
        rows[TOTAL] = tuple(math.hypot(*column) for column in zip(*rows.values(), strict=True))
        return {
            "layers": {
                name: {
                    "gradient_norm": _known(gradient),
                    "weight_norm": _known(weight),
                    "update_ratio": _known(move / weight) if weight else None,
                }
                for name, (gradient, weight, move) in rows.items()
            },
            "histograms": {tag: found.record() for tag, found in before.histograms.items()},
        }


def layers_of(learner: Learner) -> dict[str, list[nn.Parameter]]:
    """The weights that train, by layer, in the order of the modules. A weight that two modules share is the first's."""
    models = {"student": learner.student, **{f"peer_{i}": p for i, p in enumerate(learner.peers, 1)}}
    inside = {id(module) for model in models.values() for module in model.modules()}
    places = [
        (f"{name}.{layer}", module) for name, model in models.items() for layer, module in _modules(model)
    ]
    places += [(name, module) for name, module in learner.named_modules() if id(module) not in inside]
    found: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for layer, module in places:
        for p in module.parameters(recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                found.setdefault(layer.strip("."), []).append(p)
    return found


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module with the layer that it is of: the block of the outermost list around it, else itself."""
    blocks: tuple[str, ...] = ()
    for name, module in model.named_modules():
        block = next((block for block in blocks if f"{name}.".startswith(f"{block}.")), None)
        if block is None and isinstance(module, nn.ModuleList):
            blocks += tuple(f"{name}.{number}" for number in range(len(module)))
        yield block or name, module


def norms(groups: dict[str, Iterator[Tensor] | list[Tensor]]) -> dict[str, float]:
    """The L2 norm of each group, over all its tensors; 0 of none."""
    parts = {n: [torch.linalg.vector_norm(_plain(x)).double() for x in group] for n, group in groups.items()}
    listed = [part for found in parts.values() for part in found]
    numbers = iter(torch.stack(listed).tolist() if listed else ())  # read from the device once
    return {name: math.hypot(*itertools.islice(numbers, len(found))) for name, found in parts.items()}


def histogram(tensors: list[Tensor]) -> Histogram | None:
    """Of all finite numbers of the tensors together; None where there is none."""
    ends, total, squares = [], 0.0, 0.0
    for x in _pieces(tensors):
        ends += torch.stack(x.aminmax()).tolist()
        total, squares = total + x.sum().item(), squares + torch.linalg.vector_norm(x).item() ** 2
    if not ends:
        return None
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = sum(torch.histc(x, BINS, low, high).double().cpu() for x in _pieces(tensors))
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return Histogram(counts.tolist(), edges.tolist(), total, squares)


def tags(record: dict) -> dict[str, float | None]:
    """The figures of a record's layers as trackers show them: {"gradient_norm/student.transformer.h.0": number}."""
    layers = record.get("layers", {}).items()
    return {f"{figure}/{name}": value for name, row in layers for figure, value in row.items()}


def _gradients(weights: list[nn.Parameter]) -> list[Tensor]:
    """Of the weights that got one."""
    return [p.grad for p in weights if p.grad is not None]


def _pieces(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Their finite numbers, in pieces that can be counted."""
    for x in tensors:
        for piece in _plain(x.detach()).flatten().split(PIECE):
            if (
                len(piece) and not torch.stack(piece.aminmax()).isfinite().all()
            ):  # picking is slower than counting
                piece = piece[piece.isfinite()]
            if len(piece):
                yield piece


def _plain(x: Tensor) -> Tensor:
    """Real numbers of at least 32 bits."""
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
