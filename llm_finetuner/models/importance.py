"""What each head, MLP channel and hidden dim of a model contributes: measured on batches, or judged by the weights.

After Minitron (arXiv 2407.14679). Letters: B sequences, T tokens, N tokens that count, U head groups (a
key-value head with the queries that share it), M MLP channels, D hidden dims, P dims of the pooled vector.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_finetuner.errors import DataError
from llm_finetuner.models.families import Family, is_at, is_norm, layers_of, matrix_of
from llm_finetuner.output import at_least_float32


@dataclass
class Scores:
    """Higher is more important. Blocks are told apart by the name of their layer."""

    heads: dict[str, Tensor]  # attention output layer -> [U]
    channels: dict[str, Tensor]  # layer that reads the channels -> [M]
    energy: dict[str, Tensor]  # norm -> [D] mean square of what goes in
    hidden: Tensor  # [D]
    pooled: Tensor | None  # [P], None where the model has no pooler


class _Meter:
    """Adds up what passes the layers, over the tokens that count."""

    def __init__(self, groups: int):
        self.groups = groups
        self.sums: dict[str, dict[str, Tensor]] = {}  # kind -> layer -> sum
        self.mask_BT: Tensor | None = None
        self.tokens = self.sequences = 0

    def add(self, kind: str, name: str, x: Tensor) -> None:
        sums = self.sums.setdefault(kind, {})
        sums[name] = sums[name] + x if name in sums else x

    def rows(self, x_BTX: Tensor) -> Tensor:
        return at_least_float32(x_BTX[self.mask_BT])

    def heads(self, name: str, layer: nn.Module, inputs: tuple) -> None:
        """Norms through W W^T of each group, for [N, U, D] would not fit."""
        x_NUH = self.rows(inputs[0]).unflatten(-1, (self.groups, -1))
        weight_UHD = at_least_float32(matrix_of(layer)).unflatten(0, (self.groups, -1))
        through_NUH = torch.einsum("nuh,uhk->nuk", x_NUH, weight_UHD @ weight_UHD.mT)
        self.add("heads", name, (through_NUH * x_NUH).sum(-1).clamp_min(0).sqrt().sum(0))

    def channels(self, name: str, layer: nn.Module, inputs: tuple) -> None:
        self.add("channels", name, self.rows(inputs[0]).abs().sum(0))

    def norm(self, name: str, layer: nn.Module, inputs: tuple, output_BTD: Tensor) -> None:
        x_ND = self.rows(inputs[0])
        if isinstance(layer, nn.LayerNorm):
            x_ND = x_ND - x_ND.mean(-1, keepdim=True)
        self.add("energy", name, x_ND.square().sum(0))
        self.add("hidden", "", self.rows(output_BTD).abs().sum(0))

    def pooled(self, layer: nn.Module, inputs: tuple, output_BP: Tensor) -> None:
        self.add("pooled", "", at_least_float32(output_BP).tanh().abs().sum(0))

    def scores(self) -> Scores:
        means = {kind: {n: x / self.tokens for n, x in sums.items()} for kind, sums in self.sums.items()}
        pooled = self.sums["pooled"][""] / self.sequences if "pooled" in self.sums else None
        return Scores(means["heads"], means["channels"], means["energy"], means["hidden"][""], pooled)


@torch.no_grad()
def measure(model: nn.Module, family: Family, groups: int, batches: Iterable[dict]) -> Scores:
    """Run the batches (input_ids [B, T], and attention_mask where there is padding) and see what contributes.

    A head group by the mean norm of what it adds to the residual stream, an MLP channel by its mean |activation|, a
    hidden dim by its mean |value| behind the norms. Raises DataError where no token was given.
    """
    meter, hooks = _Meter(groups), []
    for name, (axes, module) in layers_of(model, family).items():
        if is_at(name, family.attention):
            hooks.append(module.register_forward_pre_hook(partial(meter.heads, name)))
        elif is_at(name, family.mlp):
            hooks.append(module.register_forward_pre_hook(partial(meter.channels, name)))
        elif is_norm(axes, module):
            hooks.append(module.register_forward_hook(partial(meter.norm, name)))
        elif axes == "DP":
            hooks.append(module.register_forward_hook(meter.pooled))
    training = model.training
    model.eval()
    try:
        for batch in batches:
            ids_BT = batch["input_ids"].to(model.device)
            mask_BT = batch.get("attention_mask", torch.ones_like(ids_BT)).to(model.device)
            meter.mask_BT = mask_BT.bool()
            meter.tokens += int(meter.mask_BT.sum())
            meter.sequences += len(ids_BT)
            model(input_ids=ids_BT, attention_mask=mask_BT)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not meter.tokens:
        raise DataError(
            "no token to measure importance on", "give a few batches with input_ids, or none at all"
        )
    return meter.scores()


@torch.no_grad()
def weigh(model: nn.Module, family: Family, groups: int) -> Scores:
    """Judge by the weights alone: what a part can at most write times what it can at most read.

    Cruder than measuring: it knows neither which tokens occur nor which heads they wake.
    """
    layers = layers_of(model, family)
    heads, channels, energy_D, pooled = {}, {}, 0.0, None
    for name, (axes, module) in layers.items():
        block = name.removesuffix(family.attention).removesuffix(family.mlp)
        if is_at(name, family.attention):
            made = _given(layers[block + family.values][1])
            values = made.chunk(3)[2] if layers[block + family.values][0] == "DA" else made
            heads[name] = (_per_group(values, groups) * _per_group(_taken(module), groups)).sqrt()
        elif is_at(name, family.mlp):
            made = [_given(m) for other, (a, m) in layers.items() if a == "DM" and other.startswith(block)]
            channels[name] = (torch.stack(made).prod(0) * _taken(module)).sqrt()
        elif axes == "DP":
            pooled = _given(module).sqrt()
        if axes[1] == "D" and not is_norm(axes, module):
            energy_D = energy_D + _given(module)
    norms = [name for name, (axes, module) in layers.items() if is_norm(axes, module)]
    return Scores(heads, channels, dict.fromkeys(norms, energy_D), energy_D.sqrt(), pooled)


def _given(module: nn.Module) -> Tensor:
    """[out] mean square of what the layer gives for inputs of variance 1; of an embedding over its tokens."""
    matrix = at_least_float32(matrix_of(module)).square()
    if isinstance(module, nn.Embedding):
        return matrix.mean(0)
    return matrix.sum(0) if module.bias is None else matrix.sum(0) + at_least_float32(module.bias).square()


def _taken(module: nn.Linear | Conv1D) -> Tensor:
    """[in] squared norm of what the layer makes of each of its inputs."""
    return at_least_float32(matrix_of(module)).square().sum(1)


def _per_group(x: Tensor, groups: int) -> Tensor:
    """[U * n] -> [U]"""
    return x.unflatten(0, (groups, -1)).sum(1)
