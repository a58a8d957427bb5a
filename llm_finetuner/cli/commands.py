"""What each sub-command does. Heavy imports stand inside the functions."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_finetuner.cli.exits import OK, TERMINATED, program
from llm_finetuner.cli.folder import check_output
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.settings import build, settings
from llm_finetuner.errors import CheckpointError, DataError, RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import MENU

# What `--overwrite` removes when the new run begins; the loop itself forgets the old log and checkpoints.
STALE_FILES = (
    "report.html", "report.md", "metrics.json", "config.json", "generation_config.json", "model.safetensors",
    "adapter_config.json", "adapter_model.safetensors",
)  # fmt: skip


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
    paths = {s.path: value_of(s, given[s.path]) for s in settings(distil) if s.path in given}
    recipe = build(given.get("method", first), paths, given.get("set", []))
    if recipe.needs_teacher != distil:
        wanted = "distill" if recipe.needs_teacher else "finetune"
        raise RecipeError(f"{recipe.method} is not for {given['command']}", f"use: {program()} {wanted} ...")
    return start(recipe, given, screen)


def value_of(setting, typed: Any) -> Any:
    """A flag's value; booleans come from argparse as they are. Raises RecipeError."""
    return typed if isinstance(typed, bool) else setting.parse(typed)


def run_recipe(given: dict[str, Any], screen) -> Any:
    """run RECIPE.yaml key=value ..."""
    from llm_finetuner.recipe_file import load

    return start(load(given["recipe"], given.get("assignments", [])), given, screen)


def start(recipe: Recipe, given: dict[str, Any], screen) -> Any:
    """Check, then show the recipe (--dry-run) or run it."""
    check_complete(recipe)
    if given.get("dry_run"):
        for words in recipe.warnings():
            screen.warn(words)
        if not screen.as_json:
            print_recipe(recipe)
        return recipe.to_dict()
    check_output(recipe, given.get("overwrite", False))
    compare_too = recipe.needs_teacher and not given.get("no_compare")
    return train_and_compare(recipe, screen, compare_too, given.get("baseline", False))


def print_recipe(recipe: Recipe) -> None:
    """The resolved recipe as YAML."""
    import yaml

    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False), end="")


def check_complete(recipe: Recipe) -> None:
    """Raise RecipeError for what has no default and was not given."""
    for value, path, flag in (
        (recipe.student.name, "student.name", "--student"),
        (not recipe.needs_teacher or (recipe.teacher and recipe.teacher.name), "teacher.name", "--teacher"),
        (recipe.data.source, "data.source", "--data"),
    ):
        if not value:
            raise RecipeError(f"{path} is missing", f"give it with {flag}, or as {path}=... in a recipe")


def train_and_compare(recipe: Recipe, screen, compare_too: bool, baseline: bool, resume: bool = False) -> Any:
    """Train with the live view, then compare; returns what --json prints."""
    metrics = train(recipe, screen, resume)
    found = {"output": recipe.output, "metrics": metrics}
    if compare_too:
        found["verdict"] = comparison(recipe.output, screen, baseline)
    return found


def train(recipe: Recipe, screen, resume: bool) -> dict[str, Any]:
    """Train with the live view; an interruption says what was saved and how to go on."""
    from llm_finetuner.cli.progress import View

    prepare(names_in(recipe), screen.warn)
    view = View(screen)

    def on_event(kind: str, record: dict[str, Any]) -> None:
        if "output" in record:
            record = {**record, "output": recipe.output}  # as it was typed, ./ and all
        if kind == "plan" and not resume:  # all is loaded: from here on the folder is the new run's
            for name in STALE_FILES:
                (Path(recipe.output) / name).unlink(missing_ok=True)
        view(kind, record)

    try:
        with view:
            from llm_finetuner.trainer import fit

            return fit(recipe, resume=resume, on_event=on_event).metrics
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(saved(view, recipe.output)) from stop
    except SystemExit as stop:
        if stop.code == TERMINATED:
            screen.show(f"Terminated. {saved(view, recipe.output)}")
        raise


def saved(view, folder: str) -> str:
    """What an interrupted run left, and the command that goes on with it."""
    if view.checkpoint is None and not (Path(folder) / "checkpoints").exists():
        return "No step was finished, so nothing was saved."
    newest = os.path.basename(view.checkpoint or "")
    return f"Saved: {os.path.join(folder, 'checkpoints', newest)}\nGo on with: {program()} resume {folder}"


def resume(given: dict[str, Any], screen) -> Any:
    """resume RUN: the recipe in the folder, wherever the folder stands now."""
    recipe = dataclasses.replace(recipe_in(given["run"]), output=given["run"])
    compare_too = recipe.needs_teacher and not given.get("no_compare")
    return train_and_compare(recipe, screen, compare_too, given.get("baseline", False), resume=True)


def recipe_in(folder: str) -> Recipe:
    """The recipe of a run. Raises CheckpointError where there is none."""
    from llm_finetuner.recipe_file import load

    path = Path(folder) / "recipe.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no run: there is no {path}", f"{program()} list runs")
    return load(path)


# ---- measuring


def compare(given: dict[str, Any], screen) -> Any:
    """compare RUN."""
    recipe_in(given["run"])
    if not (Path(given["run"]) / "training.json").exists():
        raise CheckpointError(
            f"the run in {given['run']} was not finished", f"go on with it: {program()} resume {given['run']}"
        )
    prompts = read_lines(given["prompts"], "prompt") if "prompts" in given else None
    return comparison(given["run"], screen, given.get("baseline", False), prompts)


def comparison(folder: str, screen, baseline: bool, prompts: list[str] | None = None) -> Any:
    """Compare, show the verdict and where the report is."""
    from llm_finetuner.cli.progress import View

    screen.heading("Comparing")
    prepare(names_in(recipe_in(folder)), screen.warn)
    try:
        with View(screen) as view:
            from llm_finetuner.comparison import compare_run

            verdict = compare_run(folder, baseline=baseline, prompts=prompts, on_event=view)
    except KeyboardInterrupt as stop:
        again = f"{program()} compare {folder}{' --baseline' if baseline else ''}"
        raise KeyboardInterrupt(f"The trained model is in {folder}. Compare later: {again}") from stop
    screen.verdict(verdict)
    screen.show(f"report: {os.path.join(folder, 'report.html')}")
    return verdict


def benchmark(given: dict[str, Any], screen) -> Any:
    """benchmark MODEL --prompts FILE [--references FILE]."""
    prompts = read_lines(given["prompts"], "prompt")
    references = read_lines(given["references"], "reference") if "references" in given else None
    if references is not None and len(references) != len(prompts):
        raise DataError(f"{len(prompts)} prompts but {len(references)} references", "one reference a prompt")
    from llm_finetuner.cli.progress import quiet_libraries

    name = given["model"]
    prepare([name], screen.warn)
    screen.say("Loading ...", "dim")
    quiet_libraries()
    from llm_finetuner.benchmark.text import ROUGE_FLOOR
    from llm_finetuner.finetuner import LLMFineTuner
    from llm_finetuner.models.loading import load_tokenizer, load_trained

    tuner = LLMFineTuner(load_trained(name, merge=True), tokenizer=load_tokenizer(name))
    tuner.load_model(method="full")
    figures = tuner.benchmark(prompts, references)
    # the facade reports no overlap as a number above 0, for ratios
    figures = {name: 0.0 if value == ROUGE_FLOOR else value for name, value in figures.items()}
    screen.scores(figures, tuner.benchmarked_against)
    return {**figures, "scored_against": tuner.benchmarked_against}


def read_lines(path: str, key: str) -> list[str]:
    """One text a line; from .jsonl, the value of `key` (or the line itself, if it is a string). Raises DataError."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "give a UTF-8 text file, one a line") from error
    if not lines:
        raise DataError(f"{path} holds no lines", f"write one {key} a line")
    if Path(path).suffix != ".jsonl":
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.append(row if isinstance(row, str) else row[key])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not JSON with a {key!r}", f'{{"{key}": "..."}}'
            ) from error
    return found


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
    """preview --data ... --student ...: the shape, and two rows with what is learned in colour."""
    from llm_finetuner.cli.preview import look

    paths = {s.path: value_of(s, given[s.path]) for s in settings(False) if s.path in given}
    recipe = build("full", paths)
    check_complete(recipe)
    prepare(names_in(recipe), screen.warn)
    sight = look(recipe)
    screen.show(sight.sentence)
    screen.preview(sight.rows)
    return {"sentence": sight.sentence, "examples": sight.examples, "rows": sight.rows}


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


COMMANDS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "finetune": finetune, "distill": finetune, "run": run_recipe, "resume": resume, "compare": compare,
    "benchmark": benchmark, "quickstart": quickstart, "preview": preview, "doctor": doctor, "list": listing,
}  # fmt: skip
