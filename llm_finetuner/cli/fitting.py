"""Whether what a recipe names is there and fits together, as far as config.json, a cache's manifest and folders tell.

Nothing heavy is loaded for it, so that a mistake is told before anybody waits. What cannot be known yet (a model that
is still to be downloaded) passes, and the run itself finds it.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli import imports, series_fit, signal_fit
from llm_finetuner.cli.answers import (
    CACHE,
    holds_weights,
    lies_here,
    may_be_on_hub,
    model_name,
    quickstart_hint,
)
from llm_finetuner.cli.configs import depth_of, read
from llm_finetuner.cli.exits import program
from llm_finetuner.cli.hub import models_in
from llm_finetuner.cli.needed import (
    CLASSIFYING,
    FILLING,
    OF_ANY_TASK,
    OF_LABELS,
    STORED,
    WRITING,
    blocks_kept,
    compares_blocks,
    is_part,
)
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import DataError, FinetunerError, RecipeError
from llm_finetuner.layer_maps import check_exits, check_kept, kept_blocks, layer_pairs, spelled
from llm_finetuner.ranges import check_shares
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, check_labelled, members_of
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS, REGRESSION
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.places import check_place

NUMBERS = {FORECASTING: series_fit, REGRESSION: signal_fit}  # what is known of their runs
NO_STATES = (
    "ensemble",
    "remote",
)  # kinds of teachers without hidden states; an ensemble of one has its member's


def check_fit(recipe: Recipe, trains: bool = True) -> None:
    """Raise RecipeError or DataError for what will stop the run and can be known now.

    trains: whether the student's weights are read, and not its tokenizer only.
    """
    check_task(recipe)
    check_data(recipe)
    for model in models_in(recipe):
        model_name(model.name)
        if trains or model is not recipe.student:
            check_weights(recipe, model)
    check_models(recipe)
    if recipe.task in OF_NUMBERS:
        series_fit.check_shapes(recipe)
    if trains:
        signal_fit.check_beginning(recipe)


def check_task(recipe: Recipe) -> None:
    """Raise RecipeError for what a model of this task cannot do or be, in the words of the run itself."""
    if recipe.task not in TASKS:
        return
    NUMBERS.get(recipe.task, series_fit).check_task(recipe)
    check_labelled(recipe, recipe.task in OF_LABELS)
    if recipe.task in WRITING:
        return
    scheme, teacher = recipe.scheme, recipe.teacher
    if scheme.writing or scheme.on_policy:
        raise RecipeError(
            f"{recipe.method} has a model write continuations, and a model for {recipe.task} writes none",
            "take vanilla_distillation, feature_distillation or relation_distillation",
        )
    if teacher and recipe.needs_teacher and teacher.kind not in OF_ANY_TASK:
        raise RecipeError(
            f"a {teacher.kind} teacher answers models that continue texts, and this one does not",
            "teacher.kind=live",
        )
    redrawn = recipe.task in FILLING and recipe.data.mask == "fresh"
    if redrawn and teacher and recipe.needs_teacher and teacher.kind in STORED:
        raise RecipeError(
            "data.mask=fresh hides other tokens in each epoch, and stored answers are to the rows as they were",
            "data.mask=fixed, or a live teacher",
        )
    if recipe.train.packing:
        imports.wait()
        resolve(TASKS, recipe.task)().check_packing(None)  # raises, whatever the model is


def check_weights(recipe: Recipe, model: Model) -> None:
    """Raise RecipeError for a folder that holds no weights, unless new ones are drawn."""
    folder = Path(model.name).expanduser()
    if model.from_scratch or not folder.is_dir() or holds_weights(folder):
        return
    hint = "give the folder of a model that was trained"
    if model is recipe.student or recipe.scheme.teacher == "peers":
        who = "student" if model is recipe.student else "teacher"
        flag = "--from-scratch" if who == "student" else "--teacher-from-scratch"
        hint = f"{flag} ({who}.from_scratch: true in a recipe) draws new ones; or {hint}"
    raise RecipeError(f"{model.name} holds no weights", hint)


def check_models(recipe: Recipe) -> None:
    """The same for what models, caches and layers say of each other."""
    if recipe.task in OF_NUMBERS:
        NUMBERS[recipe.task].check_models(recipe)
    check_teacher(recipe)
    check_blocks(recipe)


def misfits(recipe: Recipe) -> list[str]:
    """The same as warnings: a recipe may be looked at where its models and data are not."""
    try:
        check_fit(recipe)
    except FinetunerError as error:
        return [f"{error.what}; {error.hint}"]
    return []


def check_data(recipe: Recipe) -> None:
    """Raise DataError where a file or folder of the data is not there, or holds no series where it should."""
    if recipe.task in OF_NUMBERS:
        NUMBERS[recipe.task].check_data(recipe)
        return
    for name in filter(None, (recipe.data.source, recipe.data.eval_source)):
        if lies_here(name) or may_be_on_hub(name):
            continue
        hint = quickstart_hint(name)
        if hint:
            raise DataError(f"no such file: {name}", hint)
        from llm_finetuner.data.places import open_source

        open_source(name, None, "train", None)  # looks, and says what there is instead; nothing is read yet


def check_teacher(recipe: Recipe) -> None:
    """Raise RecipeError where a cache is not there or cannot be, or weights are not one for each teacher."""
    teacher = recipe.teacher
    if teacher is None or not recipe.needs_teacher:
        return
    if teacher.kind == "cached" and teacher.options["path"]:
        manifest_of(recipe)
    if teacher.kind == "live_cached" and teacher.options["path"]:
        check_place(teacher.options["path"])
        check_kept_layers(recipe, kept_blocks(teacher.options["keep_layers"]), "keep_layers")
    if teacher.kind != "ensemble":
        return
    weights, count = teacher.options.get("weights"), len(members_of(teacher))
    if weights in (None, "loss"):
        return
    check_shares(weights, count)


def check_blocks(recipe: Recipe) -> None:
    """Raise RecipeError for blocks that the models, or the cache, do not have."""
    depth, scheme = student_depth(recipe), recipe.scheme
    if depth and scheme.exits is not None:
        check_exits(scheme.exits, depth)
    terms = [term for term in recipe.terms if compares_blocks(term)]
    teacher = recipe.teacher
    if not terms or teacher is None or scheme.teacher != "given":
        return
    if teacher.kind in NO_STATES and not (teacher.kind == "ensemble" and len(members_of(teacher)) == 1):
        who = "several teachers together give" if teacher.kind == "ensemble" else "an endpoint gives"
        raise RecipeError(
            f"{terms[0].objective} compares hidden states, and {who} answers only",
            "take one teacher that is loaded here, or a method that compares answers, such as vanilla_distillation",
        )
    theirs = teacher_depth(recipe)
    if not depth or not theirs:
        return
    imports.wait()
    from llm_finetuner.terms import kind_of

    wanted: set[int] = set()
    for term in terms:
        kind = kind_of(term)
        if teacher.kind == "cached" and kind not in ("features", "hidden"):
            raise RecipeError(
                f"{term.objective} compares {kind}, and a cache keeps hidden states of blocks only",
                "take the teacher itself: --teacher",
            )
        if kind != "embeddings":
            wanted |= {pair[1] for pair in layer_pairs(term.layers, depth, theirs)}
    if teacher.kind == "cached":
        _check_kept(recipe, wanted, terms[0].objective)


def check_kept_layers(recipe: Recipe, blocks: tuple[int, ...], name: str = "--keep-layers") -> None:
    """Raise RecipeError for teacher blocks that a cache is to keep and the teacher does not have."""
    depth = depth_of(recipe.teacher.name)
    if depth:
        check_kept(blocks, depth, recipe.task in CLASSIFYING, f"the teacher {recipe.teacher.name}", name)


def student_depth(recipe: Recipe) -> int | None:
    """The same of the student, cut from its teacher or not. Raises RecipeError where nothing would be left of it."""
    student = recipe.student
    if not is_part(student.name):
        return series_fit.depth_of_model(student)
    teacher = recipe.teacher
    whole = depth_of(members_of(teacher)[0].name) if teacher else None
    return whole and blocks_kept(student.name, whole)


def teacher_depth(recipe: Recipe) -> int | None:
    """The same of the only teacher, or of the one that wrote a cache."""
    member = members_of(recipe.teacher)[0]
    if member.kind == "cached":
        return manifest_of(replace(recipe, teacher=member)).get("depth")
    return series_fit.depth_of_model(member)


# ---- caches


def manifest_of(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's cache says of itself. Raises RecipeError where there is none."""
    folder = recipe.teacher.options["path"]
    where = Path(folder).expanduser()
    if not (where / CACHE[0]).exists():
        why = "there is no such folder" if not where.exists() else f"{folder} holds no {CACHE[0]}"
        raise RecipeError(f"no cache in {folder}: {why}", f"this makes it: {cache_command(recipe, folder)}")
    return read(where / CACHE[0]) or {}


def cache_command(recipe: Recipe, folder: str, teacher: str = "", layers: tuple[int, ...] = ()) -> str:
    """The command that writes the cache that the recipe wants; TEACHER where nobody knows which one."""
    plan = Train(batch_size=recipe.train.batch_size, seed=recipe.train.seed)
    plain = Recipe(
        "vanilla_distillation", task=recipe.task, student=recipe.student, train=plan,
        data=replace(recipe.data, hard_share=1.0), teacher=Teacher(recipe.teacher.name or teacher or "TEACHER"),
    )  # fmt: skip
    words = ["cache", *words_of(plain)[3:], "--to", folder]
    words += ["--keep-layers", *spelled(layers).split(", ")] if layers else []
    return f"{program()} {shlex.join(words)}"


def _check_kept(recipe: Recipe, wanted: set[int], objective: str) -> None:
    manifest, folder = manifest_of(recipe), recipe.teacher.options["path"]
    kept = manifest.get("settings", {}).get("layers", [])
    if wanted <= set(kept):
        return
    stored, blocks = f"only those of {spelled(kept)}" if kept else "none", tuple(sorted(wanted))
    teacher = str(manifest.get("about", {}).get("teacher", ""))
    command = cache_command(recipe, f"{folder.rstrip('/')}-layers", teacher, blocks)
    raise RecipeError(
        f"{objective} compares hidden states, here of teacher blocks {spelled(blocks)}, and the cache {folder} keeps "
        f"{stored}",
        f"--keep-layers keeps them, in a cache of its own: {command}",
    )
