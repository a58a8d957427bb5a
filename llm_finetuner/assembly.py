"""From a recipe to the things a run is made of: rows, student, teacher, and what of them fits together."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data import columns, sources, text
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.learner import Learner
from llm_finetuner.models import loading
from llm_finetuner.named_models import begin, cut, load_student, student_source
from llm_finetuner.recipe import Data, Recipe, check_labelled
from llm_finetuner.registry import OPTIMIZERS, SCHEDULES, TASKS, TUNINGS, resolve
from llm_finetuner.rollout import Rollout
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teaching import asks, build_peers, build_teacher, check_control, write_examples
from llm_finetuner.tuning.tuned import Tuned

Note = Callable[[str], None]


@dataclass
class Parts:
    """Live objects that stand in for what the recipe names: None where it should be loaded.

    A run leaves its tuned student here, so that a next phase goes on with it.
    """

    student: nn.Module | None = None
    tuned: Tuned | None = None  # the student of an earlier phase, adapter and all
    tokenizer: Any = None
    teacher: nn.Module | Provider | None = None  # a model, or whatever answers in its place
    teacher_tokenizer: Any = None
    peers: list[nn.Module] = field(default_factory=list)  # models that learn beside the student
    train: Any = None  # prepared rows: input_ids, attention_mask, labels
    held_out: Any = None
    device: str | None = None  # None takes an accelerator where there is one


def load_rows(
    data: Data, task, student: nn.Module | None, tokenizer, seed: int, output: str, note: Note
) -> tuple[Any, Any]:
    """Read, prepare and split: (train rows, held-out rows or None). Raises DataError."""
    if data.source is None:
        raise DataError("no data were named", "give data.source (or --data): a file, a folder or a hub name")
    cut = task.own_parts(data.source, data, note)
    if cut is not None:
        return cut
    bad_rows = Path(output) / "bad_rows.jsonl"

    def prepared(source: str, split: str, samples: int | None):
        rows = sources.read(
            source, config=data.config, split=split, files=data.files, samples=samples,
            text_columns=data.text_columns, on_bad_row=data.on_bad_row, bad_rows_path=bad_rows,
            shapes_of_text=task.shapes_of_text,
        )  # fmt: skip
        if rows.skipped:
            note(f"{rows.skipped} rows of {source} were skipped; they are listed in {bad_rows}")
        wanted = only(rows.dataset, data.only, source)
        try:
            done = task.prepare_rows(wanted, tokenizer, data, student)
        except DataError as error:
            raise DataError(f"{source}: {error.what}", error.hint) from error
        if done.stats["truncated"]:
            note(
                f"{done.stats['truncated']} rows are longer than max_length={data.max_length} tokens and were cut"
            )
        if done.stats["dropped"]:
            note(f"{done.stats['dropped']} rows have no token that counts and were left out")
        return done.dataset

    rows = prepared(data.source, data.split, data.samples)
    task.fit(student, rows, seed)  # held-out labels get the same numbers
    if data.eval_source or data.eval_split:
        held_out = prepared(data.eval_source or data.source, data.eval_split or data.split, None)
    elif not data.eval_fraction:
        return rows, None
    elif len(rows) < 2:
        note("one row only: nothing is held out for evaluation")
        return rows, None
    else:
        rows, held_out = text.split(rows, data.eval_fraction, seed)
    return rows, columns.evenly(held_out, data.eval_samples)


def only(rows, wanted: dict[str, Any], source: str):
    """The rows whose columns have these values: one task of many. Raises DataError."""
    for column, value in wanted.items():
        if column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}", f"columns: {', '.join(rows.column_names)}")
        found = [i for i, cell in enumerate(rows[column]) if cell == value]
        if not found:
            there = sorted({str(cell) for cell in rows[column]})[:10]
            raise DataError(f"no row of {source} has {column}={value!r}", f"values there: {', '.join(there)}")
        rows = rows.select(found)
    return rows


def fit_length(data: Data, model: nn.Module, note: Note) -> Data:
    """max_length, held to the number of positions the model has."""
    positions = loading.positions_of(model)
    if positions and data.max_length > positions:
        note(
            f"max_length={data.max_length} is more than the {positions} positions of the model: {positions} is used"
        )
        return replace(data, max_length=positions)
    return data


@dataclass
class Assembly:
    """What the loop needs. `learner` holds the student that `tuned` saves."""

    task: Any
    tuned: Tuned
    tokenizer: Any
    teacher: Provider | None
    learner: Learner
    rollout: Rollout | None  # writes examples in place of some of the rows
    redraw: Callable[[dict, int, int], dict] | None  # makes rows other ones in each epoch
    train: Any
    held_out: Any
    data: Data  # as it was really used
    steps: int
    steps_per_epoch: int
    class_weights: dict[str, float] | None = None  # of each label in cross-entropy

    def examples(self, numbers: list[int], step: int) -> list[dict]:
        """The rows of these numbers as optimizer step `step` (from 1) sees them."""
        drawn = columns.examples(self.train, numbers)
        if self.redraw is None:
            return drawn
        epoch = (step - 1) // self.steps_per_epoch
        return [self.redraw(row, epoch, number) for row, number in zip(drawn, numbers, strict=True)]


def assemble(recipe: Recipe, parts: Parts, device: torch.device, note: Note, rank: int = 0) -> Assembly:
    """Load what `parts` does not hold, and check that it fits together before time is spent. Raises FinetunerError."""
    resolve(OPTIMIZERS, recipe.train.optimizer), resolve(SCHEDULES, recipe.train.schedule)
    task, scheme = resolve(TASKS, recipe.task, "task")(), recipe.scheme
    if scheme.undecided:
        raise RecipeError(
            "beta: auto is chosen before a run, which takes several, and here is but one",
            "give beta as a number; of a search every trial has its own",
        )
    check_labelled(recipe, task.labels)
    check_control(recipe, parts.teacher)
    tokenizer = parts.tokenizer
    if tokenizer is None and parts.train is None:
        tokenizer = task.tokenizer(student_source(recipe))
    student = parts.tuned.model if parts.tuned else parts.student
    fresh = student is None
    student = load_student(recipe, device) if fresh else student
    data = fit_length(recipe.data, student, note)
    train, held_out = parts.train, parts.held_out
    if train is None:
        train, held_out = load_rows(data, task, student, tokenizer, recipe.train.seed, recipe.output, note)
    for rows in (train, held_out):
        if rows is not None:
            task.check_inputs(rows, student)
    task.check_rows(train)
    for rows in (train, held_out):
        if rows is not None:
            task.fit(student, rows, recipe.train.seed)
    if fresh:
        student = cut(student, recipe, train)
    if parts.tuned is None:
        begin(student, recipe, train)
    student.to(device) if not loading.is_quantised(student) else None
    task.check_student(student, recipe.student.name or "the student")
    about = task.about(data) if parts.train is None else {}
    context = Context(task, student, tokenizer, device, note, recipe.train.seed, recipe.output, about, rank)
    if data.hard_share < 1:
        train = hardest(task, student, train, data.hard_share, note)
    if (scheme.writing or scheme.on_policy) and not task.writes:
        raise RecipeError(
            f"{recipe.method} has a model write continuations, and a model for {recipe.task} writes none",
            "take vanilla_distillation, feature_distillation or relation_distillation",
        )
    if scheme.writing:
        train = write_examples(
            replace(recipe, data=data), parts.teacher, parts.teacher_tokenizer, train, context
        )
    per_epoch = -(-len(train) // (recipe.train.batch_size * recipe.train.gradient_accumulation_steps))
    steps = recipe.train.steps or max(1, round(recipe.train.epochs * per_epoch))
    make = resolve(TUNINGS, recipe.tuning.kind)
    parts.tuned = tuned = parts.tuned or make(student, steps, task, **recipe.tuning.options)
    if recipe.train.gradient_checkpointing:
        if not student.supports_gradient_checkpointing:
            raise ModelError(
                f"{type(student).__name__} cannot compute its states anew (gradient_checkpointing)",
                "leave it out, or take smaller batches: batch_size, with gradient_accumulation_steps",
            )
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peers, group = [], None
    if scheme.teacher == "peers":
        peers, group = build_peers(recipe, parts.peers, train, context)
    teacher = build_teacher(recipe, parts.teacher, parts.teacher_tokenizer, context) if asks(scheme) else None
    if not asks(scheme):
        task.check_labelled(train)
    if held_out is not None:
        task.check_labelled(held_out)
        task.fit(
            student, held_out, recipe.train.seed
        )  # the student may have its labels from the teacher by now
    weights = None
    if data.class_weights and any(term.objective == "cross_entropy" for term in scheme.terms):
        weights = task.weigh(student, train, data.class_weights)
    task.check_terms(scheme, train)
    learner = Learner(task, student, scheme, teacher or group, peers, tuned.penalty).to(device)
    task.prepare(student, learner.want)
    if teacher is not None:
        teacher.prepare(learner.teacher_want, scheme.terms)
        teacher.check(train)  # nobody asks it about the held-out rows
        teacher.meet(train)
        if held_out is not None and teacher.model is not None:
            if said := task.seen(teacher.model, held_out, "the teacher"):
                note(said)
    redraw, rollout = task.redraw(data, tokenizer, recipe.train.seed), None
    if redraw is not None and teacher is not None and teacher.stored:
        raise RecipeError(
            "data.mask=fresh hides other tokens in each epoch, and stored answers are to the rows as they were",
            "data.mask=fixed, or a live teacher",
        )
    if scheme.on_policy:
        if teacher is not None and teacher.stored:
            raise RecipeError(
                f"{recipe.method} asks the teacher about what the student writes, and this one has stored answers only",
                "take a live teacher, or a method that learns from the data",
            )
        room = min(data.max_length, teacher.positions or data.max_length) if teacher else data.max_length
        rollout = Rollout(scheme.on_policy, tokenizer, recipe.train.seed, room)
    return Assembly(
        task,
        tuned,
        tokenizer,
        teacher,
        learner,
        rollout,
        redraw,
        train,
        held_out,
        data,
        steps,
        per_epoch,
        weights,
    )


def hardest(task, student: nn.Module, rows, share: float, note: Note):
    """The share of the rows on which the student loses most, nats a token, in their order."""
    quality = evaluate(task, student, rows)
    count = max(1, round(share * len(rows)))
    worst = np.argsort(-quality.nll / np.maximum(quality.tokens, 1), kind="stable")[:count]
    note(f"learning goes on with the {count} of {len(rows)} rows that the student finds hardest")
    return rows.select(sorted(worst.tolist()))
