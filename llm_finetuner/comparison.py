"""Did it pay? Trains the baselines, gathers the models that a verdict compares, and writes the report."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_finetuner import share
from llm_finetuner.assembly import Parts, fit_length
from llm_finetuner.benchmark import text
from llm_finetuner.benchmark.speed import cost_ratio
from llm_finetuner.benchmark.verdict import Entry, verdict
from llm_finetuner.checks import common_vocabulary, read_alike
from llm_finetuner.data.columns import evenly
from llm_finetuner.engine import default_device
from llm_finetuner.errors import OrderError
from llm_finetuner.finished import Finished, check_comparable, named
from llm_finetuner.named_models import begin, cut, load_student, load_teacher, made_here, redrawn
from llm_finetuner.recipe import Recipe, with_method
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.report.write import write
from llm_finetuner.seeds import by_seed
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teaching import measured_teacher, role_of
from llm_finetuner.trainer import OnEvent, fit
from llm_finetuner.tuning.tuned import Tuned

SAMPLES = 32  # prompts that completions are generated for
OWN_TOKENS = (
    "the teacher cuts the texts into other tokens than the student: tokens a second, and the compute of a step, are "
    "counted in each model's own"
)


@dataclass
class Subject:
    """A finished run and what it is compared on."""

    recipe: Recipe
    parts: Parts  # the trained student, the teacher, and the rows it was trained on
    tokenizer: Any
    untouched: Callable[[Recipe], nn.Module]
    rows: Any  # held-out rows, prepared
    history: list[dict]

    def begun(self, recipe: Recipe) -> nn.Module:
        """The student before training; alone, one that was begun with its teacher's weights has others of its shape."""
        if self.recipe.inherits and not recipe.inherits:
            return redrawn(self.parts.tuned.model, recipe.train.seed)
        own = replace(self.recipe.train, seed=recipe.train.seed)
        return self.untouched(replace(self.recipe, train=own))  # a part of the teacher needs to know it


def compare(
    subject: Subject,
    prompts: Sequence[str] | text.References,
    references: Sequence[str] | None,
    *,
    baseline: bool = False,
    seeds: int = 1,
    on_event: OnEvent | None = None,
    name: str | None = None,
    others: Sequence[tuple[Entry, list[dict]]] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge the run and write report.html, report.md and metrics.json into its folder.

    baseline: also train the student without the teacher, for the same steps and for the same compute; of forecasters
    that is always done, for the same steps. seeds: as many pairs of runs with and without the teacher. name: of the run
    in the table, where `others` have other students; by default that of its method. others: further entries of the
    table with their histories. Returns the verdict (see benchmark/verdict.py).
    """
    recipe, parts = subject.recipe, subject.parts
    task = resolve(TASKS, recipe.task)()
    baseline = baseline or task.numbers or seeds > 1
    folder, steps = Path(recipe.output), subject.history[-1]["step"]
    seconds = sum(record["seconds"] for record in subject.history)
    role = role_of(recipe)
    distils = role == "distilled"
    of = name  # the other runs have other students
    name = name or ("the plain run" if recipe.distils and not distils else recipe.method.replace("_", " "))
    histories = {name: subject.history}
    entries = []
    device, warnings = parts.tuned.model.device, list(warnings)
    teacher = measured_teacher(recipe, parts.teacher, task, parts.train, device)
    if baseline and distils and not task.numbers and not _counted(recipe, teacher):
        warnings.append(
            "compute is compared by the seconds of the steps: writing texts or a cache beforehand is not in them"
        )
    if teacher is not None:
        where = _folder(recipe.teacher.name) if recipe.teacher else None
        reader = _reader(subject, task, teacher)
        entries.append(Entry("teacher", "teacher", teacher, subject.tokenizer, where, reader=reader))
        warnings += [] if reader is None else [OWN_TOKENS]
    elif recipe.distils and recipe.scheme.teacher == "given":
        warnings.append(
            "the teacher is not loaded here (a cache, an endpoint or several models): the table has no line for it, so "
            "nobody knows whether it is better than the student"
        )
    entries += [Entry(said, "simple", model, None) for said, model in task.simple_models(parts.train)]
    if not (task.numbers and made_here(recipe)):  # weights that were drawn forecast nothing
        untouched = subject.untouched(recipe)
        entries.append(Entry("untouched student", "untouched", untouched, subject.tokenizer, of=of))
    if baseline and distils:
        how_long = steps
        for kind in ("baseline_steps",) if task.numbers else ("baseline_steps", "baseline_compute"):
            entry, history = _train_baseline(subject, kind, how_long, task.measure.alone, on_event)
            entries.append(replace(entry, of=of))
            histories[entry.name] = history
            # a step that also hears a teacher costs no less; seconds of a few steps may say so
            how_long = max(steps, round(steps * _cost(subject, teacher, history)))
    entries.append(Entry(name, role, parts.tuned.model, subject.tokenizer, folder, steps, seconds))
    for entry, history in others:
        entries.append(entry)
        histories[entry.name] = history
    judged = [entry for entry in entries if entry.role in ("teacher", "distilled", "tuned")]
    seen = [task.seen(entry.model, subject.rows, entry.name) for entry in judged]
    warnings += [sentence for sentence in seen if sentence]
    said = verdict(entries, task, subject.rows, prompts, references, seed=recipe.train.seed)
    if seeds > 1 and distils:
        alone = next(entry.model for entry in entries if entry.role == "baseline_steps")
        plan = replace(recipe, train=replace(recipe.train, steps=steps))
        said["seeds"] = found = by_seed(
            plan, task, parts, subject.rows, (parts.tuned.model, alone),
            subject.begun, seeds, on_event,
        )  # fmt: skip
        said |= {
            "paid_at_equal_steps": found["answer"],
            "sentence": f"{said['sentence']} {found['sentence']}",
        }
        answers = {found["answer"], said["paid_at_equal_compute"] or found["answer"]}
        said["paid"] = next((one for one in ("no", "unclear") if one in answers), "yes")
    if recipe.distils and (chosen := share.found_in(folder)):
        said["share"] = {name: chosen[name] for name in ("measure", "candidates", "chosen")}
    if recipe.distils and not distils:
        said |= _of_untaught(said, task.measure.alone, seeds)
    said["warnings"] = [*warnings, *said["warnings"]]
    said["report"] = str(write(said, histories, folder, recipe=recipe))
    return said


def _of_untaught(said: dict[str, Any], truth: str, seeds: int) -> dict[str, Any]:
    """What is to be said first of a run that was to be distilled, and whose loss has no term of the teacher's."""
    if "share" in said:
        paid, why = "no", "auto chose the plain run"
        first = (
            f"Distilling did not pay: on validation the teacher did not help, and beta: {why}, without it."
        )
    else:
        paid, why = "unknown", "the teacher is not used"
        first = f"Whether distilling paid is not known: all weight is on {truth}, so {why}."
    if seeds > 1:
        first += " There are no pairs of seeds to compare: both sides would be the same run."
    return {"paid": paid, "untaught": why, "sentence": f"{first} {said['sentence']}"}


def writer(teacher: nn.Module | Provider | None) -> nn.Module | None:
    """The teacher where it is one model, which can write texts and be measured."""
    return teacher if isinstance(teacher, nn.Module) else None


def _reader(subject: Subject, task: Any, teacher: nn.Module) -> Provider | None:
    """What answers the rows with a teacher that has tokens of its own; None where it reads them as they are."""
    parts, model = subject.parts, subject.parts.tuned.model
    if read_alike(task, subject.tokenizer, parts.teacher_tokenizer)[0]:
        return None
    context = Context(task, model, subject.tokenizer, model.device, lambda text: None)
    reader = live_teacher(teacher, parts.teacher_tokenizer, "the teacher", context)
    reader.check(subject.rows)
    return reader


def _cost(subject: Subject, teacher: nn.Module | None, baseline: list[dict]) -> float:
    """Compute of a step over one of cross-entropy: counted for one live teacher, else by the seconds taken."""
    if _counted(subject.recipe, teacher):
        return cost_ratio(subject.parts.tuned.model, teacher)
    a_step = [
        statistics.median(record["seconds"] for record in history) for history in (subject.history, baseline)
    ]
    return a_step[0] / a_step[1]


def _counted(recipe: Recipe, teacher: nn.Module | None) -> bool:
    """Whether a step is one pass of one teacher and one step of the student."""
    plain = {"vanilla_distillation", "feature_distillation", "relation_distillation", "distillation"}
    return teacher is not None and recipe.method in plain


def _train_baseline(
    subject: Subject, role: str, steps: int, alone: str, on_event: OnEvent | None
) -> tuple[Entry, list[dict]]:
    """The same student from the same start on the same rows in the same order, without the teacher."""
    recipe = with_method(subject.recipe, "fine_tuning")
    folder = Path(recipe.output) / role
    recipe = replace(
        recipe, output=str(folder), train=replace(recipe.train, steps=steps, save_every=0, patience=0)
    )
    parts = replace(
        subject.parts,
        student=subject.begun(recipe),
        tuned=None,
        teacher=None,
        peers=[],
        tokenizer=subject.tokenizer,
    )
    result = fit(recipe, parts, on_event=on_event)
    name = f"{alone}, same {'steps' if role == 'baseline_steps' else 'compute'}"
    seconds = result.metrics["seconds"]
    return Entry(name, role, result.tuned.model, subject.tokenizer, folder, steps, seconds), result.history


def joined(histories: Sequence[list[dict]]) -> list[dict]:
    """The records of several phases as one history, steps and epochs counted on."""
    records: list[dict] = []
    for history in histories:
        before = {name: records[-1][name] if records else 0 for name in ("step", "epoch")}
        records += [
            {**record, **{name: old + record[name] for name, old in before.items()}} for record in history
        ]
    return records


def load_untouched(recipe: Recipe, device: torch.device, train_rows: Any) -> nn.Module:
    """The student as it was before training. Raises OrderError when it was given as an object."""
    if not recipe.student.name:
        raise OrderError(
            "the untouched student was an object and is gone", "compare with LLMFineTuner.compare"
        )
    model = cut(load_student(recipe, device), recipe, train_rows)
    begin(model, recipe, train_rows)
    if train_rows is not None:
        resolve(TASKS, recipe.task)().fit(model, train_rows, recipe.train.seed)
    return model


def pairs_of(
    subject: Subject,
    prompts: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    count: int = SAMPLES,
) -> tuple[list[str] | text.References, list[str] | None]:
    """Prompts and references: those given, else of evenly spaced prepared rows what does not count and what does.

    Where all of a row counts, its first half is the prompt. Sources are taken with their targets, as tokens, and of
    more rows, as the task is judged by them. A task whose models write no text has neither. Raises DataError.
    """
    task, rows, tokenizer = resolve(TASKS, subject.recipe.task)(), subject.rows, subject.tokenizer
    if not task.generates:
        return [], None
    if not task.writes:
        data = fit_length(subject.recipe.data, subject.parts.tuned.model, lambda note: None)
        if prompts is None:
            return text.references_in(task, tokenizer, rows, text.TARGETS, data), None
        teacher = writer(subject.parts.teacher)
        return text.choose_references(task, tokenizer, prompts, references, teacher, data=data), None
    if prompts is not None:
        return list(prompts), None if references is None else list(references)
    pairs = [_pair(row, tokenizer) for row in evenly(rows, count).to_list()]
    return [prompt for prompt, _ in pairs], [reference for _, reference in pairs]


def _pair(row: dict, tokenizer: Any) -> tuple[str, str]:
    ids, labels = row["input_ids"], row["labels"]
    cut = next(i for i, label in enumerate(labels) if label != -100 and i > 0)
    cut = len(ids) // 2 if cut <= 1 else cut
    start = 1 if ids[0] == tokenizer.bos_token_id else 0  # generation puts it in front again
    return tokenizer.decode(ids[start:cut]), tokenizer.decode(ids[cut:], skip_special_tokens=True)


def compare_run(
    run: str | Path,
    *,
    others: Sequence[str | Path] = (),
    baseline: bool = False,
    seeds: int = 1,
    prompts: Sequence[str] | None = None,
    device: str | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Compare a run from its folder alone; others: runs on the same rows, as further lines. Raises FinetunerError."""
    say, where = on_event or (lambda kind, record: None), default_device(device)
    first, *rest = (
        Finished.load(folder, where, lambda said: say("note", {"text": said})) for folder in (run, *others)
    )
    for other in rest:
        check_comparable(first, other)
    recipe, task, tokenizer, model = first.recipe, first.task, first.tokenizer, first.model
    live = recipe.teacher and recipe.teacher.kind == "live" and recipe.scheme.teacher != "peers"
    theirs = task.tokenizer(recipe.teacher.name) if live else None
    alike = read_alike(task, tokenizer, theirs)[0]
    live = live and (alike or task.keeps_texts)
    teacher = load_teacher(recipe.teacher, where, task.auto) if live else None
    if teacher is not None:
        task.meet(teacher, first.train)
    if teacher is not None and alike:
        common_vocabulary(task, model, teacher, tokenizer, theirs)
    subject = Subject(
        recipe=recipe,
        parts=Parts(
            tuned=Tuned(model),
            teacher=teacher,
            teacher_tokenizer=theirs,
            train=first.train,
            held_out=first.held_out,
            device=device,
        ),
        tokenizer=tokenizer,
        untouched=lambda other: load_untouched(other, where, first.train),
        rows=first.rows,
        history=first.history,
    )
    warnings = (
        []
        if first.held_out is not None
        else ["nothing was held out: these are rows the student was trained on"]
    )
    names = named([first, *rest])
    return compare(
        subject,
        *pairs_of(subject, prompts),
        baseline=baseline,
        seeds=seeds,
        on_event=on_event,
        name=names[0] if rest else None,
        others=[(run.entry(name), run.history) for name, run in zip(names[1:], rest, strict=True)],
        warnings=warnings,
    )


def _folder(name: str) -> Path | None:
    return Path(name) if name and Path(name).is_dir() else None
