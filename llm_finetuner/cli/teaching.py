"""The commands cache and generate: what a teacher leaves on disk. Heavy imports stand inside the functions."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.answers import CACHE
from llm_finetuner.cli.exits import program
from llm_finetuner.cli.fitting import check_fit, check_kept_layers
from llm_finetuner.cli.folder import OTHER, check_shared
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.needed import check_complete, is_part
from llm_finetuner.cli.settings import build, paths_in
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import kept_blocks
from llm_finetuner.recipe import Recipe, Teacher

ENOUGH_MASS = 0.8


def cache(given: dict[str, Any], screen) -> Any:
    """cache --student S --teacher T --data D --to FOLDER."""
    recipe = build("vanilla_distillation", paths_in(given, distil=True), given.get("set", []))
    names = {"k": "k", "mode": "mode", "draws": "draws", "keep_layers": "layers"}
    options = {names[name]: given[name] for name in names if name in given}
    if recipe.teacher:
        check_kept_layers(recipe, kept_blocks(options.get("layers"), "--keep-layers"))
    return write_cache(recipe, _needed(given, "FOLDER"), options, screen)


def write_cache(recipe: Recipe, folder: str, options: dict[str, Any], screen) -> Any:
    """Write the answers of the recipe's teacher, and say what that loses and how to use them."""
    check_cache(recipe, folder)
    with _kept(screen, names_in(recipe)) as view:
        from llm_finetuner.cache_job import cache_answers

        figures = cache_answers(recipe, folder, on_event=view, **options)
    repeats = figures["repeats"]
    again = f"; {repeats:,} more rows repeat one of them and are stored once" if repeats else ""
    rows = [
        ("answers to", f"{figures['rows']:,} rows, {figures['tokens']:,} answers{again}"),
        ("size", f"{figures['bytes_per_token']:.0f} bytes an answer, beside hidden states"),
    ]
    if figures["mean_kl"] is not None:
        unit = "squared units" if recipe.task == "forecasting" else "nats an answer, KL(teacher || cache)"
        rows.append(("mean error", f"{figures['mean_kl']:.5f} {unit}"))
    if figures["top_mass"] is not None:
        mass = figures["top_mass"]
        few = "" if mass >= ENOUGH_MASS else ": more would lose less (--k)"
        rows.append((f"held by the {options.get('k', 50)} best", f"{mass:.1%} of the probability{few}"))
    rows.append(("in", folder))
    screen.facts(rows)
    command = use_of(recipe, folder)
    screen.say("train from it:")
    screen.unfolded(command)
    return {**figures, "command": command}


def check_cache(recipe: Recipe, folder: str) -> None:
    """Raise RecipeError where the answers cannot be had, or the folder is somebody else's."""
    check_complete(recipe)
    check_fit(recipe, trains=False)
    if recipe.teacher.kind != "live":
        raise RecipeError("only the answers of one live teacher can be cached", "give one --teacher")
    check_shared(replace(recipe, output=folder), CACHE, "--to")  # any of its files: a cache began here


def use_of(recipe: Recipe, folder: str) -> str:
    """The command that trains from a cache."""
    name = recipe.teacher.name if is_part(recipe.student.name) else ""
    cached = Teacher(name, kind="cached", options={"path": folder})
    return f"{program()} {shlex.join(words_of(replace(recipe, teacher=cached)))}"


def generate(given: dict[str, Any], screen) -> Any:
    """generate --teacher T --data D --to FILE."""
    paths = paths_in(given, True, "sequence_distillation")
    paths.setdefault("student.name", paths.get("teacher.name", ""))
    recipe = build("sequence_distillation", paths, given.get("set", []))
    return write_data(recipe, _needed(given, "FILE"), screen, given.get("overwrite", False))


def write_data(recipe: Recipe, path: str, screen, overwrite: bool = False) -> Any:
    """Have the recipe's teacher write a data set, and say how to use it. overwrite: what it wrote before goes."""
    check_file(recipe, path)
    with _kept(screen, names_in(recipe)) as view:
        from llm_finetuner.writing_job import write_dataset

        figures = write_dataset(recipe, path, overwrite=overwrite, on_event=view)
    screen.show(f"{figures['rows']:,} completions, {figures['tokens']:,} tokens, in {path}")
    if figures["cut"]:
        longest = recipe.options["max_new_tokens"]
        screen.warn(f"{figures['cut']} were cut at {longest} tokens: --max-new-tokens allows more")
    if figures["blank"]:
        screen.warn(f"{figures['blank']} were blank and are left out")
    command = f"{program()} finetune --method full --student MODEL --data {shlex.quote(path)}"
    screen.say("train on it:")
    screen.unfolded(command)
    return figures


def check_file(recipe: Recipe, path: str) -> None:
    """Raise RecipeError where the teacher cannot write, or the file is not a new one of ours."""
    if recipe.teacher is None or not recipe.teacher.name:
        raise RecipeError("teacher.name is missing", "give it with --teacher")
    check_complete(recipe)
    check_fit(recipe)
    target = Path(path).expanduser()
    if target.suffix != ".jsonl":
        raise RecipeError(f"{path} does not end in .jsonl", "data are read by the ending of their file")
    if target.exists() and not target.with_name(f"{target.name}.tokens").exists():
        raise RecipeError(f"{path} exists already, and no teacher of ours wrote it", "choose another --to")
    if target.parent.exists() and not target.parent.is_dir():
        raise RecipeError(f"{target.parent} is a file", OTHER.replace("--output", "--to"))


def _needed(given: dict[str, Any], what: str) -> str:
    if "to" not in given:
        raise RecipeError("it is not said where to write", f"give it with --to {what}")
    return given["to"]


class _kept:
    """A view whose interruption says that the same command goes on."""

    def __init__(self, screen, names: list[str | None]):
        from llm_finetuner.cli.progress import View

        prepare(names, screen.warn)
        self.view = View(screen)

    def __enter__(self):
        return self.view.__enter__()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.view.__exit__(kind, *rest)
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt("What was written is kept: the same command goes on from there.")
