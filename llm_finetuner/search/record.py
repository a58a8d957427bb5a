"""The record of a sweep, sweep.json: what was tried and how it went, so that a sweep goes on where it was left.

A trial is known by the content of its recipe. Its losses by example stand in scores.npz in the folder of each of its
runs; a trial whose folder is gone counts as not yet run.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from llm_finetuner.benchmark.quality import Quality
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.run import writing
from llm_finetuner.task import Task

SAMPLED = 512  # numbers of each weight that the mark of a live model is made of
STATES = ("finished", "stopped", "unfinished", "failed")  # in the order of the table


@dataclass
class Run:
    """A training of one seed, counted from 0, in a folder of the sweep's."""

    seed: int
    folder: str
    loss: float  # nats a position on the rows that choose
    steps: int
    seconds: float


@dataclass
class Trial:
    """A set of settings. state: one of STATES; stopped: by the pruner; unfinished: by time, Ctrl-C or a kill."""

    number: int
    key: str
    settings: dict[str, Any]
    given: bool = False  # the recipe as it was given
    begun: bool = False
    state: str = "unfinished"
    error: str | None = None
    runs: list[Run] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, loss) of the first seed

    @property
    def folder(self) -> str:
        return f"trial_{self.number:03d}"

    @property
    def loss(self) -> float | None:
        """The mean over its seeds."""
        return sum(run.loss for run in self.runs) / len(self.runs) if self.runs else None

    def folder_of(self, seed: int) -> str:
        """seed counts from 0; the first run is in the trial's own folder."""
        return f"{self.folder}/seed_{seed}" if seed else self.folder


class Record:
    """All trials of a folder, on disk after every change."""

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        """Take up what an earlier sweep left there. Raises RecipeError when that was of another recipe or data."""
        self.folder = Path(folder)
        self.path = self.folder / "sweep.json"
        self.about, self.trials = about, []
        if self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            _refuse_others(found["about"], json.loads(json.dumps(about)), self.folder)
            self.trials = [_trial(values) for values in found["trials"]]

    def trial(self, settings: dict[str, Any], content: dict[str, Any], given: bool = False) -> Trial:
        """The trial of this content, new where there is none. The recipe as given may turn up in the space again."""
        key = digest(content)
        known = next((trial for trial in self.trials if trial.key == key), None)
        if known is None:
            known = Trial(len(self.trials), key, settings, given)
            self.trials.append(known)
        known.settings = known.settings or settings
        return known

    def runs(self, trial: Trial, seeds: int) -> list[Run]:
        """The finished runs of the first `seeds` seeds whose folders are still there."""
        return [
            run
            for run in trial.runs
            if run.seed < seeds and (self.folder / run.folder / "scores.npz").exists()
        ]

    def ended(self, trial: Trial, seeds: int) -> bool:
        """Whether nothing is left to do for it."""
        if trial.state == "finished":
            return len(self.runs(trial, seeds)) == seeds
        return trial.state in ("stopped", "failed") and (self.folder / trial.folder).exists()

    def save(self) -> None:
        """Raises TrainingError where the folder cannot be written."""
        aside = self.path.with_suffix(".part")
        content = {"about": self.about, "trials": [asdict(trial) for trial in self.trials]}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
            os.replace(aside, self.path)

    def keep_scores(self, folder: str, qualities: dict[str, Quality]) -> None:
        """qualities: on the rows that choose and, where rows were set apart, on those that report."""
        arrays = {}
        for rows, quality in qualities.items():
            kept = {name: getattr(quality, name) for name in ("nll", "tokens", "right", "energy")}
            arrays |= {f"{rows}_{name}": array for name, array in kept.items() if array is not None}
            arrays[f"{rows}_span"] = np.asarray(quality.span)
        with writing(self.folder / folder):
            np.savez(self.folder / folder / "scores.npz", **arrays)

    def scores(self, run: Run, rows: str) -> Quality:
        """What a run scored, by example; the figures that are no sums of examples are not kept."""
        with np.load(self.folder / run.folder / "scores.npz") as arrays:
            return Quality(
                arrays[f"{rows}_nll"], arrays[f"{rows}_tokens"], right=arrays.get(f"{rows}_right"),
                energy=arrays.get(f"{rows}_energy"), span=int(arrays.get(f"{rows}_span", 0)),
            )  # fmt: skip


def mean_quality(qualities: list[Quality]) -> Quality:
    """Losses and right answers of every example averaged over seeds."""
    nll = np.mean([quality.nll for quality in qualities], axis=0)
    known = qualities[0].right is not None
    return replace(
        qualities[0], nll=nll, right=np.mean([q.right for q in qualities], axis=0) if known else None
    )


def content_of(recipe: Recipe) -> dict[str, Any]:
    """What makes a recipe another one; the folder does not."""
    content = recipe.to_dict()
    del content["output"]
    return _numbers(content)


def _numbers(value: Any) -> Any:
    """2.0 as 2: they are one setting."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_rows(task: Task, rows: Any) -> str:
    """Of all that a task's rows hold."""
    found = hashlib.sha256()
    for values in task.contents(rows):
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]


def digest_of_model(model: nn.Module) -> str:
    """Of a model given as an object: the first numbers of each weight, for the whole would take long."""
    found = hashlib.sha256()
    for name, weight in model.state_dict().items():
        numbers = weight.flatten()[:SAMPLED].double().cpu().numpy()
        found.update(f"{name}{tuple(weight.shape)}".encode() + numbers.tobytes())
    return found.hexdigest()[:16]


def _trial(values: dict[str, Any]) -> Trial:
    runs = [Run(**run) for run in values["runs"]]
    return Trial(**{**values, "runs": runs, "evaluations": [tuple(pair) for pair in values["evaluations"]]})


def _refuse_others(before: dict, now: dict, folder: Path) -> None:
    then, new = _flat(before), _flat(now)
    odd = [name for name in {**then, **new} if then.get(name) != new.get(name)]
    if odd:
        said = "; ".join(f"{name} was {then.get(name)!r}, now it is {new.get(name)!r}" for name in odd[:3])
        raise RecipeError(
            f"{folder} holds a sweep of another recipe or other data: {said}",
            "choose another output for this one",
        )


def _flat(values: dict, where: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        deeper = isinstance(value, dict) and value
        found |= _flat(value, f"{where}{name}.") if deeper else {f"{where}{name}": value}
    return found
