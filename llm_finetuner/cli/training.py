"""A run with its live view, and the comparison after it. Heavy imports stand inside the functions."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetuner.cli.exits import TERMINATED, program
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.errors import CheckpointError
from llm_finetuner.ranges import check_count
from llm_finetuner.recipe import Recipe
from llm_finetuner.run import SHARE

# What `--overwrite` removes when the new run begins; the loop itself forgets the old log and checkpoints.
STALE_FILES = (
    "report.html", "report.md", "metrics.json", "config.json", "generation_config.json", "model.safetensors",
    "adapter_config.json", "adapter_model.safetensors", "adapter_labels.json",
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """How a run is compared: with baselines too, and in so many pairs of seeds."""

    baseline: bool = False
    seeds: int = 1

    @property
    def words(self) -> list[str]:
        """As flags."""
        seeds = ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        return [*(["--baseline"] if self.baseline else []), *seeds]


def judged(given: dict[str, Any]) -> Judged:
    """Of the flags that were given. Raises RecipeError."""
    seeds = given.get("seeds", 1)
    check_count("seeds", seeds, 1)
    return Judged(given.get("baseline", False), seeds)


def train_and_compare(recipe: Recipe, screen, compare_too: bool, how: Judged, resume: bool = False) -> Any:
    """Train with the live view, then compare; returns what --json prints."""
    metrics = train(recipe, screen, resume)
    found = {"output": recipe.output, "metrics": metrics}
    if compare_too:
        found["verdict"] = comparison(recipe.output, screen, how)
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
            from llm_finetuner import share

            return share.train(recipe, resume=resume, on_event=on_event)[1].metrics
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(saved(view, recipe.output)) from stop
    except SystemExit as stop:
        if stop.code == TERMINATED:
            screen.show(f"Terminated. {saved(view, recipe.output)}")
        raise


def saved(view, folder: str, chain: str = "") -> str:
    """What an interrupted run, or a stage of a chain, left, and the command that goes on with it."""
    again = f"Go on with: {program()} resume {chain or folder}"
    if not (Path(folder) / "checkpoints").exists() and (tried := _tried(Path(folder))):
        return f"{tried}\n{again}"
    if view.checkpoint is None and not (Path(folder) / "checkpoints").exists():
        return (
            f"Finished stages are kept.\n{again}" if chain else "No step was finished, so nothing was saved."
        )
    newest = os.path.basename(view.checkpoint or "")
    return f"Saved: {os.path.join(folder, 'checkpoints', newest)}\n{again}"


def _tried(folder: Path) -> str:
    """What is kept of the shares of the teacher that were tried, and of the one under way; "" where nothing is."""
    found = json.loads((folder / SHARE).read_text("utf-8"))["candidates"] if (folder / SHARE).exists() else []
    told = [f"Shares of the teacher that were tried are kept: {len(found)}."] if found else []
    newest = sorted(folder.glob("share/*/checkpoints/step_*"))[-1:]
    return "\n".join([*told, *(f"Saved: {path}" for path in newest)])


def print_recipe(recipe: Recipe) -> None:
    """The resolved recipe as YAML."""
    import yaml

    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False), end="")


def recipe_in(folder: str) -> Recipe:
    """The recipe of a run. Raises CheckpointError where there is none."""
    from llm_finetuner.recipe_file import load

    path = Path(folder) / "recipe.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no run: there is no {path}", f"{program()} list runs")
    return load(path)


def check_finished(folder: str) -> None:
    """Raise CheckpointError for what is no run, or was not finished."""
    recipe_in(folder)
    if not (Path(folder) / "training.json").exists():
        raise CheckpointError(
            f"the run in {folder} was not finished", f"go on with it: {program()} resume {folder}"
        )


def comparison(folder: str, screen, how: Judged, prompts: list[str] | None = None) -> Any:
    """Compare, show the verdict and where the report is."""
    from llm_finetuner.cli.progress import View

    screen.heading("Comparing")
    prepare(names_in(recipe_in(folder)), screen.warn)
    try:
        with View(screen) as view:
            from llm_finetuner.comparison import compare_run

            options = {"baseline": how.baseline, "seeds": how.seeds, "prompts": prompts}
            verdict = compare_run(folder, **options, on_event=view)
    except KeyboardInterrupt as stop:
        again = f"{program()} {' '.join(['compare', folder, *how.words])}"
        raise KeyboardInterrupt(f"The trained model is in {folder}. Compare later: {again}") from stop
    screen.verdict(verdict)
    screen.show(f"report: {os.path.join(folder, 'report.html')}")
    return verdict
