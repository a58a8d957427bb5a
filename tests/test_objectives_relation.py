"""Losses over pairs and triples, and those of hidden states and attention: batches, masks, degenerate sequences."""

import pytest
import torch
from objective_references import EXAMPLES, convert, inputs, leaves, reads

from llm_finetuner.errors import RecipeError
from llm_finetuner.objectives.relation import angle
from llm_finetuner.registry import OBJECTIVES, resolve
from llm_finetuner.sequences import Sequences, distances

RELATION = [  # positions against each other; hidden_nmse only counts them
    name for name in OBJECTIVES if reads(name)[-1] == "examples" and reads(name)[0] != "student_features"
]
OVER_PAIRS = [name for name in RELATION if name != "value_relation"]
BLIND_TO_SCALE = [
    "distance",
    "angle",
    "similarity",
    "token_relation",
    "cka",
    "hidden_cosine",
    "hidden_normalized",
]
FEATURE = [name for name in OBJECTIVES if reads(name)[0] != "student"]


def pick(arguments: list, where) -> list:
    return [{k: t[where] for k, t in a.items()} if isinstance(a, dict) else a[where] for a in arguments]


@pytest.mark.parametrize("name", RELATION)
def test_no_loss_depends_on_how_the_batch_was_made_up(name):
    fn, arguments = resolve(OBJECTIVES, name), inputs(name, {})
    whole = fn(*arguments)
    for example in EXAMPLES.unique().tolist():
        where = example == EXAMPLES
        alone = pick(arguments, where)
        loss = fn(*alone)
        assert torch.allclose(loss, whole[where], rtol=1e-12, atol=1e-15)
        alone_d = torch.autograd.grad(loss.sum(), leaves(arguments), allow_unused=True, retain_graph=True)
        whole_d = torch.autograd.grad(
            whole[where].sum(), leaves(arguments), allow_unused=True, retain_graph=True
        )
        for a, w in zip(alone_d, whole_d, strict=True):
            assert a is w is None or torch.allclose(a, w, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["attention_mse", "attention_kl"])
def test_padding_of_the_tokens_changes_no_loss_of_attention(name):
    fn, arguments = resolve(OBJECTIVES, name), inputs(name, {})
    wider = [torch.nn.functional.pad(a, (0, 4)) for a in arguments]
    assert torch.allclose(fn(*wider), fn(*arguments), rtol=1e-14)


@pytest.mark.parametrize("name", RELATION)
def test_a_sequence_of_one_position_has_no_loss_and_no_gradient(name):
    arguments = inputs(name, {})
    loss = resolve(OBJECTIVES, name)(*arguments)
    assert abs(loss[4].item()) < 1e-15
    for gradient in torch.autograd.grad(loss[4], leaves(arguments), allow_unused=True):
        assert gradient is None or gradient.abs().max() < 1e-15


def hidden_states(name: str, kind: str, dtype: torch.dtype) -> list:
    """What the objective reads, degenerate on both sides or on the student's."""
    arguments = inputs(name, {})

    def change(x: torch.Tensor) -> torch.Tensor:
        if kind == "large":
            return 1e4 * x
        if kind == "tiny":
            return 1e-12 * x
        return {"zero": 0 * x, "constant": 0 * x + 0.3, "twins": x[torch.arange(12) // 2]}[kind]

    changed = [
        {k: change(t) for k, t in a.items()} if isinstance(a, dict) else change(a) for a in arguments[:2]
    ]
    changed = convert(changed, dtype)
    for own in changed[0].values() if isinstance(changed[0], dict) else [changed[0]]:
        own.detach_().requires_grad_()
    return [*changed, *arguments[2:]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in FEATURE
        for kind in ("zero", "constant", "twins", "large", "tiny")
        if "attention" not in name or kind in ("zero", "twins")  # the others are no probabilities
    ],
)
@pytest.mark.parametrize("sides", ["both", "student"])
def test_degenerate_states_give_finite_losses_and_gradients(name, kind, sides):
    for dtype in (torch.float32, torch.bfloat16):
        arguments = hidden_states(name, kind, dtype)
        if sides == "student":
            arguments[1] = convert(inputs(name, {}), dtype)[1]
        loss = resolve(OBJECTIVES, name)(*arguments)
        assert loss.isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), leaves(arguments), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", BLIND_TO_SCALE)
def test_scale_of_the_states_changes_nothing(name):
    fn, (own, other, *rest) = resolve(OBJECTIVES, name), inputs(name, {})
    assert torch.allclose(fn(7 * own, other, *rest), fn(own, other, *rest), rtol=1e-11)
    assert torch.allclose(fn(own, 1e-3 * other, *rest), fn(own, other, *rest), rtol=1e-11)


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_a_rotated_teacher_is_the_same_teacher(name):
    fn, (own, other, examples) = resolve(OBJECTIVES, name), inputs(name, {})
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    assert torch.allclose(
        fn(own, other @ rotation, examples), fn(own, other, examples), rtol=1e-10, atol=1e-15
    )


@pytest.mark.parametrize("name", ["distance", "similarity", "token_relation"])
def test_losses_of_a_sequence_sum_to_positions_times_the_mean_over_its_pairs(name):
    own, other, examples = inputs(name, {})
    where = examples == 3
    relations = []
    for x in (own[where].detach(), other[where]):
        if name == "distance":
            apart = torch.cdist(x, x)
            relations.append(20 * apart / apart.sum())
        elif name == "similarity":
            relations.append(torch.nn.functional.normalize(x @ x.T))
        else:
            relations.append(torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1))
    error = torch.nn.functional.huber_loss if name == "distance" else torch.nn.functional.mse_loss
    mean = error(*relations, reduction="sum") / (25 if name == "similarity" else 20)
    assert torch.allclose(resolve(OBJECTIVES, name)(own, other, examples)[where].sum(), 5 * mean, rtol=1e-7)


@pytest.mark.parametrize("name", ["angle", "cka"])
def test_every_position_carries_its_sequences_mean(name):
    loss = resolve(OBJECTIVES, name)(*inputs(name, {}))
    for example in EXAMPLES.unique():
        assert loss[example == EXAMPLES].unique().numel() == 1


def test_distances_tell_twins_from_neighbours():
    torch.manual_seed(0)
    x = 100 + torch.randn(1, 6, 64)
    x[0, 1] = x[0, 0]
    x.requires_grad_()
    groups = Sequences(torch.zeros(6, dtype=torch.long))
    apart = distances(groups.center(x))
    want = (x[:, :, None] - x[:, None, :]).square().sum(-1).sqrt()
    assert apart[0, 0, 1] == 0 and torch.allclose(apart, want, rtol=1e-4)
    (gradient,) = torch.autograd.grad(apart[0, 0, 1], x)
    assert not gradient.any()


def test_what_rounding_cannot_tell_apart_counts_as_one_point():
    """The distance of near twins is noise, whose gradient would be of length 1 in a random direction."""
    torch.manual_seed(0)
    x = torch.randn(40, 64)
    x[1::2] = x[::2] + 1e-6 * torch.randn(20, 64)
    x.requires_grad_()
    apart = distances(x[None])[0]
    twins = apart.diagonal(1)[::2]
    assert not twins.any() and not torch.autograd.grad(twins.sum(), x)[0].any()
    assert apart.count_nonzero() == 40 * 38


def test_a_large_offset_that_all_positions_share_costs_no_precision():
    torch.manual_seed(0)
    own, other = torch.randn(30, 16), torch.randn(30, 16)
    examples = torch.zeros(30, dtype=torch.long)
    for name in ("distance", "angle", "cka"):
        fn = resolve(OBJECTIVES, name)
        far = 300 + own
        exact = fn(far.double(), other.double(), examples)
        assert torch.allclose(fn(far, other, examples).double(), exact, rtol=1e-4), name


def test_cka_of_states_that_do_not_vary_is_not_made_of_rounding():
    torch.manual_seed(0)
    examples = torch.arange(20).repeat_interleave(7)
    constant = torch.randn(20, 33).repeat_interleave(7, 0).requires_grad_()
    for own, other in (
        (constant, torch.randn(140, 9)),
        (torch.randn(140, 9).requires_grad_(), constant.detach()),
    ):
        loss = resolve(OBJECTIVES, "cka")(own, other, examples)
        assert not loss.any() and not torch.autograd.grad(loss.sum(), own)[0].any()


def test_angle_looks_at_the_chosen_positions_alone():
    torch.manual_seed(0)
    examples = torch.arange(3).repeat_interleave(torch.tensor([40, 7, 90]))
    own = torch.randn(137, 4, dtype=torch.float64, requires_grad=True)
    loss = angle(own, torch.randn(137, 6, dtype=torch.float64), examples, positions=10)
    for example, count in enumerate([10, 7, 10]):
        (gradient,) = torch.autograd.grad(loss[examples == example].sum(), own, retain_graph=True)
        used = gradient.abs().sum(-1) > 0
        assert int(used.sum()) == count and used[examples == example][[0, -1]].all()


def test_heads_that_cannot_be_compared_are_refused():
    for name in ("attention_mse", "attention_kl"):
        own, other = inputs(name, {"heads": "averaged"})
        with pytest.raises(RecipeError, match="heads: averaged"):
            resolve(OBJECTIVES, name)(own, other)


def test_relation_heads_must_divide_both_widths():
    arguments = inputs("value_relation", {})  # widths 8 and 12
    for heads in (8, 6):
        with pytest.raises(RecipeError, match="must divide the width of the value states"):
            resolve(OBJECTIVES, "value_relation")(*arguments, heads=heads)


def test_attention_of_a_student_that_rounds_to_zero_stays_finite():
    teacher = torch.tensor([[[0.5, 0.5, 0.0]]])
    scores = torch.tensor([[[0.0, -300.0, -torch.inf]]], requires_grad=True)
    loss = resolve(OBJECTIVES, "attention_kl")(scores.softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert loss > 40 and gradient.isfinite().all()


def test_half_precision_attention_that_misses_one_is_not_negative():
    torch.manual_seed(0)
    own, other = (torch.randn(50, 4, 300).softmax(-1).bfloat16() for _ in range(2))
    fn = resolve(OBJECTIVES, "attention_kl")
    assert fn(own, own).abs().max() < 1e-6 and fn(own, other).min() > 0
