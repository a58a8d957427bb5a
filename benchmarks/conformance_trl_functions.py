"""The rules on the functions of TRL that compute its losses, and on the collator of one of its trainers."""

import copy

import conformance_reference as ref
import torch
from conformance_rules import Cell, judged, worst, yes
from conformance_step import Bench
from torch import Tensor

BFLOAT16 = 2**-8  # one rounding


def function_cells(bench: Bench) -> dict[int, Cell]:
    """GKDTrainer.generalized_jsd_loss on logits, beta = 0 unless named."""
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 9, 40) * 3
    labels = torch.randint(0, 40, (3, 9))
    labels[0, :4], labels[1, 6:] = -100, -100
    on = labels != -100

    def slope(own: Tensor, told: Tensor, **options) -> tuple[Tensor, Tensor]:
        own = own.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(own, told, labels=labels, **{"beta": 0.0, **options})
        return loss.detach(), torch.autograd.grad(loss, own)[0]

    def wanted(
        own: Tensor, told: Tensor, name: str = "forward_kl", temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        own = own.double().clone().requires_grad_()
        q, p = (torch.softmax(z.double()[on] / temperature, -1) for z in (own, told))
        loss = temperature**2 * ref.ANSWERS[name](p, q).sum() / on.sum()
        return loss.detach(), torch.autograd.grad(loss, own)[0]

    def apart(got: Tensor, want: Tensor) -> float:
        return float((got - want).abs().max() / want.abs().max())

    heat = {
        t: apart(slope(student, teacher, temperature=t)[1], wanted(student, teacher, temperature=t)[1])
        for t in (2.0, 4.0)
    }
    low = [x.bfloat16() for x in (student, teacher)]
    loss, slopes = zip(slope(*low), wanted(*low), strict=True)
    error, bent = apart(loss[0].double(), loss[1]), apart(slopes[0].double(), slopes[1])
    sure = torch.eye(9, 40).expand(3, 9, 40) * 1e4
    masked = torch.cat([torch.zeros(3, 9, 36), torch.full((3, 9, 4), -torch.inf)], -1)
    finite = {
        "logits of 1e4": slope(sure, sure.flip(1)),
        "columns of -inf on both sides": slope(student + masked, teacher + masked),
    }
    broken = [name for name, found in finite.items() if not all(bool(x.isfinite().all()) for x in found)]
    with torch.autocast("cpu", torch.bfloat16):
        eased = apart(slope(*low)[0].double(), loss[1])
    note = f"bfloat16 logits: loss off by {error:.1e}, gradient by {bent:.1e}; under CPU autocast loss by {eased:.1e}"
    note += f"; NaN at {' and '.join(broken)}" if broken else ""
    mixed = worst(
        apart(slope(student, teacher, beta=beta)[1], wanted(student, teacher, name)[1])
        for beta, name in ((0.0, "forward_kl"), (0.5, "jsd"), (1.0, "reverse_kl"))
    )
    same = slope(student, student)[1].abs().max() / slope(student, teacher)[1].abs().max()
    return {
        2: judged(mixed, "beta 0, .5 and 1"),
        4: judged(worst(heat.values()), ", ".join(f"T={t:g}: {e:.2f}" for t, e in heat.items())),
        5: judged(error, note, and_also=bent <= BFLOAT16 and not broken),
        11: judged(float(same)),
    }


def kernel_cells(bench: Bench) -> dict[int, Cell]:
    """ChunkedDivergenceFunction, the tiles of DistillationTrainer, on hidden states and heads."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    torch.manual_seed(0)
    hidden, other = torch.randn(2, 20, 16)
    head, head_t = torch.randn(2, 40, 16)

    def slope(own, weight, told, weight_t, beta=0.0, temperature=1.0):
        own = own.clone().requires_grad_()
        loss = ChunkedDivergenceFunction.apply(own, weight, None, told, weight_t, None, beta, temperature)[0]
        return loss.detach(), torch.autograd.grad(loss.mean(), own)[0]

    def wanted(own, weight, told, weight_t, name="forward_kl", temperature=1.0):
        own = own.double().clone().requires_grad_()
        q, p = (
            torch.softmax(x @ w.double().T / temperature, -1)
            for x, w in ((own, weight), (told.double(), weight_t))
        )
        loss = temperature**2 * ref.ANSWERS[name](p, q)
        return loss.detach(), torch.autograd.grad(loss.mean(), own)[0]

    def apart(got, want) -> float:
        return float((got.double() - want).abs().max() / want.abs().max())

    given = (hidden, head, other, head_t)
    heat = {t: apart(slope(*given, temperature=t)[1], wanted(*given, temperature=t)[1]) for t in (2.0, 4.0)}
    low = [x.bfloat16() for x in given]
    loss, slopes = zip(slope(*low), wanted(*low), strict=True)
    error, bent = apart(loss[0], loss[1]), apart(slopes[0], slopes[1])
    extreme = {beta: slope(hidden * 1e3, head, other * 1e3, head_t, beta) for beta in (0.0, 0.5, 1.0)}
    broken = [
        f"beta={beta:g}"
        for beta, found in extreme.items()
        if not all(bool(x.isfinite().all()) for x in found)
    ]
    mixed = worst(
        apart(slope(*given, beta)[1], wanted(*given, name)[1])
        for beta, name in ((0.0, "forward_kl"), (0.5, "jsd"), (1.0, "reverse_kl"))
    )
    note = f"bfloat16 states and head: loss off by {error:.1e}, gradient by {bent:.1e}; "
    note += f"gradients for beta 0, .5 and 1 in float32 by {mixed:.1e}"
    note += f"; not finite at logits of some 1e4 with {', '.join(broken)}" if broken else ""
    same = slope(hidden, head, hidden, head)[1].abs().max() / slope(*given)[1].abs().max()
    return {
        4: judged(worst(heat.values()), ", ".join(f"T={t:g}: {e:.2f}" for t, e in heat.items())),
        5: judged(error, note, and_also=bent <= BFLOAT16 and not broken),
        11: judged(float(same)),
    }


def default_collator(bench: Bench) -> Cell:
    """GKDTrainer's own collator on a chat whose template ends in EOS, with pad == EOS."""
    from trl.experimental.utils import DataCollatorForChatML

    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} "
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chats = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": tell}]}
        for ask, tell in (("the dog sees", "a red house ."), ("the", "blue bird"))
    ]
    batch = DataCollatorForChatML(tokenizer=tokenizer, max_length=64)(chats)
    counted = (batch["labels"] == tokenizer.eos_token_id).sum(1)
    return yes(bool((counted == 1).all()), f"its collator counts {counted.tolist()} EOS of [1, 1]")
