"""What a recipe needs before anything is loaded: what has no default, and a teacher that its method can hear."""

import re

from llm_finetuner.cli.exits import program
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe, Teacher, members_of
from llm_finetuner.registry import OBJECTIVES, TEACHERS
from llm_finetuner.scheme import Scheme, Term

NAMED = ("live", "across", "remote", "live_cached")  # kinds of one teacher, which has a name
OWN = {
    "cached": ("path", "--cache"),
    "remote": ("url", "--url"),
}  # what a kind of teacher has in place of a model
WRITING = ("causal_lm",)  # tasks whose models continue texts
FILLING = ("masked_lm",)  # tasks whose models fill in hidden tokens
TRANSFORMING = ("seq2seq_lm",)  # tasks whose models have an encoder and a decoder
CLASSIFYING = ("classification", "multi_label_classification")  # texts
OF_LABELS = (*CLASSIFYING, "token_classification")  # tasks whose answers are labels
STORED = ("cached", "live_cached")  # kinds of teachers whose answers are on disk
OF_ANY_TASK = ("live", "ensemble", *STORED)  # kinds of teachers that need not write


def teachers_of(recipe: Recipe) -> list[Teacher]:
    """The models that teach from memory."""
    teacher = recipe.teacher
    return [] if teacher is None or teacher.kind in OWN else members_of(teacher)


def teachers_heard(recipe: Recipe) -> list[Teacher]:
    """Those of them that the method needs."""
    return teachers_of(recipe) if recipe.needs_teacher else []


def is_part(name: str) -> bool:
    """Whether a student's name says that it is cut from the teacher: teacher/2."""
    return bool(re.fullmatch(r"teacher/.*", name.strip()))


def blocks_kept(name: str, depth: int) -> int:
    """Blocks of a student called teacher/2 of a teacher of `depth` blocks. Raises RecipeError where none is left."""
    found = re.fullmatch(r"teacher/([1-9]\d*)", name.strip())
    if found is None:
        raise RecipeError(f"{name.strip()!r} names no part of the teacher", "teacher/2: half its blocks")
    divisor = int(found[1])
    if divisor > depth:
        raise RecipeError(
            f"student {name.strip()} would have less than one block: the teacher has {depth}",
            f"teacher/2 has half of them; teacher/{depth} has one, the fewest",
        )
    return int(depth / divisor + 0.5)  # as models/shrink.py rounds, which needs torch


def compares_blocks(term: Term) -> bool:
    """Whether a term reads more of the teacher than its answers; known by the file that its objective is in."""
    module = OBJECTIVES.get(term.objective, "").partition(":")[0]
    return module.rpartition(".")[2] in ("feature", "attention", "relation")


def fitting_kinds(scheme: Scheme) -> tuple[str, ...]:
    """The kinds of teachers that a method can hear."""
    if scheme.writing:
        return ("live",)
    if scheme.teacher == "peers":
        return ("live", "ensemble")
    if scheme.teacher != "given":
        return ()
    return tuple(kind for kind in TEACHERS if not (scheme.on_policy and kind in STORED))


def check_complete(recipe: Recipe) -> None:
    """Raise RecipeError for what has no default and was not given, and for a teacher that cannot teach so."""
    _need(recipe.student.name, "student.name", "--student")
    if recipe.needs_teacher:
        _check_teacher(recipe)
    if is_part(recipe.student.name):
        teacher = recipe.teacher
        named = recipe.distils and teacher and all(member.name for member in members_of(teacher))
        if not named:
            raise RecipeError(
                f"student {recipe.student.name} is cut from the teacher, and no teacher is named",
                f"give it with --teacher to {program()} distill, or name another student",
            )
    check_data_named(recipe)


def check_data_named(recipe: Recipe) -> None:
    """Raise RecipeError where no data are named."""
    _need(recipe.data.source, "data.source", "--data")


def _check_teacher(recipe: Recipe) -> None:
    teacher = recipe.teacher
    kind = teacher.kind if teacher else "live"
    kinds = fitting_kinds(recipe.scheme)
    if kind in TEACHERS and kind not in kinds:
        why = "asks the teacher about new texts" if recipe.scheme.on_policy else "needs models"
        raise RecipeError(
            f"{recipe.method} {why}, and a teacher of kind {kind} cannot do that",
            f"kinds that can: {', '.join(kinds)}",
        )
    if kind in OWN:
        option, flag = OWN[kind]
        _need(teacher.options.get(option), f"teacher.options.{option}", flag)
    if kind == "live_cached":
        _need(teacher.options["path"], "teacher.options.path", "--cache")
    if kind in NAMED:
        _need(teacher and teacher.name, "teacher.name", "--teacher")


def _need(value: object, path: str, flag: str) -> None:
    if not value:
        raise RecipeError(f"{path} is missing", f"give it with {flag}, or as {path}=... in a recipe")
