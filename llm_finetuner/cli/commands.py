"""What each sub-command does. Heavy imports stand inside the functions."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from llm_finetuner.cli import (
    chains,
    exporting,
    forecasters,
    measuring,
    searching,
    sequences,
    simulating,
    teaching,
)
from llm_finetuner.cli.exits import OK, program
from llm_finetuner.cli.fitting import check_fit, check_task, misfits
from llm_finetuner.cli.folder import check_output, forget_texts
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.needed import check_complete, check_data_named
from llm_finetuner.cli.recipes import existing
from llm_finetuner.cli.settings import OF_ONE_TASK, build, paths_in
from llm_finetuner.cli.training import judged, print_recipe, recipe_in, train_and_compare
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_series import OF_NUMBERS
from llm_finetuner.registry import MENU, menu_entry


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was parsed."""
    from llm_finetuner.cli.console import Screen

    given = vars(args)
    screen = Screen(given.get("json", False), given.get("quiet", False))
    done = COMMANDS[args.command](given, screen)
    screen.result(done)
    return OK


# ---- training


def finetune(given: dict[str, Any], screen) -> Any:
    """finetune and distill: flags -> recipe -> run."""
    distil = given["command"] == "distill"
    first = next(entry[0] for entry in MENU.values() if (entry[1] != "fine_tuning") == distil)
    if "config" in given:
        return run_recipe({**given, "recipe": given["config"]}, screen)
    if given.get("--task") in OF_NUMBERS:
        own = {task: method for method, task in OF_ONE_TASK.items()}
        first = own[given["--task"]] if distil else "full"
    method = given.get("method", first)
    paths = paths_in(given, distil, menu_entry(method)[1])
    recipe = build(method, paths, given.get("set", []))
    if recipe.distils != distil:
        wanted = "distill" if recipe.distils else "finetune"
        raise RecipeError(f"{recipe.method} is not for {given['command']}", f"use: {program()} {wanted} ...")
    return start(recipe, given, screen)


def run_recipe(given: dict[str, Any], screen) -> Any:
    """run RECIPE.yaml key=value ..., and distill --config RECIPE.yaml key=value ... with flags over both."""
    from llm_finetuner.recipe_file import change, load

    recipe = load(existing(given["recipe"]), given.get("assignments", []))
    if "config" in given:
        recipe = change(recipe, paths_in({"--task": recipe.task, **given}, True, recipe.method).items())
    return start(recipe, given, screen)


def start(recipe: Recipe, given: dict[str, Any], screen) -> Any:
    """Check, then show the recipe (--dry-run) or run it."""
    if recipe.stages:
        return chains.start(recipe, given, screen)
    check_complete(recipe)
    if given.get("dry_run"):
        for words in [*recipe.warnings(), *misfits(recipe)]:
            screen.warn(words)
        if not screen.as_json:
            print_recipe(recipe)
        return recipe.to_dict()
    check_output(recipe, given.get("overwrite", False))
    check_fit(recipe)
    if given.get("overwrite"):
        forget_texts(recipe)
    compare_too = recipe.distils and not given.get("no_compare")
    return train_and_compare(recipe, screen, compare_too, judged(given))


def resume(given: dict[str, Any], screen) -> Any:
    """resume RUN: the recipe in the folder, wherever the folder stands now."""
    if chains.is_chain(given["run"]):
        return chains.resume(given, screen)
    recipe = dataclasses.replace(recipe_in(given["run"]), output=given["run"])
    compare_too = recipe.distils and not given.get("no_compare")
    return train_and_compare(recipe, screen, compare_too, judged(given), resume=True)


def quickstart(given: dict[str, Any], screen) -> Any:
    """quickstart, with the flags that were given."""
    from llm_finetuner.cli.progress import View

    names = ("steps", "seed", "fresh_teacher", "hub", "output")
    try:
        with View(screen) as view:
            from llm_finetuner import quickstart as job

            verdict = job.run(**{name: given[name] for name in names if name in given}, on_event=view)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("What was finished is kept in the output folder.") from stop
    screen.verdict(verdict)
    screen.show(f"report: {verdict['report']}")
    screen.show("")
    screen.show("what to try next:")
    for command, why in NEXT:
        screen.show(f"  {program()} {command}    # {why}")
    return verdict


NEXT = (
    ("quickstart --steps 400", "train longer: the teacher's lead at equal steps shrinks"),
    (
        "run recipes/quickstart.yaml temperature=2 alpha=0.5 output=outputs/second",
        "the settings most guides name",
    ),
    ("", "your own models and data: the menu"),
)


# ---- looking


def preview(given: dict[str, Any], screen) -> Any:
    """preview --data ... --student ...: the shape, and two rows with what is learned in colour; of series the parts."""
    from llm_finetuner.cli.preview import look
    from llm_finetuner.cli.soft import check_soft, soft_labels

    recipe = build("full", paths_in(given, distil=True))
    check_data_named(recipe) if recipe.task in OF_NUMBERS else check_complete(recipe)  # no model
    check_task(recipe)
    check_soft(recipe)
    prepare(names_in(recipe), screen.warn)
    sight = look(recipe)
    sight.show(screen)
    said = sight.plain()
    if recipe.teacher:
        from llm_finetuner.benchmark.soft_labels import render

        screen.say("Loading the teacher ...", "dim")
        rows, texts = soft_labels(recipe)
        screen.heading(f"Soft labels of {recipe.teacher.name}")
        screen.show(render(rows, texts))
        said["soft_labels"] = [{"text": text, **row} for text, row in zip(texts, rows, strict=True)]
    return said


def doctor(given: dict[str, Any], screen) -> Any:
    """doctor: one line a check."""
    from llm_finetuner.cli.doctor import checks

    found = checks(given.get("online", False))
    screen.facts((("ok" if check.ok else "!!") + f" {check.name}", check.says) for check in found)
    return [dataclasses.asdict(check) for check in found]


def listing(given: dict[str, Any], screen) -> Any:
    """list [what]."""
    from llm_finetuner.cli import listing as tables

    return tables.show(given.get("what"), given.get("folder", "outputs"), screen)


def evaluate(given: dict[str, Any], screen) -> Any:
    """evaluate --model MODEL: a forecaster on a table, or a model of sequences on theirs."""
    return (sequences if sequences.is_for(given) else forecasters).evaluate(given, screen)


COMMANDS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "finetune": finetune, "distill": finetune, "run": run_recipe, "resume": resume, "cache": teaching.cache,
    "generate": teaching.generate, "sweep": searching.sweep, "compare": measuring.compare,
    "benchmark": measuring.benchmark, "evaluate": evaluate, "forecast": forecasters.forecast,
    "export": exporting.export, "quickstart": quickstart, "preview": preview, "simulate": simulating.simulate,
    "doctor": doctor, "list": listing,
}  # fmt: skip
