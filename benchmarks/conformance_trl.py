"""The same rules on the distillation losses of TRL (https://github.com/huggingface/trl), where it is installed.

Its trainers run one step over the same rows through their documented arguments, and the gradient is read before the
optimizer's step; where a trainer writes the texts itself, the reference is over the texts that it wrote.
Models are Llamas in float32, since its tiles and its left padding suit them; the reference is float64.
"""

import copy
import dataclasses
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import conformance_reference as ref
import torch
from conformance_rules import Cell, judged, worst, yes
from conformance_step import EOS, HEADS, Bench, Gradient, build_head, distance, reference, size_of
from conformance_trl_functions import default_collator, function_cells, kernel_cells
from conformance_trl_runs import Ran, model_of, run_distillation, run_gkd

INSTALL = 'python -m pip install -e ".[dev,benchmark]"'


def version() -> str | None:
    """The installed one, or None."""
    return importlib.metadata.version("trl") if importlib.util.find_spec("trl") else None


def error_of(ran: Ran, student, teacher, temperature: float = 1.0, free: bool = False) -> float:
    """free: up to a factor, the one that brings the gradient nearest to the reference."""
    teacher = copy.deepcopy(teacher).double()
    loss = ref.answer_loss("forward_kl", ref.heard(teacher), temperature)
    want = reference(copy.deepcopy(student).double(), ran.rows, loss)
    got = {name: g.double() for name, g in ran.gradient.items()}
    factor = factor_of(got, want) if free else 1.0
    return distance({name: g / factor for name, g in got.items()}, want)


def factor_of(got: Gradient, want: Gradient) -> float:
    return float(
        sum((got[n] * g).sum() for n, g in want.items()) / sum(g.square().sum() for g in want.values())
    )


@dataclass
class Subject:
    """A trainer of TRL. run: (student, teacher, size, kind of rows, options) -> Ran. heated: T -> options."""

    name: str
    run: Callable[..., Ran]
    bench: Bench
    heated: Callable[[float], dict] | None
    writes: bool  # its own texts
    free: bool = False  # its factor is looked at in rule 3 alone

    def error(
        self, kind: str = "plain", size: int = 8, models=None, heat: float = 1.0, free: bool | None = None
    ) -> float:
        """heat: the loss's temperature."""
        student, teacher = models or (model_of(self.bench, 1), model_of(self.bench, 2))
        options = self.heated(heat) if self.heated else {}
        ran = self.run(student, teacher, size, kind, **options)
        return error_of(ran, student, teacher, heat, self.free if free is None else free)


def denominator(subject: Subject) -> Cell:
    """Where the factor is another one, it is told for the whole batch, beside that of the counts of tokens."""
    bench = subject.bench
    apart = {size: subject.error("masked", size, free=False) for size in (8, 4, 2, 1)}
    note = "error as " + ", ".join(f"{size} x {8 // size}: {error:.2g}" for size, error in apart.items())
    if subject.free:
        student, teacher = model_of(bench, 1), model_of(bench, 2)
        ran = subject.run(student, teacher, 8, "masked")
        loss = ref.answer_loss("forward_kl", ref.heard(copy.deepcopy(teacher).double()))
        factor = factor_of(ran.gradient, reference(copy.deepcopy(student).double(), ran.rows, loss))
        written, given = (
            sum(x != -100 for row in rows for x in row["labels"][1:])
            for rows in (ran.rows, bench.rows("masked"))
        )
        note += (
            f"; as 8 x 1 the gradient is {factor:.4f} of the reference's, and {written} tokens written over "
        )
        note += f"{given} labels of the data are {written / given:.4f}"
    return judged(worst(apart.values()), note)


def trainer_cells(subject: Subject) -> dict[int, Cell]:
    cells = {
        1: judged(subject.error()),
        2: judged(subject.error("masked")),
        3: denominator(subject),
        6: refused(subject),
        8: calm(subject),
        9: all_heads(subject),
        11: nothing(subject),
    }
    if subject.heated:
        found = {t: subject.error(heat=t) for t in (2.0, 4.0)}
        cells[4] = judged(worst(found.values()), ", ".join(f"T={t:g}: {e:.2f}" for t, e in found.items()))
    if not subject.writes:
        cells[10] = judged(subject.error("eos", 4), "rows with labels of our own")
    else:
        cells[10] = ends(subject)
    return cells


def refused(subject: Subject) -> Cell:
    bench = subject.bench
    try:
        subject.run(model_of(bench, 1, 5), model_of(bench, 2, 37), 8, "plain")
    except ValueError as error:
        return Cell("refused", None, str(error).split(". ")[0])
    return Cell("fail", None, "widths that differ are neither masked nor refused")


def calm(subject: Subject) -> Cell:
    bench = subject.bench
    student, noisy = model_of(bench, 1), model_of(bench, 2, dropout=0.5).train()
    before = copy.deepcopy(noisy.state_dict())
    ran = subject.run(student, noisy, 8, "plain")
    still = all(torch.equal(x, before[name]) for name, x in noisy.state_dict().items())
    return judged(
        error_of(ran, student, noisy, free=subject.free),
        "" if still else "its weights changed",
        and_also=still,
    )


def all_heads(subject: Subject) -> Cell:
    errors, vocabulary = {}, subject.bench.vocabulary
    for kind in HEADS:
        errors[kind] = subject.error(models=[build_head(kind, vocabulary, seed).float() for seed in (1, 2)])
    return judged(worst(errors.values()), ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items()))


def nothing(subject: Subject) -> Cell:
    student = model_of(subject.bench, 1)
    silent = subject.run(student, copy.deepcopy(student), 8, "plain").gradient
    other = subject.run(student, model_of(subject.bench, 2), 8, "plain").gradient
    return judged(size_of(silent) / size_of(other))


def ends(subject: Subject) -> Cell:
    """A student that ends its texts soon, so that some end in EOS, which is the padding too."""
    models = [build_head("biased (Phi)", subject.bench.vocabulary, seed).float() for seed in (1, 2)]
    models[0].lm_head.bias.data[EOS] = 6.0
    ran = subject.run(*models, 8, "plain")
    ended = sum(row["input_ids"][-1] == EOS and row["labels"][-1] == EOS for row in ran.rows)
    error = error_of(ran, *models, free=subject.free)
    return judged(error, f"{ended} of {len(ran.rows)} texts end in an EOS that counts", and_also=ended > 0)


def subjects(bench: Bench) -> list[Subject]:
    def data(student, teacher, size, kind, **options) -> Ran:
        return run_gkd(bench, student, teacher, bench.rows(kind), size, **options)

    def own_texts(student, teacher, size, kind, **options) -> Ran:
        return run_gkd(bench, student, teacher, bench.rows("masked"), size, share=1.0, **options)

    def distillation(student, teacher, size, kind, **options) -> Ran:
        return run_distillation(bench, student, teacher, size, **options)

    return [
        Subject("GKDTrainer, data (lmbda=0)", data, bench, None, False),
        Subject("GKDTrainer, on-policy (lmbda=1)", own_texts, bench, None, True, free=True),
        Subject("DistillationTrainer", distillation, bench, lambda t: {"temperature": t}, True),
    ]


def one_temperature() -> Cell:
    from trl import DistillationConfig

    names = [field.name for field in dataclasses.fields(DistillationConfig) if "temperature" in field.name]
    told = f"settings with temperature in the name: {', '.join(names)}, documented as of sampling and of the loss"
    return yes(len(names) > 1, told)


def probe(bench: Bench) -> dict[str, dict[int, Cell]]:
    """Every subject's cells by rule."""
    found = {"generalized_jsd_loss": function_cells(bench), "ChunkedDivergenceFunction": kernel_cells(bench)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for subject in subjects(bench):
            found[subject.name] = trainer_cells(subject)
        own = default_collator(bench)
    data = found["GKDTrainer, data (lmbda=0)"]
    data[10] = Cell(own.verdict, data[10].error, own.note) if data[10].verdict == "pass" else data[10]
    found["DistillationTrainer"][12] = one_temperature()
    return found
