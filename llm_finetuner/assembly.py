"""From a recipe to the things a run is made of: rows, student, teacher, and what of them fits together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_finetuner.data import columns, sources, text
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.learner import Learner, layer_pairs, reads
from llm_finetuner.models import loading
from llm_finetuner.recipe import Data, Model, Recipe
from llm_finetuner.registry import OPTIMIZERS, SCHEDULES, TASKS, TEACHERS, TUNINGS, resolve
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
    teacher: nn.Module | None = None
    teacher_tokenizer: Any = None
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


def load_student(model: Model, device: torch.device, seed: int, frozen: bool = False) -> nn.Module:
    return loading.load_causal_lm(
        model.name, device=device, dtype=model.dtype, load_in_4bit=model.load_in_4bit,
        load_in_8bit=model.load_in_8bit, from_scratch=model.from_scratch, seed=seed, frozen=frozen,
    )  # fmt: skip


def load_teacher(model: Model, device: torch.device) -> nn.Module:
    """A frozen model in eval mode."""
    return (
        load_student(replace(model, from_scratch=False), device, 0, frozen=True).eval().requires_grad_(False)
    )


@dataclass
class Assembly:
    """What the loop needs. `learner` holds the student that `tuned` saves."""

    task: Any
    tuned: Tuned
    tokenizer: Any
    teacher: Any  # callable (batch, want) -> Output, or None
    learner: Learner
    train: Any
    held_out: Any
    data: Data  # as it was really used
    steps: int
    steps_per_epoch: int


def assemble(recipe: Recipe, parts: Parts, device: torch.device, note: Note) -> Assembly:
    """Load what `parts` does not hold, and check that it fits together before time is spent. Raises FinetunerError."""
    resolve(OPTIMIZERS, recipe.train.optimizer), resolve(SCHEDULES, recipe.train.schedule)
    task = resolve(TASKS, recipe.task, "task")()
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
    teacher, extras = (
        _teacher(recipe, parts, task, student, tokenizer, device) if _asks(recipe) else (None, {})
    )
    for rows in (train, held_out):
        if rows is not None and teacher is not None:
            check_rows(rows, teacher.model)
    learner = Learner(task, student, recipe.terms, penalty=tuned.penalty, **extras).to(device)
    return Assembly(task, tuned, tokenizer, teacher, learner, train, held_out, data, steps, per_epoch)


def label_counts(rows, vocabulary: int) -> np.ndarray:
    """How often each token is a counted label: [V]."""
    parts = columns.flat(rows, "labels")
    return sum(np.bincount(labels[labels != IGNORED], minlength=vocabulary) for labels in parts)


def _asks(recipe: Recipe) -> bool:
    """Whether any term reads the teacher: with alpha = 1 nobody asks it."""
    return any({"teacher", "teacher_features"} & reads(term) for term in recipe.terms)


def _teacher(recipe: Recipe, parts: Parts, task, student, tokenizer, device) -> tuple[Any, dict]:
    if parts.teacher is None and recipe.teacher is None:
        raise RecipeError(
            f"{recipe.method} needs a teacher", "give teacher.name (or --teacher), or load_teacher_model(...)"
        )
    model = parts.teacher if parts.teacher is not None else load_teacher(recipe.teacher, device)
    name = recipe.teacher.name if recipe.teacher else "the teacher"
    other = parts.teacher_tokenizer
    if other is None and parts.teacher is None:
        other = loading.load_tokenizer(name)
    model = model if loading.is_quantised(model) else model.to(device)
    loading.check_head(model, name)
    features = [term for term in recipe.terms if "student_features" in reads(term)]
    extras = {
        "vocabulary": common_vocabulary(task, student, model, tokenizer, other),
        "teacher_width": task.width(model),
        "pairs": layer_pairs(features[0].layers, task.depth(student), task.depth(model)) if features else (),
    }
    kind = recipe.teacher.kind if recipe.teacher else "live"
    return resolve(TEACHERS, kind, "kind of teacher")(task, model), extras


def common_vocabulary(task, student, teacher, tokenizer, teacher_tokenizer) -> int | None:
    """Columns of the logits that name a token of both; None when all do. Raises ModelError when the tokens differ.

    Checkpoints pad their vocabulary to different widths; the padding names no token and is masked on both sides.
    """
    ours, theirs = task.vocabulary(student), task.vocabulary(teacher)
    if tokenizer is None or teacher_tokenizer is None:
        if ours != theirs:
            raise ModelError(
                f"the student has {ours} logits and the teacher {theirs}; without tokenizers nobody knows which",
                "give both models with their tokenizers",
            )
        return None
    same, why = loading.same_vocabulary(tokenizer, teacher_tokenizer)
    if not same:
        raise ModelError(
            f"student and teacher have different tokenizers: {why}",
            "take a teacher with the student's tokenizer; distilling across tokenizers is planned, not there yet",
        )
    tokens = max(tokenizer.get_vocab().values()) + 1
    return None if ours == theirs <= tokens else min(tokens, ours, theirs)


def check_rows(rows, student: nn.Module) -> None:
    """Raise DataError when the rows do not fit the model: token ids or lengths out of range, nothing to learn from."""
    size, positions = student.get_input_embeddings().num_embeddings, loading.positions_of(student)
    highest = max(int(ids.max()) for ids in columns.flat(rows, "input_ids"))
    longest = int(columns.lengths(rows).max())
    if highest >= size:
        raise DataError(
            f"token id {highest} does not exist: the model knows ids 0 to {size - 1}",
            "prepare the data with the tokenizer of this model",
        )
    if positions and longest > positions:
        raise DataError(
            f"a row has {longest} tokens, the model has {positions} positions",
            "prepare with a smaller max_length",
        )
    if not any((labels != IGNORED).any() for labels in columns.flat(rows, "labels")):
        raise DataError("no token of the data counts", "labels must hold more than -100")
