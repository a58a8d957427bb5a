"""Writes down what a recipe's teacher answers to a recipe's rows, so that training needs no teacher in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_finetuner.assembly import Parts, fit_length, load_rows
from llm_finetuner.engine import default_device
from llm_finetuner.errors import RecipeError
from llm_finetuner.named_models import load_student, load_teacher, student_source
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.identity import of_answers
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.places import weight_files
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.trainer import OnEvent


def cache_answers(
    recipe: Recipe,
    path: str | Path,
    *,
    k: int = 50,
    mode: str = "top_k",
    draws: int = 50,
    layers: Sequence[int | str] = (),
    parts: Parts | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Run the teacher once over the training and held-out rows of a recipe; see teachers/caching.py for the rest.

    Returns {"bytes_per_token", "mean_kl", "top_mass", "tokens", "rows", "repeats", "path"}; equal rows are stored once,
    and repeats says how many more there are. Raises FinetunerError.
    """
    say = on_event or (lambda kind, record: None)
    parts = parts or Parts()
    device = default_device(parts.device)
    task = resolve(TASKS, recipe.task, "task")()

    def note(text: str) -> None:
        say("note", {"text": text})

    tokenizer = parts.tokenizer
    if tokenizer is None and parts.train is None:
        tokenizer = task.tokenizer(student_source(recipe))
    student = parts.student if parts.student is not None else load_student(recipe, device)
    data = fit_length(recipe.data, student, note)
    train, held_out = parts.train, parts.held_out
    if train is None:
        train, held_out = load_rows(data, task, student, tokenizer, recipe.train.seed, str(path), note)
    context = Context(task, student, tokenizer, device, note, recipe.train.seed, about=task.about(data))
    loads = parts.teacher is None and recipe.teacher is not None
    files = {"files": weight_files(recipe.teacher.name)} if loads else {}  # before they are read
    teacher, model = _teacher(recipe, parts, context)
    rows = [part for part in (train, held_out) if part is not None]
    for part in rows:
        teacher.check(part)
    name = recipe.teacher.name if recipe.teacher else model.name_or_path
    about = {**of_answers(name, model, teacher, context), **files}
    width = len(teacher.columns) if isinstance(teacher.columns, Tensor) else teacher.columns
    width = width or task.vocabulary(model)
    return write_cache(
        teacher, task, task.together(rows), path, vocabulary=width, about=about, k=k, mode=mode,
        draws=draws, seed=recipe.train.seed, layers=layers, batch_size=recipe.train.batch_size, device=device,
        on_event=on_event,
    )  # fmt: skip


def _teacher(recipe: Recipe, parts: Parts, context: Context) -> tuple[Provider, Any]:
    """The live teacher and its model. Raises RecipeError."""
    if parts.teacher is None and recipe.teacher is None:
        raise RecipeError(
            "a cache needs a teacher", "give teacher.name (or --teacher), or load_teacher_model(...)"
        )
    if isinstance(parts.teacher, Provider) or (recipe.teacher and recipe.teacher.kind != "live"):
        raise RecipeError("only the answers of one live teacher can be cached", "teacher.kind=live")
    if recipe.teacher and recipe.teacher.shuffled:
        raise RecipeError(
            "a cache holds what the teacher says of each row, not of another one",
            "shuffle when you train: teacher.shuffled",
        )
    model, tokenizer = parts.teacher, parts.teacher_tokenizer
    name = recipe.teacher.name if recipe.teacher else "the teacher"
    if model is None:
        model = load_teacher(recipe.teacher, context.device, context.task.auto)
        tokenizer = context.task.tokenizer(name)
    context.task.check_stored(model)
    return live_teacher(model, tokenizer, name, context), model
