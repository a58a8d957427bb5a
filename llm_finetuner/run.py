"""What a run leaves behind and how it is interrupted: its folder, log.jsonl, training.json, signals."""

import glob
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llm_finetuner.errors import RecipeError, TrainingError
from llm_finetuner.recipe import Recipe, members_of

SHARE = "share.json"  # how a share of the teacher was chosen before the run (share.py)
BEGUN = ("log.jsonl", "training.json", "checkpoints", SHARE)  # any of them beside recipe.yaml is a run


def is_run(folder: str | Path) -> bool:
    """Whether a run of ours began in the folder."""
    folder = Path(folder)
    return (folder / "recipe.yaml").is_file() and any((folder / name).exists() for name in BEGUN)


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """While it lasts, an error of the file system is a TrainingError that names the folder."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write into {folder}: {error.strerror or error}",
            "is there room, and the right to write? else choose another output",
        ) from error


def with_whole_paths(recipe: Recipe) -> Recipe:
    """The recipe with the full paths of what lies on this disk, so that it can be resumed from any folder."""
    teacher = recipe.teacher and replace(
        recipe.teacher,
        name=whole_path(recipe.teacher.name),
        options=_with_whole_members(recipe.teacher.options),
    )
    data = replace(
        recipe.data, source=whole_path(recipe.data.source), eval_source=whole_path(recipe.data.eval_source)
    )
    student = replace(recipe.student, name=whole_path(recipe.student.name))
    return replace(recipe, student=student, teacher=teacher, data=data)


def _with_whole_members(options: dict) -> dict:
    """The options of a teacher with the full paths of its cache and of an ensemble's members."""
    whole = {key: whole_path(value) if key in ("path", "cache") else value for key, value in options.items()}
    if whole.get("members"):
        whole["members"] = [_whole_member(member) for member in whole["members"]]
    return whole


def _whole_member(member: str | dict) -> str | dict:
    if isinstance(member, str):
        return whole_path(member)
    given = {"name": whole_path, "options": _with_whole_members}
    return {key: given[key](value) if key in given else value for key, value in member.items()}


def whole_path(name: str | None) -> str | None:
    """The full path where a file, folder or glob of that name is on this disk; a hub's name as it is."""
    path = os.path.expanduser(name or "")
    there = os.path.exists(path) or (glob.has_magic(path) and glob.glob(path, recursive=True))
    return os.path.abspath(path) if name and there else name


class Log:
    """log.jsonl: one record an optimizer step, flushed as it is written."""

    def __init__(self, folder: Path, resumed_from: int, write: bool):
        """Keep the records up to `resumed_from` and forget what came after, as a resumed run replays it."""
        self.path, self.write = folder / "log.jsonl", write
        self.records = [r for r in read_log(folder) if r["step"] <= resumed_from] if resumed_from else []
        if write:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self.path.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")

    def add(self, record: dict) -> None:
        self.records.append(record)
        if self.write:
            with writing(self.path.parent), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def read_log(folder: Path) -> list[dict]:
    """The records of a run; a last line cut off by a kill is left out."""
    records = []
    path = Path(folder) / "log.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Signals:
    """Turns Ctrl-C and SIGTERM into a request to stop after this step; a second one stops at once."""

    def __init__(self):
        self.asked: int | None = None
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def leave(self) -> None:
        """Raise what the signal asked for."""
        raise SystemExit(143) if self.asked == signal.SIGTERM else KeyboardInterrupt


def spare_models(recipe: Recipe) -> None:
    """Refuse an output folder that holds a model which is no run of ours: writing there would destroy it."""
    folder = Path(recipe.output)
    for model in (recipe.student, *(members_of(recipe.teacher) if recipe.teacher else ())):
        if model.name and Path(model.name).is_dir() and folder.resolve() == Path(model.name).resolve():
            raise RecipeError(
                f"output {recipe.output!r} is the folder of a model of this run", "choose another output"
            )
    held = (folder / "config.json").exists() or (folder / "adapter_config.json").exists()
    if held and not (folder / "recipe.yaml").exists():
        raise RecipeError(
            f"output {recipe.output!r} holds a model that is no run of ours", "choose another output"
        )
