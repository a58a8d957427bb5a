"""A student made from its teacher: every k-th block, narrower where wanted, with the teacher's own weights."""

import re
from collections.abc import Iterable

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PretrainedConfig

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models.loading import blocks_of, check_live, is_quantised
from llm_finetuner.models.narrow import narrow

BLOCKS = ("uniform", "first-last")
PER_BLOCK = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")  # lists in configs


def parse_share(name: str) -> int | None:
    """`teacher/2` -> 2; None for what is not such a name. Raises RecipeError for a number that divides nothing."""
    found = re.fullmatch(r"teacher/([-+.\d]+)", name.strip())
    if found is None:
        return None
    if not re.fullmatch(r"[1-9]\d*", found[1]):
        raise RecipeError(
            f"{name!r} names no part of the teacher",
            "give a whole number from 1, such as teacher/2 for half its blocks",
        )
    return int(found[1])


def shrink(
    model: nn.Module,
    *,
    keep: float | int = 0.5,
    blocks: str | list[int] = "uniform",
    width: float = 1.0,
    activations: Iterable[dict] | None = None,
) -> nn.Module:
    """A new, trainable model of the same class with some of the blocks; `model` stays as it is and shares no storage.

    keep is a share of the blocks (a float) or what to divide their number by (an int). blocks says which: evenly spaced
    from the first to the last ("uniform"), the first and the last ones ("first-last"), or these numbers, from 0; then
    keep is not read. Below width 1.0 heads, MLP channels and hidden dims are dropped as well, the least important on
    `activations` (a few batches with input_ids and attention_mask; None: by the weights); see narrow.py.
    Nothing is drawn at random. Raises RecipeError for a wrong setting, ModelError where the model cannot be cut.
    """
    check_live(model)
    if not 0 < width <= 1:
        raise RecipeError(
            f"width: {width} is no share of the teacher's width", "give a number above 0 and up to 1"
        )
    if is_quantised(model) or any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"the weights of {type(model).__name__} are quantised or not in memory and cannot be copied",
            "load the teacher in its own precision to make a student of it",
        )
    numbers = choose_blocks(len(blocks_of(model)), keep, blocks)
    student = _build(model, *_take_blocks(model, numbers))
    _check_blocks(model, student, numbers)
    return student if width == 1 else _build(model, *narrow(student, width, activations))


def choose_blocks(depth: int, keep: float | int, blocks: str | list[int] = "uniform") -> list[int]:
    """The numbers of the blocks to keep of `depth`, ascending. Raises RecipeError, ModelError where none is left."""
    if not isinstance(blocks, str):
        if not blocks or sorted(set(blocks)) != list(blocks) or not 0 <= blocks[0] <= blocks[-1] < depth:
            raise ModelError(
                f"blocks: {list(blocks)} are not blocks of a teacher of {depth}",
                f"give numbers from 0 to {depth - 1}, ascending, each once",
            )
        return list(blocks)
    count = _count(depth, keep)
    if blocks == "first-last":
        return [*range((count + 1) // 2), *range(depth - count // 2, depth)]
    if blocks != "uniform":
        raise RecipeError(
            f"blocks: {blocks!r} is not a way to choose", f"one of {', '.join(BLOCKS)}, or a list of numbers"
        )
    gaps = max(count - 1, 1)
    return [
        (2 * i * (depth - 1) + gaps) // (2 * gaps) for i in range(count)
    ]  # the nearest; 12 to 6: 0 2 4 7 9 11


def describe(teacher: nn.Module, student: nn.Module) -> str:
    """One line on how much smaller the student is; tied weights count once."""
    before, after = (sum(weight.numel() for weight in model.parameters()) for model in (teacher, student))
    depth, width = (
        f"{ours} of {theirs}"
        for ours, theirs in (
            (len(blocks_of(student)), len(blocks_of(teacher))),
            (student.config.get_text_config().hidden_size, teacher.config.get_text_config().hidden_size),
        )
    )
    return f"{depth} blocks, width {width}, {after:,} of {before:,} parameters ({after / before:.0%})"


def _count(depth: int, keep: float | int) -> int:
    """How many of `depth` blocks to keep."""
    fits = 0 < keep <= 1 if isinstance(keep, float) else keep >= 1
    if isinstance(keep, bool) or not fits:
        raise RecipeError(
            f"keep: {keep} is no part of the teacher",
            "give a share such as 0.5, or a whole number to divide the blocks by such as 2",
        )
    count = int((keep if isinstance(keep, float) else 1 / keep) * depth + 0.5)
    if count == 0 or (isinstance(keep, int) and keep > depth):
        raise ModelError(
            f"a share of {keep:g} keeps none of the teacher's {depth} blocks"
            if isinstance(keep, float)
            else f"the teacher has {depth} blocks, which cannot be divided by {keep}",
            f"teacher/{depth} keeps one block, teacher/2 half of them",
        )
    return count


def _take_blocks(model: nn.Module, numbers: list[int]) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The config and weights of `model` with these blocks only. Raises ModelError where that makes no whole model."""
    config = type(model.config).from_dict(model.config.to_dict())
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} has two stacks of blocks, an encoder's and a decoder's",
            "name a student instead",
        )
    lists = text.to_dict()
    for name in PER_BLOCK:
        if lists.get(name):
            setattr(text, name, [lists[name][number] for number in numbers])
    text.num_hidden_layers = len(numbers)
    stack = blocks_of(model)
    prefix = next(name for name, module in model.named_modules() if module is stack)
    renamed = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(numbers)}
    state = {}
    for name, weight in model.state_dict().items():
        start = re.match(rf"{re.escape(prefix)}\.\d+\.", name)
        if start is None:
            state[name] = weight
        elif start[0] in renamed:
            state[renamed[start[0]] + name[start.end() :]] = weight
    return config, state


def _build(model: nn.Module, config: PretrainedConfig, state: dict[str, Tensor]) -> nn.Module:
    """A model of the same class, dtype and device that holds these weights. Raises ModelError where they do not fit.

    Built from the config as a reload will read it, so that what is saved is what was trained.
    """
    kind = type(model)
    try:
        config = type(config).from_dict(config.to_dict())
        with torch.random.fork_rng(devices=[]):  # the weights that it draws are overwritten
            student = kind._from_config(
                config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
            )
        student.to(model.device).load_state_dict(state)
    except (ValueError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{kind.__name__} cannot be cut: {reason}", "name a student instead") from error
    if model.can_generate():
        student.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    student.name_or_path = model.name_or_path
    return student.train(model.training)


def _check_blocks(teacher: nn.Module, student: nn.Module, numbers: list[int]) -> None:
    """Hold that no block works differently under its new number (a window, a kind of attention, a scale)."""
    stacks = blocks_of(teacher), blocks_of(student)
    for new, old in enumerate(numbers):
        for theirs, ours in zip(stacks[0][old].modules(), stacks[1][new].modules(), strict=True):
            for name, value in _settings(theirs).items():
                now = _settings(ours).get(name)
                if now != value and (value, now) != (old, new):
                    kind = type(teacher).__name__
                    raise ModelError(
                        f"block {old} of {kind} has {name} {value}, and as block {new} it would have {now}",
                        "choose other blocks, or name a student",
                    )
    config = teacher.config.to_dict()
    if config.get("scale_attn_by_inverse_layer_idx") and numbers != list(range(len(numbers))):
        raise ModelError(
            f"the attention of {type(teacher).__name__} depends on the number of its block",
            "keep the first blocks, or name a student",
        )


def _settings(module: nn.Module) -> dict[str, object]:
    """The plain values among a module's attributes, but those that training sets."""
    plain = (bool, int, float, str, type(None))
    passing = ("training", "gradient_checkpointing")
    return {
        k: v
        for k, v in vars(module).items()
        if isinstance(v, plain) and not k.startswith("_") and k not in passing
    }
