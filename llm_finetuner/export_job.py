"""Hands a model over in another format, one of the registry's exporters: a run, any other model, or one in memory."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from llm_finetuner import recipe_file
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models import loading
from llm_finetuner.registry import EXPORTERS, TASKS, resolve
from llm_finetuner.run import is_run, writing
from llm_finetuner.task import Task


def export_model(name: str, to: str, folder: str | Path | None = None) -> dict[str, Any]:
    """Export a run's model, or any other, loaded on the CPU in float32; an adapter is folded into its base.

    folder: by default RUN/<to>, and outputs/<name>-<to> of what is no run. Returns what `write` does. Raises
    FinetunerError.
    """
    usual = Path(name) / to if is_run(name) else Path("outputs") / f"{Path(name).resolve().name}-{to}"
    target = Path(folder or usual)
    exporter, task = prepare(to, target), task_of(name)
    model = loading.load_trained(name, merge=True, auto=task.auto)
    return write(exporter, model, task.tokenizer(name), task, target)


def prepare(to: str, folder: Path) -> Any:
    """The exporter. Raises RecipeError and ModelError for what can be known before any model is loaded."""
    exporter = resolve(EXPORTERS, to, "exporter")()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            f"{folder} is there already, and nothing is written over",
            "remove it, or choose another folder with --output (folder=...)",
        )
    missing = [name for name in exporter.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"export to {to} needs {' and '.join(missing)}, which is not installed",
            f'pip install "llm-finetuner[{to}]" (or {" ".join(exporter.needs)})',
        )
    return exporter


def write(exporter: Any, model: nn.Module, tokenizer: Any, task: Task, folder: Path) -> dict[str, Any]:
    """Have the exporter write into a new folder, of which nothing is left where it fails. It may change the model.

    Returns {"folder", "bytes" of all files, "parameters", ...}. Raises FinetunerError.
    """
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as aside:
            made = Path(aside, folder.name)
            made.mkdir()
            told = exporter.write(model, tokenizer, task, made)
            made.replace(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"folder": str(folder), "bytes": size, **told}


def task_of(name: str) -> Task:
    """The task of a run, or the one that the class of a model is for. Raises ModelError.

    Loaded for another task it would be given a head of random weights.
    """
    if is_run(name):
        return resolve(TASKS, recipe_file.load(Path(name) / "recipe.yaml").task, "task")()
    tasks = [
        resolve(TASKS, task)() for task in TASKS
    ]  # first: transformers learns of models of numbers by it
    of_numbers = tuple(task.configs for task in tasks if task.numbers)
    config = loading.load_config(loading.base_of(name))
    classes = config.architectures or []
    fitting = [task for task in tasks if _class(task, config, of_numbers) in classes]
    if not fitting:
        raise ModelError(
            f"{name} is a {' or '.join(classes) or 'model that does not say of which class'}, and no task is for that",
            "a model with a head is exported: train it, or name its class under architectures in its config.json",
        )
    return fitting[-1]  # BART's class also fills in words: the later task is what it is for


def _class(task: Task, config: Any, of_numbers: tuple[type, ...]) -> str | None:
    """The class that a task loads a model of this configuration with."""
    if not isinstance(config, task.configs) or (not task.numbers and isinstance(config, of_numbers)):
        return None  # AutoModel also loads trunks without a head
    found = getattr(transformers, task.auto)._model_mapping.get(type(config), None)
    return found and found.__name__
