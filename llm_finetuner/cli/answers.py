"""Answers as they are typed in the menu, held against what is on this disk. Each raises RecipeError."""

import glob
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.configs import config_of, is_forecaster
from llm_finetuner.cli.exits import program
from llm_finetuner.cli.folder import check_output
from llm_finetuner.cli.hub import is_on_hub
from llm_finetuner.cli.needed import is_part
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.teachers.places import FITTED, MANIFEST

CACHE = (MANIFEST, FITTED)  # any of them: a cache began here
NEW_CACHE = "outputs/cache"
TABLES = (".csv", ".tsv", ".parquet")  # of series
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")  # of files of data


def model_name(typed: str) -> str:
    """A model folder or hub name as typed. Raises RecipeError."""
    name = typed.strip()
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise RecipeError(f"{name} holds no config.json", "give the folder of a Hugging Face model")
        return os.path.expanduser(name)
    if path.exists() or name.startswith((".", "/", "~")):
        raise RecipeError(f"{name} is not a folder", "give a model's folder, or a hub name such as gpt2")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        hint = recipe_hint(name) or "hub names look like gpt2 or org/model"
        raise RecipeError(f"{name!r} is neither a folder nor a hub name", hint)
    return name


def student_name(may_be_part: bool, typed: str) -> str:
    """A student as typed: teacher/2, where a teacher is named, or a model that is no adapter. Raises RecipeError."""
    if is_part(typed):
        if not may_be_part:
            raise RecipeError(f"{typed.strip()!r}: this method has no teacher to be cut", "name a model")
        if not re.fullmatch(r"teacher/[1-9]\d*", typed.strip()):
            raise RecipeError(f"{typed.strip()!r} names no part of the teacher", "teacher/2: half its blocks")
        return typed.strip()
    name = model_name(typed)
    if (Path(name) / "adapter_config.json").exists():
        raise RecipeError(f"{name} holds an adapter, not a model", "merge it first: LLMFineTuner.merge()")
    return name


def teacher_name(typed: str) -> str:
    """A teacher as typed: one that has learned something. Raises RecipeError."""
    name = model_name(typed)
    if Path(name).is_dir() and not holds_weights(Path(name)):
        raise RecipeError(f"{name} holds no weights", "give the folder of a model that was trained")
    return name


def holds_weights(folder: Path) -> bool:
    patterns = ("model*.safetensors*", "pytorch_model*.bin*", "adapter_model.*")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def members_typed(typed: str) -> list[str]:
    """Several teachers, separated by blanks; quotes keep a blank in a name. Raises RecipeError."""
    try:
        words = shlex.split(typed)
    except ValueError as error:
        raise RecipeError(f"{typed!r}: {error}", "quote names that hold blanks") from error
    return [teacher_name(word) for word in words]


def teacher_answers(name: str, value: Any) -> None:
    """Hold an option of a kind of teacher against what is there. Raises RecipeError."""
    if name == "members" and len(value) < 2:
        raise RecipeError("several teachers are two or more", "go back to take one model")
    if name == "path" and not (Path(value).expanduser() / MANIFEST).exists():
        raise RecipeError(f"{value} holds no cache: there is no {MANIFEST}", "k in the menu writes one")
    if name == "url" and not re.match(r"https?://\S+$", value):
        raise RecipeError(f"{value!r} is no address", "such as http://localhost:8000/v1")


def recipe_hint(name: str) -> str:
    """The recipe of this repository that makes a model; "" for any other name."""
    recipe = Path("recipes", f"{Path(name).name}.yaml")
    made = Path(name).parts[:2] == ("outputs", "recipes") and recipe.exists()
    return f"its recipe makes it: {program()} run {recipe}" if made else ""


def quickstart_hint(name: str) -> str:
    """What makes the text that the recipes of this repository learn from; "" for any other path."""
    if Path(name).parts[:2] != ("outputs", "quickstart"):
        return ""
    return f"the quickstart writes it: make quickstart, or {program()} quickstart"


def lies_here(name: str) -> bool:
    """Whether a file, a folder or what a glob means is on this disk."""
    path = Path(name).expanduser()
    return path.exists() or glob.has_magic(name) and any(glob.iglob(str(path), recursive=True))


def may_be_on_hub(name: str) -> bool:
    """Whether what is not on this disk may be a data set of the hub: a name like org/data, and no path of a file."""
    return is_on_hub(name) and not name.startswith((".", "/", "~")) and not name.endswith(SUFFIXES)


def data_source(typed: str) -> str:
    """A file, folder, glob or hub name as typed. Raises RecipeError."""
    name = typed.strip()
    if name and lies_here(name):
        return os.path.expanduser(name)
    if not may_be_on_hub(name):
        raise RecipeError(
            f"there is no file or folder {name!r}",
            quickstart_hint(name) or "Tab completes paths; a hub name is org/data",
        )
    return name


def newest_cache() -> str:
    """The cache that was written last, here or in outputs/, so that there is something to accept."""
    places = [
        path for pattern in ("*", "outputs/*", "outputs/*/*") for path in Path().glob(f"{pattern}/{CACHE[0]}")
    ]
    caches = [path for path in places if path.with_name(CACHE[1]).exists()]  # checkpoints have manifests too
    newest = max(caches, key=lambda path: path.stat().st_mtime, default=Path(NEW_CACHE, CACHE[0]))
    return str(newest.parent)


def found_data() -> str:
    """The first data file here, so that there is something to accept."""
    patterns = (f"{folder}*{suffix}" for suffix in (".jsonl", ".parquet", ".csv") for folder in ("", "data/"))
    return next((str(path) for pattern in patterns for path in sorted(Path().glob(pattern))), "train.jsonl")


def table_file(typed: str) -> str:
    """A table of series as typed. Raises RecipeError."""
    name = os.path.expanduser(typed.strip())
    if not Path(name).is_file():
        raise RecipeError(f"there is no file {typed.strip()!r}", "Tab completes paths")
    if Path(name).suffix not in TABLES:
        raise RecipeError(f"{typed.strip()} is no table that is read here", f"a file of {', '.join(TABLES)}")
    from llm_finetuner.data import tables

    try:
        tables.read(name)
    except DataError as error:
        raise RecipeError(error.what, error.hint) from error
    return name


def found_table() -> str:
    """The first table here, so that there is something to accept."""
    patterns = (f"{folder}*{suffix}" for suffix in TABLES for folder in ("", "data/"))
    return next((str(path) for pattern in patterns for path in sorted(Path().glob(pattern))), "series.csv")


def newest_forecaster(alike: dict[str, Any]) -> str | None:
    """The run in outputs/ that was finished last and forecasts, with these settings: its look-back, its horizon, ..."""
    runs = [
        path.parent for path in Path("outputs").glob("*/training.json") if is_forecaster(str(path.parent))
    ]
    found = [run for run in runs if alike.items() <= config_of(str(run)).items()]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def output_folder(recipe: Recipe, typed: str) -> str:
    """The folder of the run as typed. Raises RecipeError where something is in the way."""
    folder = os.path.expanduser(typed.strip())
    check_output(replace(recipe, output=folder))
    return folder
