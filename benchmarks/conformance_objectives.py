"""The rules on every objective, through one step of the product; float32 on the function that the registry names.

A probe is called with a Case and returns a Cell. Letters: n positions, V vocabulary, D width.
"""

import copy
import inspect
from dataclasses import dataclass

import conformance_reference as ref
import torch
from conformance_kinds import Kind, cached, full_kinds, renormalised, tail_error
from conformance_precision import precision
from conformance_rules import ABSENT, Cell, judged, worst, yes
from conformance_step import (
    HEADS,
    Bench,
    Gradient,
    Step,
    build_head,
    distance,
    equal,
    reference,
    size_of,
    step,
    with_adapter,
)  # fmt: skip
from torch import nn

from llm_finetuner.errors import RecipeError
from llm_finetuner.methods.on_policy import DIVERGENCES
from llm_finetuner.models.vocabulary import Vocabulary
from llm_finetuner.recipe import Recipe, Teacher
from llm_finetuner.registry import OBJECTIVES, resolve
from llm_finetuner.rollout import Rollout
from llm_finetuner.scheme import Term
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.across import Across
from llm_finetuner.teachers.live import Live
from llm_finetuner.terms import kind_of, reads

FLOAT16 = 2**-10  # what a cache keeps of hidden states
BFLOAT16 = 2**-8
TASK = CausalLM()
PROBED = [name for name, place in OBJECTIVES.items() if ".series:" not in place]


@dataclass
class Case:
    """An objective and what it is tried with. kind: labels, answers, sorted, pairs, spans or numbers."""

    bench: Bench
    name: str

    def __post_init__(self):
        term = Term(self.name)
        of = kind_of(term)
        if "targets" in reads(term):
            self.kind = "labels" if self.name == "cross_entropy" else "numbers"
        elif of == "logits":
            self.kind = "sorted" if self.name == "uld" else "answers"
        else:
            self.kind = "spans" if of == "spans" else "pairs"
        self.function = resolve(OBJECTIVES, self.name)
        self.heated = "temperature" in inspect.signature(self.function).parameters
        self.student, self.teacher = self.bench.student(), self.bench.teacher()

    @property
    def asks(self) -> bool:
        """Whether a teacher is compared with."""
        return self.kind not in ("labels", "numbers")

    def term(self, **options) -> dict:
        more = {"layers": ref.PAIRS} if self.kind == "pairs" and self.name != "embedding_mse" else {}
        return {self.name: {"weight": 1.0, **ref.EXTRA.get(self.name, {}), **more, **options}}

    def provide(self, model: nn.Module):
        """What stands in for the teacher in a run."""
        if self.kind not in ("sorted", "spans"):
            return model if self.asks else None
        ours = Vocabulary(self.bench.tokenizer)
        theirs = ours if self.kind == "sorted" else Vocabulary(self.bench.other_tokenizer())
        compare = "sorted" if self.kind == "sorted" else "shared"
        return Across(Live(TASK, model), ours, theirs, compare=compare)

    def run(self, rows="plain", student=None, teacher=None, **options) -> Step:
        """The product's gradient. Options of `step` by their names, all others are the objective's."""
        of_step = {key: options.pop(key) for key in ("size", "tokenizers") if key in options}
        given = self.provide(copy.deepcopy(teacher or self.teacher))
        rows = self.bench.rows(rows) if isinstance(rows, str) else rows
        return step(self.bench, student or self.student, given, rows, self.term(**options), **of_step)

    def want(self, rows="plain", student=None, teacher=None, temperature=1.0, columns=None) -> Gradient:
        """The reference's gradient; that of spans is the product's own over single rows."""
        student, teacher = student or self.student, copy.deepcopy(teacher or self.teacher)
        if self.kind == "labels":
            loss = ref.label_loss
        elif self.kind == "pairs":
            loss = ref.pair_loss(self.name, teacher)
        else:
            loss = ref.answer_loss(self.name, ref.heard(teacher), temperature, columns)
        return reference(student, self.bench.rows(rows), loss)


def shift(case: Case) -> Cell:
    if case.kind in ("numbers", "spans"):
        return ABSENT
    return judged(distance(case.run().gradient, case.want()))


def mask(case: Case) -> Cell:
    if case.kind in ("numbers", "spans"):
        return ABSENT
    return judged(distance(case.run("masked").gradient, case.want("masked")))


def denominator(case: Case) -> Cell:
    if case.kind == "numbers":
        return ABSENT
    want = case.run("masked", size=8).gradient if case.kind == "spans" else case.want("masked")
    return judged(worst(distance(case.run("masked", size=size).gradient, want) for size in (8, 4, 2, 1)))


def heat(case: Case) -> Cell:
    if not case.heated:
        return ABSENT
    return judged(
        worst(distance(case.run(temperature=t).gradient, case.want(temperature=t)) for t in (2.0, 4.0))
    )


def widths(case: Case) -> Cell:
    if case.kind != "answers":
        return ABSENT
    student, teacher = case.bench.student(5), case.bench.teacher(37)
    got = case.run(student=student, teacher=teacher, tokenizers=True).gradient
    return judged(distance(got, case.want(student=student, teacher=teacher, columns=case.bench.vocabulary)))


def tail(case: Case) -> Cell:
    if case.kind != "answers":
        return ABSENT
    rows, k = case.bench.rows(), 50
    provider = cached(case.bench, case.teacher, rows, k=k)
    want = case.want()
    got = step(case.bench, case.student, provider, rows, case.term()).gradient
    loss = ref.answer_loss(case.name, renormalised(ref.heard(case.teacher), k))
    error, other = distance(got, want), distance(reference(case.student, rows, loss), want)
    lost = tail_error(provider, case.teacher, rows, k)
    return judged(error, f"k={k}; renormalised {other:.2g}", other, and_also=lost < 0.01)


def frozen(case: Case) -> Cell:
    """The model itself is handed over, in training mode, and looked at afterwards."""
    if not case.asks:
        return ABSENT
    noisy = case.bench.teacher(dropout=0.5).train()
    before = copy.deepcopy(noisy.state_dict())
    got = step(case.bench, case.student, case.provide(noisy), case.bench.rows(), case.term()).gradient
    same = all(torch.equal(x, before[name]) for name, x in noisy.state_dict().items())
    still = all(p.grad is None for p in noisy.parameters())
    want = case.run().gradient if case.kind == "spans" else case.want()
    return judged(
        distance(got, want), "" if same and still else "its weights changed", and_also=same and still
    )


def heads(case: Case) -> Cell:
    if case.kind not in ("answers", "labels"):
        return ABSENT
    errors, vocabulary = {}, case.bench.vocabulary
    for kind in HEADS:
        models = {"student": build_head(kind, vocabulary, 1), "teacher": build_head(kind, vocabulary, 2)}
        errors[kind] = distance(case.run(**models).gradient, case.want(**models))
    adapted = with_adapter(build_head("biased (Phi)", vocabulary, 1))  # not tied
    errors["LoRA"] = distance(case.run(student=adapted).gradient, case.want(student=adapted))
    return judged(worst(errors.values()), f"worst: {max(errors, key=errors.get)}")


def end(case: Case) -> Cell:
    if case.kind in ("numbers", "spans"):
        return ABSENT
    return judged(distance(case.run("eos", size=4).gradient, case.want("eos")))


def zero(case: Case) -> Cell:
    bench, rows = case.bench, case.bench.rows("masked")
    plain = step(bench, case.student, None, rows, None, method="fine_tuning").gradient
    alone = step(
        bench, case.student, case.teacher, rows, None, method="vanilla_distillation", alpha=1.0
    ).gradient
    if case.kind == "labels":
        return yes(equal(alone, plain))
    if case.kind == "numbers":
        values = torch.randn(6, 5, dtype=torch.float64)
        return judged(float(case.function(values, values.clone()).abs().max()))
    if case.kind == "spans":  # equal tokenizers have no spans, so the function is asked
        values = -torch.rand(6, dtype=torch.float64)
        return judged(float(case.function(values, values.clone()).abs().max()))
    unweighted = {"cross_entropy": 1.0, **case.term(weight=0.0)}
    weightless = step(bench, case.student, case.provide(case.teacher), rows, unweighted).gradient
    others = rows.map(
        lambda row: {"labels": [x if x == -100 else (x + 1) % bench.vocabulary for x in row["labels"]]}
    )
    got = case.run("masked").gradient
    blind = equal(case.run(others).gradient, got)
    if case.kind == "pairs":  # of the student's own depth, so that blocks can be equal
        same = {"layers": [[0, 0], [1, 1]]} if case.name != "embedding_mse" else {}
        silent = case.run("masked", teacher=case.student, **same).gradient
    else:
        silent = case.run("masked", teacher=case.student).gradient
    exact = equal(weightless, plain)
    note = "" if exact and blind else "weight 0 is not plain fine-tuning" if blind else "labels are read"
    return judged(size_of(silent) / size_of(got), note, and_also=exact and blind)


def temperatures(case: Case) -> Cell:
    if case.name not in DIVERGENCES:
        return ABSENT
    bench, rows = case.bench, case.bench.rows("masked")

    def recipe(loss: float, sampling: float) -> Recipe:
        options = {
            "divergence": case.name,
            "temperature": loss,
            "sampling_temperature": sampling,
            "share": 1.0,
        }
        return Recipe("on_policy_distillation", {**options, "max_new_tokens": 12}, teacher=Teacher("t"))

    def texts(loss: float, sampling: float) -> list:
        rollout = Rollout(recipe(loss, sampling).scheme.on_policy, bench.tokenizer, 0, 128)
        return [row["input_ids"] for row in rollout(copy.deepcopy(case.student), [rows.to_list()], 1)[0]]

    base = texts(1.0, 1.0)
    apart = texts(3.0, 1.0) == base and texts(1.0, 0.3) != base
    options = {"method": "on_policy_distillation", "divergence": case.name, "share": 0.0, "tokenizers": True}
    hot, cold = (
        step(
            bench, case.student, case.teacher, rows, None, sampling_temperature=t, temperature=2.0, **options
        )
        for t in (1.0, 0.3)
    )
    return yes(apart and equal(hot.gradient, cold.gradient))


def agree(case: Case) -> Cell:
    """Caches hold hidden states in float16 by design, so only their answers are held to 1e-5."""
    if case.kind not in ("answers", "pairs"):
        return ABSENT
    rows = case.bench.rows()
    live, errors = case.run().gradient, {}
    kinds: list[Kind] = (
        full_kinds() if case.kind == "answers" else [k for k in full_kinds() if k.name == "ensemble of one"]
    )
    for kind in kinds:
        with kind.open(case.bench, case.teacher, rows) as provider:
            errors[kind.name] = distance(
                step(case.bench, case.student, provider, rows, case.term()).gradient, live
            )
    note = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    stored = set(reads(Term(case.name))) & {"student_features", "student_hidden"}
    if stored:
        provider = cached(case.bench, case.teacher, rows, mode="fp32", layers=[t for _, t in ref.PAIRS])
        student = copy.deepcopy(case.student).float()  # what is stored comes back as float32
        live = case.run(student=student, teacher=copy.deepcopy(case.teacher).float()).gradient
        error = distance(step(case.bench, student, provider, rows, case.term()).gradient, live)
        note += f", cached hidden states (float16) {error:.1e}"
        return judged(worst(errors.values()), note, and_also=error <= FLOAT16)
    return judged(worst(errors.values()), note)


def silent(case: Case) -> Cell:
    if case.kind == "numbers":
        return ABSENT
    heated = {"temperature": 3.0} if case.heated else {}
    warned = True
    if case.kind != "labels":
        objectives = {"cross_entropy": 1.0, case.name: {"weight": 0.0, **heated}}
        warned = bool(Recipe("distillation", {"objectives": objectives}, teacher=Teacher("t")).warnings())
    try:
        step(case.bench, case.student, case.provide(case.teacher), case.bench.rows(), case.term(nonsense=1))
        refused = False
    except RecipeError:
        refused = True
    return yes(warned and refused, "" if warned else "weight 0 with a temperature does not warn")


PROBES = {
    1: shift, 2: mask, 3: denominator, 4: heat, 5: precision, 6: widths, 7: tail, 8: frozen, 9: heads, 10: end,
    11: zero, 12: temperatures, 13: agree, 14: silent,
}  # fmt: skip
CHEAP = (1, 2, 4, 5, 8, 10, 11)  # what the tests repeat


def probe(bench: Bench, name: str, rules=tuple(PROBES)) -> dict[int, Cell]:
    case = Case(bench, name)
    return {number: PROBES[number](case) for number in rules}
