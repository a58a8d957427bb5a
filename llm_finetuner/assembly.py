"""From a recipe to the things a run is made of: rows, student, teacher, and what of them fits together."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_finetuner.checks import check_rows, common_vocabulary
from llm_finetuner.data import columns, sources, text
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.learner import Learner
from llm_finetuner.models import loading
from llm_finetuner.named_models import load_student, load_teacher
from llm_finetuner.recipe import Data, Recipe, Teacher, members_of
from llm_finetuner.registry import OPTIMIZERS, SCHEDULES, TASKS, TEACHERS, TUNINGS, resolve
from llm_finetuner.rollout import Rollout
from llm_finetuner.scheme import Scheme
from llm_finetuner.teachers.live import live_teacher
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.terms import reads_teacher
from llm_finetuner.tuning.tuned import Tuned
from llm_finetuner.writing import write_rows

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


def load_rows(data: Data, tokenizer, seed: int, output: str, note: Note) -> tuple[Any, Any]:
    """Read, prepare and split: (train rows, held-out rows or None). Raises DataError."""
    if data.source is None:
        raise DataError("no data were named", "give data.source (or --data): a file, a folder or a hub name")
    bad_rows = Path(output) / "bad_rows.jsonl"

    def prepared(source: str, split: str, samples: int | None):
        rows = sources.read(
            source, config=data.config, split=split, files=data.files, samples=samples,
            text_columns=data.text_columns, on_bad_row=data.on_bad_row, bad_rows_path=bad_rows,
        )  # fmt: skip
        if rows.skipped:
            note(f"{rows.skipped} rows of {source} were skipped; they are listed in {bad_rows}")
        try:
            done = text.prepare(
                rows.dataset, tokenizer, text_columns=data.text_columns, max_length=data.max_length,
                loss_on=data.loss_on,
            )  # fmt: skip
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
    if data.eval_source or data.eval_split:
        held_out = prepared(data.eval_source or data.source, data.eval_split or data.split, None)
    elif not data.eval_fraction:
        return rows, None
    elif len(rows) < 2:
        note("one row only: nothing is held out for evaluation")
        return rows, None
    else:
        rows, held_out = text.split(rows, data.eval_fraction, seed)
    return rows, evenly(held_out, data.eval_samples)


def evenly(rows, count: int | None):
    """`count` rows, evenly spaced over all; None takes all."""
    if count is None or count >= len(rows):
        return rows
    return rows.select([i * len(rows) // count for i in range(count)])


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
    train: Any
    held_out: Any
    data: Data  # as it was really used
    steps: int
    steps_per_epoch: int


def assemble(recipe: Recipe, parts: Parts, device: torch.device, note: Note) -> Assembly:
    """Load what `parts` does not hold, and check that it fits together before time is spent. Raises FinetunerError."""
    resolve(OPTIMIZERS, recipe.train.optimizer), resolve(SCHEDULES, recipe.train.schedule)
    task, scheme = resolve(TASKS, recipe.task, "task")(), recipe.scheme
    tokenizer = parts.tokenizer or (
        loading.load_tokenizer(recipe.student.name) if parts.train is None else None
    )
    student = parts.tuned.model if parts.tuned else parts.student
    student = student if student is not None else load_student(recipe.student, device, recipe.train.seed)
    data = fit_length(recipe.data, student, note)
    if parts.train is None:
        train, held_out = load_rows(data, tokenizer, recipe.train.seed, recipe.output, note)
    else:
        train, held_out = parts.train, parts.held_out
    for rows in (train, held_out):
        if rows is not None:
            check_rows(rows, student)
    if recipe.student.from_scratch and parts.tuned is None:
        loading.start_head_bias(student, label_counts(train, task.vocabulary(student)))
    per_epoch = -(-len(train) // (recipe.train.batch_size * recipe.train.gradient_accumulation_steps))
    steps = recipe.train.steps or max(1, round(recipe.train.epochs * per_epoch))
    student.to(device) if not loading.is_quantised(student) else None
    loading.check_head(student, recipe.student.name or "the student")
    parts.tuned = tuned = parts.tuned or resolve(TUNINGS, recipe.tuning.kind)(
        student, steps, **recipe.tuning.options
    )
    if recipe.train.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    train = _written(recipe, parts, tokenizer, train, device, note) if scheme.writing else train
    peers = _peers(recipe, parts, task, student, tokenizer, device) if scheme.teacher == "peers" else []
    context = Context(task, student, tokenizer, device, note, recipe.train.seed, recipe.output)
    teacher = _teacher(recipe, parts, context) if _asks(scheme) else None
    learner = Learner(task, student, scheme, teacher, peers, tuned.penalty).to(device)
    task.prepare(student, learner.want)
    if teacher is not None:
        teacher.prepare(learner.teacher_want, scheme.terms)
        for rows in (train, held_out):
            teacher.check(rows) if rows is not None else None
    rollout = None
    if scheme.on_policy:
        rollout = Rollout(scheme.on_policy, tokenizer, recipe.train.seed, data.max_length)
    return Assembly(
        task, tuned, tokenizer, teacher, learner, rollout, train, held_out, data, steps, per_epoch
    )


def label_counts(rows, vocabulary: int) -> np.ndarray:
    """How often each token is a counted label: [V]."""
    parts = columns.flat(rows, "labels")
    return sum(np.bincount(labels[labels != IGNORED], minlength=vocabulary) for labels in parts)


def _written(recipe: Recipe, parts: Parts, tokenizer, rows, device, note: Note):
    """Rows whose completions the teacher wrote, kept in the run's folder. Raises RecipeError, ModelError."""
    if isinstance(parts.teacher, Provider) or (recipe.teacher and recipe.teacher.kind != "live"):
        raise RecipeError(
            f"{recipe.method} needs one live teacher: a model that can write", "teacher.kind=live"
        )
    if parts.teacher is None and recipe.teacher is None:
        raise RecipeError(f"{recipe.method} needs a teacher", "give teacher.name (or --teacher)")
    teacher = parts.teacher if parts.teacher is not None else load_teacher(recipe.teacher, device)
    return write_rows(
        teacher, tokenizer, rows, recipe.scheme.writing, Path(recipe.output) / "written.jsonl",
        seed=recipe.train.seed, max_length=recipe.data.max_length, note=note,
    )  # fmt: skip


def _asks(scheme: Scheme) -> bool:
    """Whether any term is answered from outside: with alpha = 1 nobody is asked."""
    return scheme.teacher in ("given", "average") and any(reads_teacher(term) for term in scheme.terms)


def _teacher(recipe: Recipe, parts: Parts, context: Context) -> Provider:
    """What answers the student's batches. Raises RecipeError, ModelError."""
    scheme, spec = recipe.scheme, recipe.teacher
    if scheme.teacher == "average":
        kind = resolve(TEACHERS, "average")
        return kind(Teacher(), context, **scheme.teacher_options)
    if parts.teacher is None and spec is None:
        raise RecipeError(
            f"{recipe.method} needs a teacher", "give teacher.name (or --teacher), or load_teacher_model(...)"
        )
    if isinstance(parts.teacher, Provider):
        provider = parts.teacher
    elif parts.teacher is not None:
        model = parts.teacher
        model = model if loading.is_quantised(model) else model.to(context.device)
        name = spec.name if spec else "the teacher"
        provider = live_teacher(model, parts.teacher_tokenizer, name, context)
    else:
        kind = resolve(TEACHERS, spec.kind, "kind of teacher")
        provider = kind(spec, context, **spec.options)
    return Shuffled(provider) if spec and spec.shuffled else provider


def _peers(recipe: Recipe, parts: Parts, task, student, tokenizer, device) -> list[nn.Module]:
    """The models that learn beside the student. Raises RecipeError, ModelError."""
    if not parts.peers and recipe.teacher is None:
        raise RecipeError(
            f"{recipe.method} needs a second model",
            "give teacher.name (or --teacher), or setup_online(peers=[...])",
        )
    if not parts.peers:
        seed = recipe.train.seed + 1  # a peer from scratch is another draw than the student
        for i, spec in enumerate(members_of(recipe.teacher)):
            parts.peers.append(load_student(spec, device, seed + i))
            common_vocabulary(task, student, parts.peers[-1], tokenizer, loading.load_tokenizer(spec.name))
    for peer in parts.peers:
        if task.vocabulary(peer) != task.vocabulary(student):
            raise ModelError(
                f"models that teach each other need equally many logits: {task.vocabulary(student)} and "
                f"{task.vocabulary(peer)}"
            )
        loading.check_head(peer, "the peer")
        peer.train().requires_grad_(True)
    return parts.peers
