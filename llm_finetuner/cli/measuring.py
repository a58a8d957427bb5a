"""The commands compare and benchmark. Heavy imports stand inside the functions."""

import json
from pathlib import Path
from typing import Any

from llm_finetuner.cli.exits import program
from llm_finetuner.cli.hub import prepare
from llm_finetuner.cli.needed import WRITING
from llm_finetuner.cli.training import check_finished, comparison, recipe_in
from llm_finetuner.errors import DataError, RecipeError


def compare(given: dict[str, Any], screen) -> Any:
    """compare RUN."""
    check_finished(given["run"])
    prompts = read_lines(given["prompts"], "prompt") if "prompts" in given else None
    return comparison(given["run"], screen, given.get("baseline", False), prompts)


def benchmark(given: dict[str, Any], screen) -> Any:
    """benchmark MODEL --prompts FILE [--references FILE]."""
    check_writes(given["model"])
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


def check_writes(model: str) -> None:
    """Raise RecipeError for a run whose model completes no prompts."""
    if (Path(model) / "recipe.yaml").exists() and recipe_in(model).task not in WRITING:
        raise RecipeError(
            f"{model} is a model for {recipe_in(model).task}, which completes no prompts",
            f"its figures on held-out rows: {program()} compare {model}",
        )


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
