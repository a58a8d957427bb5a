"""A student made from its teacher: every k-th block, narrower where wanted, with the teacher's own weights."""

import re
from collections.abc import Iterable

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PretrainedConfig

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models.loading import check_live, is_quantised
from llm_finetuner.models.mixers import with_mamba
from llm_finetuner.models.narrow import narrow
from llm_finetuner.models.stacks import stacks_of, with_blocks

BLOCKS = ("uniform", "first-last")
MIXERS = ("attention", "mamba2")
FOR_ALL = "relative_attention_bias"  # T5's first block of each stack holds it for the blocks behind it
# what may differ under a new number: training sets it, or it follows from the weights that a block holds
MAY_DIFFER = ("training", "gradient_checkpointing", f"has_{FOR_ALL}")


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
    keep_encoder: bool = False,
    mixer: str = "attention",
    seed: int = 0,
    activations: Iterable[dict] | None = None,
) -> nn.Module:
    """A new, trainable model of the same class with some of the blocks; `model` stays as it is and shares no storage.

    keep is a share of the blocks (a float) or what to divide their number by (an int). blocks says which: evenly spaced
    from the first to the last ("uniform"), the first and the last ones ("first-last"), or these numbers, from 0; then
    keep is not read. Below width 1.0 heads, MLP channels and hidden dims are dropped as well, the least important on
    `activations` (a few batches with input_ids and attention_mask; None: by the weights); see narrow.py.
    Of a model with an encoder and a decoder both are cut so. keep_encoder leaves the encoder whole, and so do numbers:
    they are the decoder's. mixer mamba2 puts Mamba-2 in the place of attention (mixers.py); what attention lacks
    is drawn from `seed`, and nothing else is drawn. Raises RecipeError for a wrong setting, ModelError where the
    model cannot be cut.
    """
    check_live(model)
    if mixer not in MIXERS:
        raise RecipeError(f"mixer: {mixer!r} is not known", f"one of {', '.join(MIXERS)}")
    if not 0 < width <= 1:
        raise RecipeError(
            f"width: {width} is no share of the teacher's width", "give a number above 0 and up to 1"
        )
    if is_quantised(model) or any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"the weights of {type(model).__name__} are quantised or not in memory and cannot be copied",
            "load the teacher in its own precision to make a student of it",
        )
    stacks = stacks_of(model)
    numbers = choose_in_stacks([len(stack) for stack in stacks], keep, blocks, keep_encoder)
    student = _build(model, with_blocks(model.config, numbers), _state(model, stacks, numbers))
    _check_blocks(model, student, numbers)
    student = student if width == 1 else _build(model, *narrow(student, width, activations))
    return with_mamba(student, seed) if mixer == "mamba2" else student


def choose_in_stacks(
    depths: list[int], keep: float | int, blocks: str | list[int] = "uniform", keep_encoder: bool = False
) -> list[list[int]]:
    """The same of each stack, the first being the decoder's where there are two. Raises RecipeError, ModelError."""
    if keep_encoder and len(depths) == 1:
        raise RecipeError(
            "keep_encoder is for models with an encoder and a decoder, and this one has one stack of blocks",
            "leave it out",
        )
    first, *others = depths
    whole = keep_encoder or not isinstance(blocks, str)
    others = [list(range(depth)) if whole else choose_blocks(depth, keep, blocks) for depth in others]
    return [choose_blocks(first, keep, blocks), *others]


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
    kept = [
        f"{len(ours)} of {len(theirs)}"
        for ours, theirs in zip(stacks_of(student), stacks_of(teacher), strict=True)
    ]
    blocks = f"{kept[0]} blocks" if len(kept) == 1 else f"{kept[1]} encoder and {kept[0]} decoder blocks"
    ours, theirs = (model.config.get_text_config().hidden_size for model in (student, teacher))
    return f"{blocks}, width {ours} of {theirs}, {after:,} of {before:,} parameters ({after / before:.0%})"


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


def _state(model: nn.Module, stacks: list[nn.ModuleList], numbers: list[list[int]]) -> dict[str, Tensor]:
    """The weights of `model` with these blocks of each stack only, under their new numbers."""
    names = [next(name for name, module in model.named_modules() if module is stack) for stack in stacks]
    prefixes = tuple(f"{name}." for name in names)
    state = {name: weight for name, weight in model.state_dict().items() if not name.startswith(prefixes)}
    for prefix, stack, kept in zip(prefixes, stacks, numbers, strict=True):
        shared = {name: weight for name, weight in stack[0].state_dict().items() if FOR_ALL in name}
        for new, old in enumerate(kept):
            block = {**(shared if new == 0 else {}), **stack[old].state_dict()}
            state |= {f"{prefix}{new}.{name}": weight for name, weight in block.items()}
    return state


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
        _ready(student.to(model.device), state).load_state_dict(state)
    except (ValueError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{kind.__name__} cannot be cut: {reason}", "name a student instead") from error
    if model.can_generate():
        student.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    student.name_or_path = model.name_or_path
    return student.train(model.training)


def _ready(student: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Make a place for every weight of the state, of its type: some stay in float32 in a T5 that is in float16.

    What the config ties and the state holds apart is untied: T5 1.1, mT5 and Flan-T5 are tied by their config only.
    """
    first: dict[int, str] = {}
    for name, weight in list(student.named_parameters(remove_duplicate=False)):
        other = first.setdefault(id(weight), name)
        if name not in state or other not in state:
            continue  # load_state_dict says so
        if name != other and not torch.equal(state[name], state[other]):
            holder, _, last = name.rpartition(".")
            setattr(student.get_submodule(holder), last, nn.Parameter(torch.empty_like(state[name])))
        weight.data = weight.data.to(state[other].dtype)
    return student


def _check_blocks(teacher: nn.Module, student: nn.Module, numbers: list[list[int]]) -> None:
    """Hold that no block works differently under its new number (a window, a kind of attention, a scale)."""
    kind = type(teacher).__name__
    for theirs, ours, kept in zip(stacks_of(teacher), stacks_of(student), numbers, strict=True):
        for new, old in enumerate(kept):
            modules = dict(ours[new].named_modules())
            for place, module in theirs[old].named_modules():
                now = _settings(modules[place])
                for name, value in _settings(module).items():
                    if now.get(name) != value and (value, now.get(name)) != (old, new):
                        said = f"has {name} {value}, and as block {new} it would have {now.get(name)}"
                        raise ModelError(
                            f"block {old} of {kind} {said}", "choose other blocks, or name a student"
                        )
    config = teacher.config.to_dict()
    if config.get("scale_attn_by_inverse_layer_idx") and numbers[0] != list(range(len(numbers[0]))):
        raise ModelError(
            f"the attention of {kind} depends on the number of its block",
            "keep the first blocks, or name a student",
        )


def _settings(module: nn.Module) -> dict[str, object]:
    """The plain values among a module's attributes that its new number must not change."""
    plain = (bool, int, float, str, type(None))
    return {
        k: v
        for k, v in vars(module).items()
        if isinstance(v, plain) and not k.startswith("_") and k not in MAY_DIFFER
    }
