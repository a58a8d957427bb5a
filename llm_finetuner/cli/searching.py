"""The command sweep: a search for better settings, its table and its winner. Heavy imports stand inside."""

import shlex
from dataclasses import replace
from typing import Any

from llm_finetuner.cli.exits import program
from llm_finetuner.cli.fitting import check_fit
from llm_finetuner.cli.folder import check_shared
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.needed import check_complete
from llm_finetuner.cli.recipes import existing
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe

RECORD = "sweep.json"
BUDGET = ("search", "trials", "minutes", "seeds")


def sweep(given: dict[str, Any], screen) -> Any:
    """sweep RECIPE key=a,b,c ..."""
    from llm_finetuner.recipe_file import load

    recipe = load(existing(given["recipe"]), given.get("set", []))
    recipe = replace(recipe, output=given.get("output", recipe.output))
    budget = {name: given[name] for name in BUDGET if name in given}
    return search(recipe, given.get("assignments", []), budget, screen)


def check_tried(recipe: Recipe) -> None:
    """Raise RecipeError or DataError where the recipe cannot be tried."""
    if recipe.stages:
        raise RecipeError("a chain cannot be searched", "search a recipe of one stage")
    check_complete(recipe)
    check_fit(recipe)


def check_folder(recipe: Recipe) -> None:
    """Raise RecipeError where the folder is of something else; an earlier call's is gone on with."""
    check_shared(recipe, (RECORD,))


def command_of(path: str, recipe: Recipe, assignments: list[str], budget: dict[str, Any]) -> str:
    """The shell command of this search of the recipe in the file `path`."""
    flags = [word for name, value in budget.items() for word in (f"--{name}", str(value))]
    words = ["sweep", path, *assignments, *flags, "--output", recipe.output]
    return f"{program()} {shlex.join(words)}"


def search(
    recipe: Recipe, assignments: list[str], budget: dict[str, Any], screen, again: str = "the same command"
) -> Any:
    """Run the trials, and show the ranking. again: what goes on after an interruption."""
    from llm_finetuner.cli.progress import View
    from llm_finetuner.search.space import parse

    space = parse(assignments)
    if not space:
        raise RecipeError("no setting to vary is named", "examples: temperature=1,2,4 alpha=0.1,0.5")
    check_tried(recipe)
    check_folder(recipe)
    prepare(names_in(recipe), screen.warn)
    try:
        with View(screen) as view:
            from llm_finetuner.sweep import sweep as run

            result = run(recipe, space, **budget, on_event=view)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Finished trials are kept. To go on from there: {again}") from stop
    show(result, screen)
    return result


def show(result: dict[str, Any], screen) -> None:
    """The ranked table, whether it paid, and where the best recipe is."""
    from llm_finetuner.report.sweep_table import PAID, undecided

    screen.heading("Trials, best first")
    names = list(dict.fromkeys(name for line in result["trials"] for name in line["values"]))
    head = ["trial", *names, "loss", "minus the best", "state"]
    screen.table(head, [_cells(line, names) for line in result["trials"]])
    if any(line["apart"] is False for line in result["trials"][1:]):
        screen.show(undecided(result))
    screen.show(PAID[result["report"]["paid"]], "bold")
    screen.show(f"table: {result['table']}")
    screen.show(f"best recipe: {result['recipe']}")
    screen.say("run it with:")
    screen.unfolded(f"{program()} run {shlex.quote(result['recipe'])}")


def _cells(line: dict[str, Any], names: list[str]) -> list[str]:
    loss = "-" if line["loss"] is None else f"{line['loss']:.4f}"
    loss += "" if line["sd"] is None else f" +- {line['sd']:.4f}"
    behind = "-"
    if line["low"] is not None and line["difference"]:
        behind = f"{line['difference']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f})"
    number = f"{line['number']}{' (as given)' if line['given'] else ''}"
    state = line["state"] + (f": {line['error']}" if line["error"] else "")
    values = line["values"]
    return [number, *(str(values.get(name, "-")) for name in names), loss, behind, state]
