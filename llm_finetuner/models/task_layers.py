"""The layers that make a trunk a model for a task: scoring layers, the poolers they read, transforms of a head.

A checkpoint of another task lacks them, so they begin as drawn: an adapter trains and saves them whole, and no bits
are taken from them.
"""

from collections.abc import Iterator

from torch import nn


def task_layers(model: nn.Module) -> list[str]:
    """Names of the modules with weights behind the blocks; GPT, Llama and T5 that write have none.

    Not the layer that gives tokens, which is tied to the embeddings or came with the checkpoint.
    """
    trunk = model.base_model
    within = (
        f"{model.base_model_prefix}.{name}"
        for name, child in trunk.named_children()
        if trunk is not model and name == "pooler" and _has_weights(child)
    )
    return [*within, *_outside(model, set(trunk.modules()), model.get_output_embeddings())]


def kept_whole(model: nn.Module) -> list[str] | None:
    """Names of the modules that are not to be quantised, where the usual choice would not spare them; None: it does."""
    found, head = task_layers(model), model.get_output_embeddings()
    if not found:
        return None
    return [*found, *(name for name, module in model.named_modules() if module is head)]


def _outside(
    module: nn.Module, trunk: set[nn.Module], head: nn.Module | None, path: str = ""
) -> Iterator[str]:
    for name, child in module.named_children():
        if child in trunk or child is head:
            continue
        if head is not None and head in set(child.modules()):
            yield from _outside(child, trunk, head, f"{path}{name}.")
        elif _has_weights(child):
            yield f"{path}{name}"


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
