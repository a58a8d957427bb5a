"""Losses between attention maps, or between the queries, keys and values that make them, of one pair of blocks.

Shapes: N positions that count, H heads, T tokens of the sequence (padded), D width of all heads side by side,
B sequences, L positions of the longest.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_finetuner.errors import RecipeError
from llm_finetuner.log_space import LOG_TINY, kl
from llm_finetuner.output import at_least_float32
from llm_finetuner.ranges import check_count
from llm_finetuner.sequences import Sequences, inner

STATES = ("query", "key", "value")


def attention_mse(student_attention: Tensor, teacher_attention: Tensor, *, heads: str = "matched") -> Tensor:
    """Squared error of the attention probabilities: [N, H, T], [N, H', T] -> [N]; compare TinyBERT (arXiv 1909.10351).

    Summed over the tokens looked at and averaged over the heads: a mean over T would fall with the batch's padding.
    heads: "matched" compares head by head, "averaged" the means over the heads. Raises RecipeError.
    """
    own, other = _compared(student_attention, teacher_attention, heads)
    return (own - other).square().sum(-1).mean(-1)


def attention_kl(student_attention: Tensor, teacher_attention: Tensor, *, heads: str = "matched") -> Tensor:
    """KL(teacher || student) of each row of attention in nats, averaged over the heads: [N, H, T], [N, H', T] -> [N].

    sum(p log(p / q) - p + q), which is the KL where both sum to 1 and stays at least 0 where half precision makes
    them miss it. Tokens that the teacher does not look at (the causal mask) add no logarithm. heads: as in
    attention_mse.
    """
    own, other = _compared(student_attention, teacher_attention, heads)
    seen = other > 0
    tiny = math.exp(LOG_TINY)  # what the student's softmax rounds to 0
    log_ratio = torch.where(seen, other, 1).log() - torch.where(seen, own.clamp(min=tiny), 1).log()
    return (other * log_ratio - other + own).sum(-1).mean(-1)


def _compared(student: Tensor, teacher: Tensor, heads: str) -> tuple[Tensor, Tensor]:
    """Both with the same number of heads."""
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if heads == "averaged":
        return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    if heads != "matched":
        raise RecipeError(f"heads must be 'matched' or 'averaged', got {heads!r}")
    if student.shape[1] != teacher.shape[1]:
        raise RecipeError(
            f"heads: matched needs as many heads in both, the student has {student.shape[1]}, "
            f"the teacher {teacher.shape[1]}",
            "set heads: averaged to compare the means over the heads",
        )
    return student, teacher


def value_relation(
    student_states: dict[str, Tensor],
    teacher_states: dict[str, Tensor],
    examples: Tensor,
    *,
    of: Sequence[str] = ("value",),
    heads: int = 1,
) -> Tensor:
    """KL(teacher || student) of how states relate within a sequence, MiniLM (arXiv 2002.10957): -> [N], nats.

    The relation of a position is softmax(x_i . x_j / sqrt(d)) over all counted positions j of its sequence: later ones
    too, also in causal models. Prompts that do not count are no part of it. of: any of query, key and value, whose
    losses are averaged. heads: relation heads that every state [N, D] is cut into, whatever its own number of heads
    (MiniLMv2, arXiv 2012.15828, takes 48 for a width of 768). Raises RecipeError.
    """
    check_count("heads", heads, 1)
    if isinstance(of, str) or not of or len(set(of)) < len(of) or not set(of) <= set(STATES):
        raise RecipeError(f"of must be a list of any of {', '.join(STATES)}, each once, got {of!r}")
    groups = Sequences(examples)
    rows = [
        kl(_relation(groups, teacher_states[name], heads, name), _relation(groups, student_states[name], heads, name))
        for name in of
    ]  # fmt: skip
    return groups.spread(torch.stack(rows).mean((0, 2)))  # [states, B, heads, L] -> [B, L] -> [N]


def _relation(groups: Sequences, states: Tensor, heads: int, name: str) -> Tensor:
    """Log-probabilities [B, heads, L, L]; -inf for columns that a shorter sequence does not have."""
    width = states.shape[-1]
    if width % heads:
        raise RecipeError(
            f"heads must divide the width of the {name} states of both models: {width} is not a multiple of {heads}",
            f"the largest that fits {width} and is below {heads}: {math.gcd(width, heads)}",
        )
    x = groups.pad(states).unflatten(-1, (heads, width // heads)).transpose(1, 2)
    scores = inner(x, x) / math.sqrt(width // heads)
    return scores.masked_fill(~groups.mask[:, None, None, :], -math.inf).log_softmax(-1)
