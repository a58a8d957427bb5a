"""Parts of a transformers model that have another name in every family: found by what they do.

Shapes: B sequences, T tokens, D width, H heads.
"""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.errors import ModelError
from llm_finetuner.layer_maps import POOLED
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.output import Want

SEPARATE = {
    "query": ("q_proj", "query", "q_lin", "q"),
    "key": ("k_proj", "key", "k_lin", "k"),
    "value": ("v_proj", "value", "v_lin", "v"),
}
FUSED = ("c_attn",)  # query, key and value side by side in one output
INTERLEAVED = ("GPTBigCodeAttention",)  # have such a layer too, in another order


def final_norm_of(model: nn.Module) -> nn.Module:
    """A trainable copy of the norm behind the last block: [N, D] -> [N, D]. Raises ModelError where there is none."""
    return copy.deepcopy(model.base_model.get_submodule(_final_norm(model))).requires_grad_(True)


def replace_final_norm(model: nn.Module, norm: nn.Module) -> None:
    """Put another norm behind the last block."""
    model.base_model.set_submodule(_final_norm(model), norm)


@torch.no_grad()
def _final_norm(model: nn.Module) -> str:
    """The name of the module with weights whose output is the trunk's."""
    inside = set(blocks_of(model)[-1].modules())
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, output)))
        for name, module in model.base_model.named_modules()
        if not list(module.children()) and list(module.parameters()) and module not in inside
    ]
    ids_BT = torch.zeros(1, 2, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    training = model.training
    model.eval()
    try:
        end = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    found = next(
        (name for name, output in reversed(seen) if output.shape == end.shape and output.equal(end)), None
    )
    if found is None:
        raise ModelError(
            f"{type(model).__name__} has no norm behind its last block that an early exit could begin with",
            "self_distillation by average works with any model",
        )
    return found


@dataclass(frozen=True)
class Attention:
    """The attention module of a block, and the layers in it that make queries, keys and values."""

    module: nn.Module
    separate: dict[str, nn.Module]  # empty where they are fused
    fused: nn.Module | None
    maps: int = 1  # where its output holds the maps


def attention_of(block: nn.Module) -> Attention:
    """Find the attention of a block. Raises ModelError for a family whose projections have unknown names."""
    for module in block.modules():
        children = dict(module.named_children())
        separate = {
            role: children[name] for role, names in SEPARATE.items() for name in names if name in children
        }
        if len(separate) == len(SEPARATE):
            # T5 and its kin put the bias of relative positions before the maps
            return Attention(module, separate, None, maps=-1 if "q" in children else 1)
        for name in FUSED:
            if name in children and type(module).__name__ not in INTERLEAVED:
                return Attention(module, {}, children[name])
    raise ModelError(
        f"{type(block).__name__} has no query, key and value layers of a known name",
        "attention and value relations are not available for this model: compare hidden states",
    )


def expose_attention(model: nn.Module) -> None:
    """Have the model form its attention maps, which fused kernels never do: slower, but they can be read."""
    model.set_attn_implementation("eager")


def reads_segments(model: nn.Module) -> bool:
    """Whether it has an embedding for the number of a text in a pair: token_type_ids."""
    return model.config.to_dict().get("type_vocab_size", 0) > 1


class Enough(Exception):
    """Ends a forward pass: all that is wanted has been seen."""


def capture(model: nn.Module, want: Want) -> tuple[dict, list]:
    """Hook what is wanted, and nothing else: ({(kind, block): tensor or tensors by role}, the hooks to remove).

    Where no answers are wanted the forward pass raises Enough behind the last block that is read.
    """
    kept: dict[tuple[str, int], Tensor | dict[str, Tensor]] = {}
    blocks, hooks = blocks_of(model), []

    def keep(place: tuple[str, int], take):
        return lambda _module, _inputs, output: kept.__setitem__(place, take(output))

    def keep_role(block: int, role: str):
        return lambda _module, _inputs, output: kept.setdefault(("states", block), {}).update({role: output})

    def keep_input(_module, args, kwargs):
        kept["embeddings", 0] = args[0] if args else kwargs["hidden_states"]

    layers = [block for block in want.layers if block != POOLED]  # which is read where the answers are
    for block in layers:
        hooks.append(blocks[block].register_forward_hook(keep(("features", block), _first)))
    for block in want.attention:
        found = attention_of(blocks[block])
        take = operator.itemgetter(found.maps)
        hooks.append(found.module.register_forward_hook(keep(("attention", block), take)))
    for block in want.states:
        found = attention_of(blocks[block])
        if found.fused is not None:
            hooks.append(found.fused.register_forward_hook(keep(("states", block), _split)))
        hooks += [m.register_forward_hook(keep_role(block, role)) for role, m in found.separate.items()]
    if want.embeddings:
        hooks.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    if not want.answers:
        last = max((*layers, *want.attention, *want.states, 0))
        hooks.append(blocks[last].register_forward_hook(_stop))  # after those that keep its output
    return kept, hooks


def read_before(model: nn.Module, layer: nn.Module, inputs: dict, want: Want) -> tuple[Tensor | None, dict]:
    """One forward pass that ends before `layer`: (what it would read, what else `want` names, as `capture` keeps it).

    The first is None where no answers are wanted and the pass ended earlier.
    """
    read: list[Tensor] = []

    def stop(_module, args):
        read.append(args[0])
        raise Enough

    kept, hooks = capture(model, want)
    hooks.append(layer.register_forward_pre_hook(stop))
    try:
        model(**inputs)
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return (read[0] if read else None), kept


def sort_out(
    kept: dict, pick: Callable[[Tensor], Tensor], pick_maps: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """The fields of an Output that belong to blocks, of what `capture` kept: attention by `pick_maps`, else `pick`."""
    of: dict[str, dict] = {kind: {} for kind in ("features", "attention", "states", "embeddings")}
    for (kind, block), value in kept.items():
        if isinstance(value, dict):
            of[kind][block] = {role: pick(x) for role, x in value.items()}
        else:
            of[kind][block] = (pick_maps if kind == "attention" else pick)(value)
    return {**of, "embeddings": of["embeddings"].get(0)}


def _stop(_module, _inputs, _output) -> None:
    raise Enough


def _first(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _split(fused_BTD: Tensor) -> dict[str, Tensor]:
    return dict(zip(SEPARATE, fused_BTD.chunk(3, dim=-1), strict=True))
