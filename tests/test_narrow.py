"""Width: what is dropped, that the sizes fit, and that nothing changes where the dropped parts did nothing."""

import pytest
import torch
from shrink_models import KINDS, D, answer, batches, build, sizes
from torch import nn

from llm_finetuner.models.families import family_of, is_norm, layers_of
from llm_finetuner.models.importance import measure
from llm_finetuner.models.shrink import shrink
from llm_finetuner.models.stacks import blocks_of


@pytest.mark.parametrize(
    "kind, width, wanted",
    [
        ("gpt2", 0.5, (16, 2, 2, 64)),
        ("gpt2", 0.7, (24, 3, 3, 90)),  # hidden = heads x 8
        ("gpt2 untied", 0.25, (8, 1, 1, 10)),
        ("llama", 0.5, (16, 2, 1, 12)),
        (
            "llama",
            0.7,
            (22, 2, 1, 17),
        ),  # a whole group of two queries goes; hidden is the nearest multiple
        ("qwen3", 0.9, (32, 8, 4, 22)),
        ("qwen3", 0.01, (2, 2, 1, 1)),
        ("bert", 0.5, (16, 2, 2, 12)),
    ],
)
def test_sizes_fit_each_other(kind, width, wanted):
    teacher = build(kind)
    student = shrink(teacher, keep=1.0, width=width)
    assert sizes(student) == wanted
    answer(student)
    dims = blocks_of(teacher)[0], blocks_of(student)[0]
    if kind in ("llama", "qwen3"):
        assert dims[0].self_attn.head_dim == dims[1].self_attn.head_dim


def drawn(count: int, of: int, seed: int) -> list[int]:
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()


@torch.no_grad()
def silence(model: nn.Module, left: tuple[int, int, int, int]) -> list[int]:
    """Make all but `left` (hidden dims, heads, groups, channels) contribute 0, other heads and channels in each block.

    Only what writes is silenced, what reads stays as it was. What goes into a LayerNorm gets mean 0 over the others, or
    that mean would change. Returns the hidden dims that still speak.
    """
    family, (_, _, groups, inner) = family_of(model), sizes(model)
    mute = {"D": drawn(D - left[0], D, 0), "P": drawn(D - left[0], D, 1)}
    stay = [d for d in range(D) if d not in mute["D"]]
    block, kind = -1, model.config.model_type
    for name, (axes, module) in layers_of(model, family).items():
        turn = isinstance(module, nn.Linear)
        written = [
            x.T if turn and x.dim() == 2 else x for x in module.parameters(recurse=False)
        ]  # [in, out], [out]
        gain = written[0] if is_norm(axes, module) else None
        block += name.endswith(family.values)
        if name.endswith(family.attention):
            for group in drawn(groups - left[2], groups, block):
                written[0].unflatten(0, (groups, -1))[group] = 0
        elif axes == "DM":
            for x in written:
                x[..., drawn(inner - left[3], inner, block)] = 0
        if gain is not None and kind == "bert":  # what the norm gives is the residual stream
            gain.fill_(1.3)
        for x in written if axes[1] in mute else []:
            x[..., mute[axes[1]]] = 0
            if axes[1] == "D" and x is not gain and kind in ("bert", "gpt2"):
                x[..., stay] -= x[..., stay].mean(-1, keepdim=True)
    return stay


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_away_what_does_nothing_changes_nothing(kind, measured):
    # linear: behind BERT's head an activation would bring the mean back that silence() takes away
    teacher = build(kind, **({"hidden_act": "linear"} if kind == "bert masked" else {}))
    loud = answer(teacher)
    stay = silence(teacher, sizes(shrink(teacher, keep=1.0, width=0.5)))
    student = shrink(teacher, keep=1.0, width=0.5, activations=batches() if measured else None)
    want = answer(teacher)
    assert (want - loud).abs().max() > 0.01
    want = want[:, stay] if kind == "bert" else want  # its answer is the hidden states
    near = (
        1e-12 if teacher.config.model_type in ("bert", "gpt2") else 1e-5
    )  # RMSNorm rounds to float32 by itself
    torch.testing.assert_close(answer(student), want, rtol=0, atol=near * want.abs().max().item())


@torch.no_grad()
def test_importance_is_what_it_says():
    """Against loops over heads: grouped queries, padding left out, both batches."""
    teacher = build("qwen3")
    scores = measure(teacher, family_of(teacher), 4, batches())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    seen = {}
    for block, layer in enumerate(teacher.model.layers):
        layer.self_attn.o_proj.register_forward_hook(
            lambda m, x, y, block=block: seen.setdefault(block, []).append(x[0])
        )
    behind = []
    for module in teacher.modules():
        if isinstance(module, type(teacher.model.norm)) and module.weight.shape == (D,):
            module.register_forward_hook(lambda m, x, y: behind.append(y))
    for batch in batches():
        teacher(**batch)
    keep = batches()[0]["attention_mask"].bool()
    for block, layer in enumerate(teacher.model.layers):
        weight, total = layer.self_attn.o_proj.weight, torch.zeros(4, dtype=torch.float64)
        for x in torch.cat([x[keep] for x in seen[block]]):
            for group in range(4):  # two queries of head_dim 6 each
                total[group] += (
                    weight[:, group * 12 : group * 12 + 12] @ x[group * 12 : group * 12 + 12]
                ).norm()
        got = scores.heads[f"model.layers.{block}.self_attn.o_proj"]
        torch.testing.assert_close(got, total / (2 * keep.sum()))
    want = sum(y[keep].abs().sum(0) for y in behind) / (2 * keep.sum())
    torch.testing.assert_close(scores.hidden, want)


def test_padding_has_no_say():
    teacher, other = build("bert classes"), batches()
    for batch in other:
        batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), 7)
    a, b = (shrink(teacher, width=0.5, activations=given) for given in (batches(), other))
    assert torch.equal(answer(a), answer(b))


def test_measuring_beats_weighing():
    """With a few loud tokens the weights mislead: measured on real inputs the answer stays closer."""
    teacher = build("llama")
    with torch.no_grad():
        teacher.model.embed_tokens.weight[:2, : D // 2] *= 30  # tokens that never come
    want = answer(teacher)
    off = [
        (answer(shrink(teacher, keep=1.0, width=0.8, activations=b)) - want).square().mean()
        for b in (batches(), None)
    ]
    assert off[0] < off[1]
