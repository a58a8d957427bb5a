"""A narrower copy of a model: the most important heads, MLP channels and hidden dims, with the model's own weights.

Every block keeps as many heads and channels as the others, each its own best; the hidden dims are the same everywhere,
for the residual stream joins the blocks. A norm over fewer dims would see another mean square than it did, so its
weight is multiplied by the square root of (mean square over the kept dims / over all dims), as measured in front of
it (without batches: as the weights that write there let expect). Where the dropped dims carried nothing the outputs
stay what they were, but for the norm's epsilon, which is left alone. A LayerNorm takes the mean over the kept dims, and
nothing makes up for that. A model with one key-value head for all queries keeps all its heads.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from llm_finetuner.errors import ModelError
from llm_finetuner.models.families import Family, family_of, is_norm, layers_of
from llm_finetuner.models.importance import Scores, measure, weigh


def narrow(
    model: nn.Module, width: float, batches: Iterable[dict] | None
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The config and weights of `model` with about this share of its heads, MLP channels and hidden dims.

    Importance is measured on the batches (dicts with input_ids and attention_mask), without any by the weights. The
    size of a head is kept. Queries leave with the key-value head that they share. Raises ModelError for another family.
    """
    family = family_of(model)
    old = model.config.to_dict()
    queries, size = model.config.num_attention_heads, _head_dim(model.config)
    groups = old.get("num_key_value_heads", queries)
    scores = measure(model, family, groups, batches) if batches is not None else weigh(model, family, groups)
    left = _share(width, groups)
    channels = _share(width, len(next(iter(scores.channels.values()))))
    config = _narrow_config(model.config, family, width, left * (queries // groups), left, size)
    setattr(config, family.inner, channels)
    kept = {"D": best(scores.hidden, config.hidden_size)}
    kept["P"] = kept["D"] if scores.pooled is None else best(scores.pooled, config.hidden_size)
    per_block = _per_block(family, scores, left, queries // groups * size, size, channels)
    state = {}
    for name, (axes, module) in layers_of(model, family).items():
        mine = kept | next((ours for block, ours in per_block.items() if name.startswith(block)), {})
        for own, weight in module.named_parameters(recurse=False):
            cut = _cut(weight.detach(), axes, mine, isinstance(module, nn.Linear))
            if own == "weight" and is_norm(axes, module):
                cut = cut * _correction(scores.energy[name], kept["D"])
            state[f"{name}.{own}"] = cut
    return config, state


def _narrow_config(
    config: PretrainedConfig, family: Family, width: float, queries: int, groups: int, size: int
) -> PretrainedConfig:
    """A config for this many query and key-value heads of `size`; the hidden width is a multiple of the query heads."""
    config = type(config).from_dict(config.to_dict())
    hidden = queries * size
    if family.free:
        hidden = queries * min(_share(width, config.hidden_size / queries), config.hidden_size // queries)
        config.head_dim, config.num_key_value_heads = size, groups
    config.num_attention_heads, config.hidden_size = queries, hidden
    return config


def _per_block(
    family: Family, scores: Scores, groups: int, group: int, size: int, channels: int
) -> dict[str, dict[str, Tensor]]:
    """Start of a block's names -> axis -> kept positions, for heads of `size` dims in groups of `group` query dims."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, score in scores.heads.items():
        heads = best(score, groups)
        queries, all_queries = spread(heads, group), len(score) * group
        found[name.removesuffix(family.attention)] = {
            "Q": queries,
            "K": spread(heads, size),
            "A": torch.cat([queries + part * all_queries for part in range(3)]),
        }
    for name, score in scores.channels.items():
        found[name.removesuffix(family.mlp)]["M"] = best(score, channels)
    return found


def _cut(weight: Tensor, axes: str, kept: dict[str, Tensor], out_first: bool) -> Tensor:
    """The kept part of a matrix, [in, out] or [out, in], or of a vector [out]."""
    letters = axes[1] if weight.dim() == 1 else axes[::-1] if out_first else axes
    for axis, letter in enumerate(letters):
        if letter != "-":
            weight = weight.index_select(axis, kept[letter].to(weight.device))
    return weight


def _correction(energy_D: Tensor, kept: Tensor) -> float:
    """What keeps the kept dims of a norm's output at their size. A norm that saw nothing at all keeps its weight."""
    all_dims = energy_D.mean()
    return float((energy_D[kept].mean() / all_dims).sqrt()) if all_dims > 0 else 1.0


def _head_dim(config: PretrainedConfig) -> int:
    """Dims of a head, whether or not the config says it."""
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def _share(width: float, of: float) -> int:
    """This share of a number, to the nearest and at least one."""
    return max(1, int(width * of + 0.5))


def best(score: Tensor, count: int) -> Tensor:
    """Positions of the best [..., N] -> [..., count], ascending; of equals the first.

    Raises ModelError where the scores are not numbers.
    """
    if not score.isfinite().all():
        raise ModelError(
            "the importance of some part is not a number", "does the model answer with NaN on this data?"
        )
    return score.argsort(descending=True, stable=True)[..., :count].sort().values


def spread(groups: Tensor, size: int) -> Tensor:
    """Positions of all members of some groups of this size."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
