"""What all trials of a sweep share: the rows, and the teacher where it is one plain model.

The held-out rows are the same for every trial and seed; where there are enough, half of them choose and half report.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llm_finetuner.assembly import Parts, fit_length, load_rows
from llm_finetuner.benchmark.enough import least
from llm_finetuner.engine import default_device
from llm_finetuner.errors import DataError, OrderError, RecipeError
from llm_finetuner.models import loading
from llm_finetuner.models.shrink import parse_share
from llm_finetuner.named_models import load_teacher, student_source
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.search.ranking import CHOOSE, REPORT
from llm_finetuner.search.record import content_of, digest_of_model, digest_of_rows
from llm_finetuner.task import Task


@dataclass
class Shared:
    """What share() returns. rows: held-out rows by what they are for. about: by what the sweep is known again."""

    parts: Parts
    rows: dict[str, Any]
    about: dict[str, Any]
    vocabulary: int | None  # tokens there are: padded columns of the head name none

    def fresh(self) -> Parts:
        """Parts for one trial: what learns is copied, what only answers is not."""
        one = self.parts
        kept = (one.teacher, one.teacher_tokenizer, one.tokenizer, one.train, one.held_out)
        return copy.deepcopy(one, {id(item): item for item in kept})


def share(recipe: Recipe, parts: Parts, names: Iterable[str], note: Callable[[str], None]) -> Shared:
    """Load what trials that vary `names` have in common. Raises FinetunerError."""
    if parts.tuned is not None:
        raise OrderError("a sweep starts every trial from the untouched student", "call load_model() again")
    for section, model in (("student", parts.student), ("teacher", parts.teacher)):
        changed = [name for name in names if name.split(".")[0] == section]
        if model is not None and changed:
            raise RecipeError(
                f"{changed[0]} has no effect: the {section} was given as an object", "give its name instead"
            )
    varied = any(name.split(".")[0] == "teacher" for name in names)
    if varied and parse_share(recipe.student.name) is not None:
        raise RecipeError(
            f"the student {recipe.student.name!r} is cut from the teacher, so a sweep cannot vary the teacher",
            "sweep once for each teacher",
        )
    parts, task = replace(parts), resolve(TASKS, recipe.task, "task")()
    if parts.tokenizer is None and parts.train is None:
        parts.tokenizer = task.tokenizer(student_source(recipe))
    about = {"recipe": content_of(recipe)}
    for name, model in (("student", parts.student), ("teacher", parts.teacher)):
        if isinstance(model, nn.Module):
            about[f"weights of the {name}"] = digest_of_model(model)
    if parts.train is None:
        parts.train, parts.held_out = _rows(recipe, parts, task, note)
    if parts.held_out is None:
        raise DataError("a sweep chooses by held-out rows, and there are none", "set data.eval_fraction=0.1")
    about |= {
        "training rows": digest_of_rows(task, parts.train),
        "held-out rows": digest_of_rows(task, parts.held_out),
    }
    rows, fewest = {CHOOSE: parts.held_out}, least(task.span(parts.held_out))
    if len(parts.held_out) >= 2 * fewest:
        halves = task.halves(parts.held_out, recipe.train.seed)
        if min(map(len, halves)) >= fewest:
            rows[CHOOSE], rows[REPORT] = halves
            parts.held_out = rows[CHOOSE]
    spec = recipe.teacher
    plain = spec is not None and spec.kind == "live" and spec.device is None
    if plain and parts.teacher is None and not varied and recipe.scheme.teacher == "given":
        parts.teacher = load_teacher(spec, default_device(parts.device), task.auto)
        parts.teacher_tokenizer = task.tokenizer(spec.name)
    tokens = max(parts.tokenizer.get_vocab().values()) + 1 if parts.tokenizer is not None else None
    return Shared(parts, rows, about, tokens)


def _rows(recipe: Recipe, parts: Parts, task: Task, note: Callable[[str], None]) -> tuple[Any, Any]:
    outline, data = parts.student, recipe.data
    if outline is None and not task.numbers:  # only its configuration is asked for, so no weights are read
        with torch.device("meta"):
            outline = loading.load_pretrained(
                student_source(recipe), auto=task.auto, device="meta", from_scratch=True
            )
    if outline is not None:
        data = fit_length(data, outline, note)
    return load_rows(data, task, outline, parts.tokenizer, recipe.train.seed, recipe.output, note)
