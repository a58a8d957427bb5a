"""The entries of the menu that are no run: a cache, a data set that a teacher writes, a search for better settings."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli import prompts, searching, teaching
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.exits import OK
from llm_finetuner.cli.prompts import BACK, Ask, Pick
from llm_finetuner.cli.questions import whole_number
from llm_finetuner.cli.recipes import existing, offered
from llm_finetuner.cli.walk import Walk
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe


def cache() -> Any:
    """Write a teacher's answers down."""
    screen = Screen()

    def carry_out(recipe: Recipe, answers: dict[str, Any]) -> None:
        options = {"k": answers["job.k"]} if "job.k" in answers else {}  # of few labels all are kept
        teaching.write_cache(recipe, answers["job.to"], options, screen)

    return teacher_job("vanilla_distillation", "cache", screen, teaching.check_cache, carry_out)


def write() -> Any:
    """Let a teacher write a data set."""
    screen = Screen()

    def carry_out(recipe: Recipe, answers: dict[str, Any]) -> None:
        teaching.write_data(recipe, answers["job.to"], screen)

    return teacher_job("sequence_distillation", "write", screen, teaching.check_file, carry_out)


def teacher_job(method: str, job: str, screen: Screen, check: Any, carry_out: Any) -> Any:
    """The questions, asked again from the last one on while what is asked for cannot be; then the work."""
    walk = Walk(method, screen, job)
    while True:
        recipe = walk.forward()
        if recipe is BACK:
            return BACK
        try:
            check(recipe, walk.answers["job.to"])
        except RecipeError as error:
            screen.error(error)
            walk.back()
            continue
        carry_out(recipe, walk.answers)
        return OK


def search() -> Any:
    """Try settings of a recipe."""
    from llm_finetuner import recipe_file
    from llm_finetuner.search.space import parse

    def load(typed: str) -> tuple[str, Recipe]:
        path = existing(typed)
        recipe = recipe_file.load(path)
        searching.check_tried(recipe)
        return str(path), recipe

    def space(typed: str) -> list[str]:
        words = shlex.split(typed)
        if not parse(words):
            raise RecipeError("name a setting and its values", "such as temperature=1,2,4")
        return words

    found = offered() or ["recipe.yaml"]
    chosen = prompts.ask(
        "Recipe", "It is tried as it is, too (Tab completes).", Ask(found[0], load, is_path=True)
    )
    if chosen is BACK:
        return BACK
    path, recipe = chosen
    recipe = in_free_folder(recipe)
    if recipe is BACK:
        return BACK
    why = "key=a,b,c, separated by blanks; low:high or low:high:log draws numbers between."
    words = prompts.ask("Settings to vary", why, Ask("temperature=1,2,4 alpha=0.1,0.5", space))
    if words is BACK:
        return BACK
    ranges = any(isinstance(values, dict) for values in parse(words).values())
    grid = ("grid", "Every combination", "", None)
    optuna = ("optuna", "Proposals by Optuna", "It stops trials that look hopeless", None)
    how = "optuna" if ranges else prompts.ask("Which are tried?", "", Pick([grid, optuna], "grid"))
    trials = prompts.ask("How many trials?", "", Ask("20", whole_number)) if how == "optuna" else None
    if how is BACK or trials is BACK:
        return BACK
    budget = {"search": how, **({"trials": trials} if trials else {})}
    return begin(recipe, words, budget, searching.command_of(path, recipe, words, budget))


def in_free_folder(recipe: Recipe) -> Any:
    """The recipe, with a folder that is asked for where something else is in its own; BACK where none is named."""

    def free(typed: str) -> Recipe:
        moved = replace(recipe, output=os.path.expanduser(typed.strip()))
        searching.check_folder(moved)
        return moved

    try:
        return free(recipe.output)
    except RecipeError as error:
        names = (f"{recipe.output}-search{number}" for number in ("", *range(2, 1000)))
        offered_name = next(name for name in names if not Path(name).exists())
        why = f"The trials go here, for {error.what}."
        return prompts.ask("Output folder", why, Ask(offered_name, free, is_path=True))


def begin(recipe: Recipe, words: list[str], budget: dict[str, Any], command: str) -> Any:
    """Say how many trials there will be, and start them if that is wanted."""
    from llm_finetuner.search.space import grid, parse

    count = budget.get("trials") or len(grid(parse(words)))
    why = f"{count} {'trial' if count == 1 else 'trials'} and the recipe as it is, each a run in {recipe.output}."
    choices = [("start", "Start", "", None), ("quit", "Leave", "Nothing is changed", None)]
    answer = prompts.ask("Start?", why, Pick(choices, "start"))
    if answer is BACK:
        return BACK
    screen = Screen()
    if answer == "start":
        searching.search(recipe, words, budget, screen, again=command)
    screen.say("the same by command:")
    screen.unfolded(command)
    return OK
