"""The models that a recipe names, loaded as it says, and the student as it is when training begins."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_finetuner.data import columns
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import RecipeError
from llm_finetuner.models import loading
from llm_finetuner.models.build import check_ready, drawn
from llm_finetuner.models.build_s4d import from_teacher
from llm_finetuner.models.shrink import parse_share, shrink
from llm_finetuner.recipe import Model, Recipe, Teacher, members_of
from llm_finetuner.registry import MODELS, TASKS, resolve

TEXTS = "AutoModelForCausalLM"  # the class of transformers that loads what writes texts
ROWS_THAT_WEIGH = 32  # which heads and channels matter is read off this many rows


def load_model(
    model: Model, device: torch.device | str, seed: int, auto: str = TEXTS, frozen: bool = False
) -> nn.Module:
    """Load a model, or build one that is named in registry.MODELS. Raises ModelError."""
    if model.name in MODELS:
        return drawn(resolve(MODELS, model.name), seed, model.shape).to(device)
    return loading.load_pretrained(
        model.name, auto=auto, device=device, dtype=model.dtype, load_in_4bit=model.load_in_4bit,
        load_in_8bit=model.load_in_8bit, from_scratch=model.from_scratch, seed=seed, frozen=frozen,
    )  # fmt: skip


def load_teacher(model: Teacher, device: torch.device | str, auto: str = TEXTS) -> nn.Module:
    """A frozen model in eval mode, on the device that the recipe gives it. Raises ModelError, RecipeError."""
    found = load_model(replace(model, from_scratch=False), model.device or device, 0, auto, frozen=True)
    if model.name in MODELS:
        check_ready(found, model.name)
    return found.eval().requires_grad_(False)


def begins_with_teacher(recipe: Recipe) -> bool:
    """Whether the student's weights are some of its teacher's: teacher/2, or one that is built and begun with them."""
    return parse_share(recipe.student.name) is not None or recipe.inherits


def student_source(recipe: Recipe) -> str:
    """The folder or hub name that the student's weights and tokenizer come from. Raises RecipeError.

    A part of an ensemble is a part of the first member that names a model.
    """
    if not begins_with_teacher(recipe):
        return recipe.student.name
    named = [member.name for member in (members_of(recipe.teacher) if recipe.teacher else ()) if member.name]
    if not named:
        raise RecipeError(
            f"student {recipe.student.name!r} is cut from the teacher, and no teacher is named",
            "give teacher.name, or name a student",
        )
    return named[0]


def has_new_weights(model: Model) -> bool:
    """Whether its weights are drawn from the seed, all or those of its mixers."""
    mixers = model.mixer != Model.mixer and (not model.name or parse_share(model.name) is not None)
    return model.from_scratch or model.name in MODELS or mixers


def made_here(recipe: Recipe) -> bool:
    """Whether no folder holds the student that training starts from: cut from its teacher, from scratch, an object."""
    name = recipe.student.name
    return has_new_weights(recipe.student) or not name or parse_share(name) is not None


def load_student(recipe: Recipe, device: torch.device | str) -> nn.Module:
    """The student before `cut`: the whole teacher where it is to be cut, or begun, from it. Raises ModelError."""
    auto = resolve(TASKS, recipe.task, "task").auto
    named = replace(recipe.student, name=student_source(recipe), init=Model.init)
    whole = replace(named, from_scratch=False) if begins_with_teacher(recipe) else named
    return load_model(whole, device, recipe.train.seed, auto)


def cut(model: nn.Module, recipe: Recipe, rows: Any) -> nn.Module:
    """The part of the teacher that a student called teacher/2 keeps, or begins with; any other student as it is.

    rows: prepared rows that show which heads and channels matter, and how far gates open, or None for the weights
    alone. Raises RecipeError, ModelError.
    """
    student, divisor = recipe.student, parse_share(recipe.student.name)
    if recipe.inherits:
        task = resolve(TASKS, recipe.task)()
        some, reach = (None, None) if rows is None else (task.speed_batch(rows, [model]), task.reach(rows))
        return from_teacher(model, student.shape, some, reach)
    if divisor is None:
        return model
    seen = batches(rows, model.device) if student.keep_width < 1 and rows is not None else None
    model = shrink(
        model, keep=divisor, blocks=student.keep_blocks, width=student.keep_width, keep_encoder=student.keep_encoder,
        mixer=student.mixer, seed=recipe.train.seed, activations=seen,
    )  # fmt: skip
    return redrawn(model, recipe.train.seed) if student.from_scratch else model


def begin(student: nn.Module, recipe: Recipe, rows: Any) -> None:
    """Start the head's bias of a student from scratch at how often each token is a label of `rows`."""
    if recipe.student.from_scratch and rows is not None and student.get_output_embeddings() is not None:
        loading.start_head_bias(student, label_counts(rows, student.get_output_embeddings().weight.shape[0]))


def label_counts(rows: Any, vocabulary: int) -> np.ndarray:
    """How often each token is a counted label: [V]."""
    parts = columns.flat(rows, "labels")
    return sum(np.bincount(labels[labels != IGNORED], minlength=vocabulary) for labels in parts)


def batches(rows: Any, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """A few rows, one a batch: {input_ids, attention_mask} [1, T]."""
    step = max(1, len(rows) // ROWS_THAT_WEIGH)
    picked = [torch.tensor([rows[i]["input_ids"]], device=device) for i in range(0, len(rows), step)]
    return [{"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)} for ids_1T in picked]


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """The same shape with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)._from_config(model.config, dtype=model.dtype).to(model.device)
    if model.can_generate():
        fresh.generation_config = model.generation_config
    return fresh
