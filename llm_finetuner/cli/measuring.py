"""The commands compare and benchmark. Heavy imports stand inside the functions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.configs import has_two_stacks
from llm_finetuner.cli.exits import program
from llm_finetuner.cli.hub import prepare
from llm_finetuner.cli.needed import TRANSFORMING, WRITING
from llm_finetuner.cli.training import check_finished, comparison, judged, recipe_in
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.recipe import Data
from llm_finetuner.registry import TASKS, resolve


def compare(given: dict[str, Any], screen) -> Any:
    """compare RUN [RUN ...]."""
    others = given.get("others", [])
    for folder in (given["run"], *others):
        check_finished(folder)
    prompts = read_lines(given["prompts"], "prompt") if "prompts" in given else None
    return comparison(given["run"], screen, judged(given), prompts, others)


def benchmark(given: dict[str, Any], screen) -> Any:
    """benchmark MODEL --prompts FILE [--references FILE]."""
    task, data = written_by(given["model"])
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

    model = load_trained(name, merge=True, auto=resolve(TASKS, task).auto)
    tuner = LLMFineTuner(model, task=task, tokenizer=load_tokenizer(name))
    tuner.recipe = replace(tuner.recipe, data=replace(data, prefix=given.get("prefix", data.prefix)))
    tuner.load_model(method="full")
    figures = tuner.benchmark(prompts, references)
    # the facade reports no overlap as a number above 0, for ratios
    figures = {name: 0.0 if value == ROUGE_FLOOR else value for name, value in figures.items()}
    screen.scores(figures, tuner.benchmarked_against)
    return {**figures, "scored_against": tuner.benchmarked_against}


def written_by(model: str) -> tuple[str, Data]:
    """(the task of a model that writes, how a run read its data). Raises RecipeError for one that writes nothing."""
    if not (Path(model) / "recipe.yaml").exists():
        return (TRANSFORMING if has_two_stacks(model) else WRITING)[0], Data()
    recipe = recipe_in(model)
    if recipe.task not in (*WRITING, *TRANSFORMING):
        raise RecipeError(
            f"{model} is a model for {recipe.task}, which completes no prompts",
            f"its figures on held-out rows: {program()} compare {model}",
        )
    return recipe.task, recipe.data


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
