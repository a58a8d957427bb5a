"""The rules that a distillation loss has to keep, in plain words, how each is probed, and what a probe says."""

import math
from dataclasses import dataclass

LIMIT = 1e-5  # relative gradient error that passes, where no other is named


@dataclass(frozen=True)
class Rule:
    """`name` heads a column; `words` is the rule; `probe` says how it is tried on ours."""

    name: str
    words: str
    probe: str


RULES = {
    1: Rule(
        "shift",
        "Position t predicts token t + 1: the logits before a token meet that token's label and its mask.",
        "Rows in which every token counts, as one batch, against the row-by-row reference.",
    ),
    2: Rule(
        "mask",
        "Padding, prompts and ignored labels count in no term.",
        "Rows with a prompt and a hole that do not count, and with padding written into them.",
    ),
    3: Rule(
        "one denominator",
        "A term is a sum over the positions that count, divided once by their number in the whole optimizer step.",
        "The same 8 rows of unequal length as 8 x 1, 4 x 2, 2 x 4 and 1 x 8 (batch x accumulation); the worst counts.",
    ),
    4: Rule(
        "T^2",
        "The factor T^2 is on the loss that is differentiated, so that a temperature does not shrink the gradient.",
        "Temperatures 2 and 4; the worst counts. A missing factor is an error of 1 - 1/T^2: .75 and .94.",
    ),
    5: Rule(
        "float32",
        "Softmax, divergences and mixtures are in float32 log space whatever the model's dtype, and stay finite.",
        "The loss of bfloat16 inputs against float64 of the same numbers (shown), its gradient to one rounding of "
        "bfloat16 (2^-8), and finite losses and gradients at inputs of 1e4 and columns of -inf.",
    ),
    6: Rule(
        "vocabulary",
        "Vocabularies are compared by token: columns that only pad a model's width are masked on both sides.",
        "A student with 5 and a teacher with 37 columns more than there are tokens.",
    ),
    7: Rule(
        "tail",
        "Top-k answers keep the mass of what the k best leave over; it is never renormalised away.",
        "The k best of a nearly flat teacher: the gradient against that of the whole distribution (shown). It passes "
        "where it is nearer than the gradient of the k best renormalised, and the tail's mass is right to 1 %.",
    ),
    8: Rule(
        "teacher",
        "The teacher is in eval mode, without dropout and gradients, and the optimizer never moves it.",
        "A teacher handed over in training mode with dropout .5 and trainable weights: the gradient of the calm "
        "one, and its weights bit for bit as they were.",
    ),
    9: Rule(
        "heads",
        "What a family does to its logits (soft-cap, scale, bias, tying) and an adapter on the head are honoured.",
        "Heads as in Gemma 2, Cohere, Granite, Phi and tied Llama on both sides, LoRA on the student's; the worst "
        "counts.",
    ),
    10: Rule(
        "EOS",
        "Where padding and end of text are one token, a real end of text still counts, so that students learn to stop.",
        "Rows that end in EOS, padded with the same token.",
    ),
    11: Rule(
        "zero",
        "A teacher equal to the student teaches nothing; weight 0 is exactly plain fine-tuning; without "
        "cross-entropy the labels' values are not read.",
        "The largest gradient with teacher = student over that with another teacher (shown), and two equalities "
        "bit for bit.",
    ),
    12: Rule(
        "temperatures",
        "The temperature of sampling and that of the loss are two settings.",
        "On-policy: the loss temperature leaves the student's texts as they are, the sampling temperature changes "
        "them, and where nothing is sampled it leaves the gradient bit for bit as it is.",
    ),
    13: Rule(
        "teachers agree",
        "A live teacher, its full cache, its endpoint and an ensemble of it alone give the same loss.",
        "The gradient of each against that of the live one; the worst counts.",
    ),
    14: Rule(
        "no silent settings",
        "Settings without effect warn; options that do not exist are refused.",
        "A term of weight 0 beside cross-entropy warns, and so does a teacher with alpha = 1; an unknown option is "
        "an error.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a probe found. error: relative, of the gradient unless the rule says otherwise; None: yes or no only."""

    verdict: str  # "pass", "fail", or "-" where the rule does not apply
    error: float | None = None
    note: str = ""


ABSENT = Cell("-")


def judged(error: float, note: str = "", limit: float = LIMIT, and_also: bool = True) -> Cell:
    """pass where the error is within the limit and what else had to hold does; NaN fails."""
    return Cell("pass" if error <= limit and and_also else "fail", error, note)


def yes(held: bool, note: str = "") -> Cell:
    return Cell("pass" if held else "fail", None, note)


def worst(errors) -> float:
    """The largest; NaN and infinity win."""
    errors = [float(error) for error in errors]
    return math.inf if any(error != error for error in errors) else max(errors)
