"""The rules on every kind of teacher, with forward KL at temperature 2 unless a rule says otherwise."""

import copy
from dataclasses import dataclass

import conformance_reference as ref
import torch
from conformance_kinds import KINDS, K, Kind, alone, renormalised, tail_error
from conformance_rules import ABSENT, Cell, judged, worst, yes
from conformance_step import HEADS, Bench, Gradient, build_head, distance, reference, size_of, step
from torch import nn

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.recipe import Recipe, Teacher


@dataclass
class Case:
    bench: Bench
    kind: Kind

    def __post_init__(self):
        self.student, self.teacher = self.bench.student(), self.bench.teacher()

    def pair(
        self,
        rows: str = "plain",
        model=None,
        student=None,
        size: int = 8,
        temperature: float = 2.0,
        columns=None,
    ) -> tuple[Gradient, Gradient]:
        """The product's gradient and the reference's."""
        student, table = student or self.student, self.bench.rows(rows)
        model = copy.deepcopy(model or self.teacher)
        with self.kind.open(self.bench, model, table, student) as provider:
            term = {"forward_kl": {"weight": 1.0, "temperature": temperature}}
            got = step(self.bench, student, provider, table, term, size=size, tokenizers=True).gradient
            answer = self.kind.answer(self.bench, model, provider)
            return got, reference(student, table, ref.answer_loss("forward_kl", answer, temperature, columns))

    def error(self, *args, **changes) -> float:
        got, want = self.pair(*args, **changes)
        return distance(got, want)


def shift(case: Case) -> Cell:
    """Lossy answers are compared with themselves, so their best token must be the live one's too."""
    error = case.error()
    if case.kind.exact:
        return judged(error)
    rows = case.bench.rows()
    with case.kind.open(case.bench, case.teacher, rows) as provider:
        same = []
        for row in rows:
            at = list(range(len(row["input_ids"]) - 1))
            told, want = alone(provider, row["input_ids"], at), ref.heard(case.teacher)(row["input_ids"], at)
            same += (told.argmax(-1) == want.argmax(-1)).tolist()
    share = sum(same) / len(same)
    return judged(error, f"best token as live at {share:.0%}", and_also=share > 0.9)


def mask(case: Case) -> Cell:
    return judged(case.error("masked"))


def denominator(case: Case) -> Cell:
    return judged(worst(case.error("masked", size=size) for size in (8, 4, 2, 1)))


def heat(case: Case) -> Cell:
    return judged(worst(case.error(temperature=t) for t in (2.0, 4.0)))


def precision(case: Case) -> Cell:
    """A head in bfloat16: its answers as log-probabilities sum to 1 as float32 does, and stay finite at 1e4."""
    rows, bench = case.bench.rows(), case.bench
    model = bench.teacher().bfloat16()
    with case.kind.open(bench, model, rows) as provider:
        errors = []
        for row in rows:
            ids = row["input_ids"]
            at = list(range(len(ids) - 1))
            told = alone(provider, ids, at)
            want = case.kind.answer(bench, model, provider)(ids, at)
            errors.append((torch.softmax(told, -1) - torch.softmax(want, -1)).abs().max())
    sharp = bench.teacher()
    sharp.transformer.ln_f.weight.data *= 1e4
    got = step_with(case, sharp)
    finite = all(bool(g.isfinite().all()) for g in got.values())
    return judged(worst(errors), "" if finite else "not finite at logits of 1e4", and_also=finite)


def step_with(case: Case, model: nn.Module) -> Gradient:
    rows = case.bench.rows()
    with case.kind.open(case.bench, model, rows) as provider:
        return step(case.bench, case.student, provider, rows, {"forward_kl": 1.0}, tokenizers=True).gradient


def widths(case: Case) -> Cell:
    if case.kind.registered == "average":
        return ABSENT  # the student's own weights
    student, teacher = case.bench.student(5), case.bench.teacher(37)
    try:
        return judged(case.error(model=teacher, student=student, columns=case.bench.vocabulary))
    except ModelError as error:
        return Cell("refused", None, error.what)


def tail(case: Case) -> Cell:
    if case.kind.exact:
        return ABSENT
    rows = case.bench.rows()
    with case.kind.open(case.bench, case.teacher, rows) as provider:
        got = step(case.bench, case.student, provider, rows, {"forward_kl": 1.0}, tokenizers=True).gradient
        lost = tail_error(provider, case.teacher, rows, K)
    whole = ref.heard(case.teacher)
    want, cut = (
        reference(case.student, rows, ref.answer_loss("forward_kl", answer))
        for answer in (whole, renormalised(whole, K))
    )
    error, other = distance(got, want), distance(cut, want)
    return judged(error, f"k={K}; renormalised {other:.2g}", other, and_also=lost < 0.01)


def frozen(case: Case) -> Cell:
    if case.kind.registered in ("cached", "remote"):
        return ABSENT  # no model in the process that trains
    noisy = case.bench.teacher(dropout=0.5).train()
    rows = case.bench.rows()
    with case.kind.open(case.bench, noisy, rows) as provider:
        before = [p.detach().clone() for p in noisy.parameters()]
        got = step(case.bench, case.student, provider, rows, {"forward_kl": 1.0}, tokenizers=True).gradient
        still = all(torch.equal(a, b) for a, b in zip(before, noisy.parameters(), strict=True))
        answer = case.kind.answer(case.bench, copy.deepcopy(noisy), provider)
        want = reference(case.student, rows, ref.answer_loss("forward_kl", answer))
    return judged(distance(got, want), "" if still else "its weights changed", and_also=still)


def heads(case: Case) -> Cell:
    errors = {kind: case.error(model=build_head(kind, case.bench.vocabulary, 2)) for kind in HEADS}
    return judged(worst(errors.values()), f"worst: {max(errors, key=errors.get)}")


def end(case: Case) -> Cell:
    return judged(case.error("eos", size=4))


def zero(case: Case) -> Cell:
    """Answers of float32 or of few bits differ from the student's by that much, so only exact teachers are asked."""
    if not case.kind.exact or case.kind.members:
        return ABSENT
    return judged(size_of(case.pair(model=case.student)[0]) / size_of(case.pair()[0]))


def agree(case: Case) -> Cell:
    """Against the live teacher, for the kinds that ought to be it."""
    if not case.kind.exact or case.kind.members:
        return ABSENT
    live = next(kind for kind in KINDS if kind.name == "live")
    return judged(distance(case.pair()[0], Case(case.bench, live).pair()[0]))


def silent(case: Case) -> Cell:
    if case.kind.registered == "average":
        warns = Recipe("self_distillation", {"by": "average", "alpha": 1.0, "temperature": 3.0}).warnings()
    else:
        warns = Recipe("vanilla_distillation", {"alpha": 1.0}, teacher=spec_of(case.kind)).warnings()
    try:
        spec = spec_of(case.kind)
        Recipe(
            "vanilla_distillation",
            teacher=Teacher("t", kind=spec.kind, options={**spec.options, "nonsense": 1}),
        )
        refused = False
    except RecipeError:
        refused = True
    return yes(bool(warns) and refused, "" if warns else "alpha = 1 does not warn")


def spec_of(kind: Kind) -> Teacher:
    options = {"members": ["a", "b"]} if kind.registered == "ensemble" else {}
    return Teacher("t", kind=kind.registered, options=options)


PROBES = {
    1: shift, 2: mask, 3: denominator, 4: heat, 5: precision, 6: widths, 7: tail, 8: frozen, 9: heads, 10: end,
    11: zero, 12: lambda case: ABSENT, 13: agree, 14: silent,
}  # fmt: skip


def probe(bench: Bench, kind: Kind, rules=tuple(PROBES)) -> dict[int, Cell]:
    case = Case(bench, kind)
    return {number: PROBES[number](case) for number in rules}
