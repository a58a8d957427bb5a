"""Tables of what can be chosen, from the registry, and of the runs on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_finetuner import registry
from llm_finetuner.cli.console import evaluated
from llm_finetuner.cli.plain import first_line
from llm_finetuner.layer_maps import NAMED, layer_pairs
from llm_finetuner.registry import options_of, resolve

TABLES = {
    "methods": registry.METHODS,
    "tunings": registry.TUNINGS,
    "objectives": registry.OBJECTIVES,
    "teachers": registry.TEACHERS,
    "models": registry.MODELS,
    "tasks": registry.TASKS,
    "exporters": registry.EXPORTERS,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
}


@dataclass(frozen=True)
class Run:
    """A run on disk, newest first in lists."""

    folder: str
    method: str
    student: str
    steps: int
    figures: dict[str, float | None]  # of its best evaluation
    finished: bool

    @property
    def summary(self) -> str:
        quality = f", {evaluated(self.figures)}" if evaluated(self.figures) else ""
        student = Path(self.student).name if Path(self.student).is_absolute() else self.student
        return f"{self.method} of {student}, {self.steps} steps{'' if self.finished else ' so far'}{quality}"


def show(what: str | None, folder: str, screen: Any) -> Any:
    """Show one table, or all but the runs; returns it as plain data."""
    if what == "runs":
        runs = runs_in(folder)
        screen.facts((run.folder, run.summary) for run in runs)
        if not runs:
            screen.show(f"no runs in {folder}")
        return [asdict(run) for run in runs]
    wanted = [what] if what else [*TABLES, "layers"]
    found = {name: layer_maps() if name == "layers" else entries(TABLES[name]) for name in wanted}
    for name, rows in found.items():
        screen.show()
        screen.show(name, "bold")
        screen.facts((row["name"], described(row)) for row in rows)
    return found


def entries(table: dict[str, str]) -> list[dict[str, Any]]:
    """Name, first docstring line and options of each."""
    rows = []
    for name in table:
        entry = resolve(table, name)
        options = {} if isinstance(entry, type) else options_of(entry)
        rows.append({"name": name, "says": first_line(entry), "options": options})
    return rows


def layer_maps() -> list[dict[str, Any]]:
    """The named maps of blocks, each with the pairs of a student of 4 blocks and a teacher of 8."""
    pairs = {name: layer_pairs(name, 4, 8) for name in NAMED}
    spelled = {name: " ".join(f"{s}:{t}" for s, t in of_map) for name, of_map in pairs.items()}
    return [{"name": name, "says": f"4 blocks and 8: {spelled[name]}", "options": {}} for name in NAMED]


def described(row: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
    return f"{row['says']}{f' [{options}]' if options else ''}"


def runs_in(folder: str) -> list[Run]:
    """The runs below a folder, newest first."""
    recipes = sorted(Path(folder).glob("**/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [run for path in recipes if (run := read_run(path.parent))]


def read_run(folder: Path) -> Run | None:
    """What is known of a run; None where the recipe cannot be read."""
    from llm_finetuner.errors import FinetunerError
    from llm_finetuner.recipe_file import load

    try:
        recipe = load(folder / "recipe.yaml")
    except FinetunerError:
        return None
    training, log = folder / "training.json", folder / "log.jsonl"
    if training.exists():
        done = json.loads(training.read_text(encoding="utf-8"))
        figures = {name: value for name, value in done.items() if name.startswith("eval_")}
        return Run(str(folder), recipe.method, recipe.student.name, done["steps"], figures, True)
    steps = sum(1 for _ in log.open(encoding="utf-8")) if log.exists() else 0
    return Run(str(folder), recipe.method, recipe.student.name, steps, {}, False)
