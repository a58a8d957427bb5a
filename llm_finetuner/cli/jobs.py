"""The entries of the menu. Each returns an exit code, or BACK for the menu again."""

import os
import shlex
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

from llm_finetuner.cli import chains, commands, measuring, prompts, side_jobs
from llm_finetuner.cli.confirm import confirm_screen
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.exits import OK, program
from llm_finetuner.cli.folder import check_output
from llm_finetuner.cli.listing import runs_in
from llm_finetuner.cli.needed import TRANSFORMING, check_complete
from llm_finetuner.cli.prompts import BACK, Ask, Pick
from llm_finetuner.cli.questions import whole_number
from llm_finetuner.cli.recipes import existing, offered
from llm_finetuner.cli.training import Judged, recipe_in, train_and_compare
from llm_finetuner.cli.walk import Walk
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import FinetunerError, RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS

OTHER = "another folder ..."
ONCE = Judged()


def distil_or_finetune(method: str, job: str = "train") -> Any:
    """The walk through the questions, the confirmation, the run."""
    screen = Screen()
    walk = Walk(method, screen, job)
    while True:
        recipe = walk.forward()
        if recipe is BACK:
            return BACK
        done = decide(recipe, screen)
        if done is not BACK:
            return done
        walk.back()


def decide(recipe: Recipe, screen: Screen) -> Any:
    """Show what would be run; start it, save it, go back or leave."""
    fits = confirm_screen(recipe, screen)
    choices = [
        ("start", "Start", "", None),
        ("back", "Go back and change something", "", None),
        ("save", "Save the recipe only", "", None),
        ("quit", "Leave", "", None),
    ]
    how = ask_judged(recipe) if recipe.distils and fits else Judged()
    if how is BACK:
        return BACK
    answer = prompts.ask("Start?", "", Pick(choices, "start" if fits else "back"))
    if answer in (BACK, "back"):
        return BACK
    if answer == "save":
        return save(recipe, screen, how)
    if answer == "quit":
        screen.say("Nothing was changed.")
        return OK
    return carry_out(recipe, screen, how)


def ask_judged(recipe: Recipe) -> Any:
    """How the run is to be compared; or BACK. Models of numbers are always held against the student alone."""
    if recipe.task in OF_NUMBERS and not recipe.stages:
        why = "Pairs of students with and without the teacher: what it adds has to be seen with each seed. 3 tell more."
        seeds = prompts.ask("How many seeds?", why, Ask("1", whole_number))
        return BACK if seeds is BACK else Judged(seeds=seeds)
    baseline = ask_baseline()
    return BACK if baseline is BACK else Judged(baseline)


def ask_baseline() -> Any:
    """Whether the comparison trains the baselines too."""
    yes = (
        True,
        "Yes",
        "The same student on the data alone: for the same steps, and for the same compute",
        None,
    )
    no = (False, "No", "Teacher, untouched student and distilled student only", None)
    why = "They tell whether the teacher helped, and take about twice the training time again."
    return prompts.ask("Train baselines for the comparison?", why, Pick([no, yes], False))


def carry_out(recipe: Recipe, screen: Screen, how: Judged) -> int:
    """Train, compare, and print the command that does the same."""
    screen.say()
    if recipe.stages:
        return carry_out_chain(recipe, screen, how)
    train_and_compare(recipe, screen, recipe.distils, how)
    screen.say()
    screen.say(f"model and recipe: {recipe.output}")
    if recipe.task == FORECASTING:
        screen.say("the steps after the end of the table:")
        screen.unfolded(f"{program()} forecast --model {shlex.quote(recipe.output)} --level 80 90")
    screen.say("the same by command:")
    screen.unfolded(command_of(recipe, how))
    return OK


def carry_out_chain(recipe: Recipe, screen: Screen, how: Judged) -> int:
    """Run the stages; their recipe stands in the folder."""
    chains.run(recipe, screen, True, how.baseline)
    path = os.path.join(recipe.output, chains.FILE)
    screen.say(f"models: {recipe.output}\nthe same by command:")
    screen.unfolded(" ".join([program(), "run", shlex.quote(path), "output=outputs/another", *how.words]))
    return OK


def command_of(recipe: Recipe, how: Judged = ONCE) -> str:
    """The shell command that gives this recipe again."""
    return f"{program()} {shlex.join([*words_of(recipe), *how.words])}"


def save(recipe: Recipe, screen: Screen, how: Judged = ONCE) -> Any:
    """Write the recipe without running it."""
    from llm_finetuner import recipe_file

    def free(typed: str) -> str:
        if Path(typed.strip()).exists():
            raise RecipeError(f"{typed.strip()} exists already", "choose another name")
        return typed.strip()

    path = prompts.ask("Save as", "", Ask(f"{recipe.output}.yaml", free, is_path=True))
    if path is BACK:
        return BACK
    recipe_file.save(recipe, path)
    again = " ".join([program(), "run", shlex.quote(path), *how.words])
    screen.say(f"saved: {path}\nrun it with: {again}")
    screen.say("the same by command:")
    screen.unfolded(command_of(recipe, how))
    return OK


# ---- the other entries


def run_recipe() -> Any:
    """Choose a recipe, show it, run it."""
    from llm_finetuner import recipe_file

    screen = Screen()

    def load(typed: str) -> Recipe:
        recipe = recipe_file.load(existing(typed))
        if recipe.stages:
            from llm_finetuner.chain import stages_of

            chains.check(recipe, stages_of(recipe), overwrite=False)
        else:
            check_complete(recipe)
            check_output(recipe)
        return recipe

    found = offered() or ["recipe.yaml"]
    recipe = prompts.ask("Recipe", "A .yaml file (Tab completes).", Ask(found[0], load, is_path=True))
    return BACK if recipe is BACK else decide(recipe, screen)


def choose_run(title: str, needs: str, unfinished: bool = False) -> Any:
    """One of the runs in outputs/ that has the file or folder `needs`, or a typed one; with `unfinished` chains too."""
    runs = [run for run in runs_in("outputs") if (Path(run.folder) / needs).exists()]
    found = [run for run in runs if not (unfinished and run.finished)]

    def check(typed: str) -> str:
        folder = os.path.expanduser(typed.strip())
        if not (Path(folder) / needs).exists() and not (unfinished and chains.is_chain(folder)):
            raise RecipeError(f"{folder} has no {needs}", "give the folder of a run")
        return folder

    choices = [(run.folder, run.folder, run.summary, None) for run in found[:30]]
    for path in Path("outputs").glob(f"**/{chains.FILE}") if unfinished else ():
        if not (path.parent / "chain.json").exists():
            choices.insert(0, (str(path.parent), str(path.parent), "a chain of stages", None))
    if choices:
        answer = prompts.ask(title, "", Pick([*choices, (OTHER, OTHER, "", None)], choices[0][0]))
        if answer != OTHER:
            return answer
    return prompts.ask(title, f"A folder with {needs} in it.", Ask("outputs/run", check, is_path=True))


def resume() -> Any:
    """Go on with a run."""
    folder = choose_run("Which run?", "checkpoints", unfinished=True)
    if folder is BACK:
        return BACK
    commands.resume({"run": folder}, Screen())
    return OK


def compare() -> Any:
    """Compare the models of a run, or score completions."""
    choices = [
        ("compare", "Compare", "Teacher, untouched student and distilled student of a run", None),
        ("benchmark", "Benchmark", "Score a model's completions of a file of prompts", None),
    ]
    what = prompts.ask("Compare or benchmark?", "", Pick(choices, "compare"))
    folder = BACK if what is BACK else choose_run("Which run?", "training.json")
    if folder is BACK:
        return BACK
    screen = Screen()
    if what == "compare":
        recipe = recipe_in(folder)
        how = ask_judged(recipe) if recipe.distils else Judged()
        if how is BACK:
            return BACK
        measuring.compare({"run": folder, **vars(how)}, screen)
        return OK
    files = ask_files(recipe_in(folder).task)
    if files is BACK:
        return BACK
    measuring.benchmark({"model": folder, **files}, screen)
    return OK


def ask_files(task: str) -> Any:
    """{"prompts": path}, and "references" for sources, which have no second half to be held against; or BACK."""
    found = {}
    for key in ("prompts", *(["references"] if task in TRANSFORMING else [])):
        one = key.removesuffix("s")
        typed = Ask(f"{key}.txt", partial(file_of_lines, one), is_path=True)
        found[key] = prompts.ask(key.capitalize(), f'One {one} a line, or .jsonl with "{one}".', typed)
        if found[key] is BACK:
            return BACK
    return found


def file_of_lines(key: str, typed: str) -> str:
    """A file of prompts or of references as typed. Raises RecipeError."""
    try:
        measuring.read_lines(typed.strip(), key)
    except FinetunerError as error:
        raise RecipeError(error.what, error.hint) from error
    return typed.strip()


def open_report() -> Any:
    """Open a run's report in the browser."""
    folder = choose_run("Which report?", "report.html")
    if folder is BACK:
        return BACK
    path = (Path(folder) / "report.html").resolve()
    opened = webbrowser.open(path.as_uri())
    Screen().say(f"{'opened' if opened else 'no browser here; open'} {path}")
    return BACK


def chain() -> Any:
    """The walk through a teacher and its students, one after the other."""
    return distil_or_finetune("vanilla_distillation", "chain")


def doctor() -> Any:
    """Show what this machine has."""
    commands.doctor({}, Screen())
    return BACK


OTHERS = {
    "p": chain, "r": run_recipe, "s": resume, "c": compare, "k": side_jobs.cache, "w": side_jobs.write,
    "f": side_jobs.search, "o": open_report, "d": doctor,
}  # fmt: skip
