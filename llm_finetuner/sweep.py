"""Search for a better recipe: runs trials of it, ranks them with their uncertainty, and saves the best.

A trial is an ordinary run in <output>/trial_003. The recipe as given is one of them, so that the search can be seen to
have paid or not. Half of the held-out rows choose and the other half reports, where there are enough of them.
"""

import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner import checkpoint, recipe_file
from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.errors import FinetunerError, RecipeError, TrainingError
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_sections import check_range
from llm_finetuner.registry import TASKS, resolve, unknown
from llm_finetuner.report import sweep_table
from llm_finetuner.run import with_whole_paths
from llm_finetuner.search import ranking, record
from llm_finetuner.search import space as spaces
from llm_finetuner.search.optuna_search import Study, import_optuna
from llm_finetuner.search.shared import share
from llm_finetuner.search.watch import Hopeless, OutOfTime, Stopped, Watch
from llm_finetuner.setup_methods import ALIASES
from llm_finetuner.trainer import OnEvent, fit

SEARCHES = ("grid", "optuna")
REPEATS = 100  # proposals in a row that were tried already: then the space is exhausted
clock = time.monotonic


def sweep(
    recipe: Recipe,
    space: dict[str, Any] | list[dict[str, Any]],
    *,
    search: str = "grid",
    trials: int | None = None,
    minutes: float | None = None,
    seeds: int = 1,
    parts: Parts | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Try settings of `space` (see search/space.py) and return trials (best first), best, report, recipe and table.

    grid: every combination, or the dicts of a list. optuna: proposes `trials` of them, and stops those worse than
    the median. trials: how many, beside the recipe as given. minutes: no trial starts after them, and the running one
    stops at its next checkpoint. seeds: runs a trial, from train.seed on; the mean chooses. The same call goes on where
    an earlier one was left; delete a trial's folder to have it run again. A trial that fails is recorded and the
    others go on. Checkpoints of all trials that ended but the best are removed; every trained model stays.
    Raises FinetunerError.
    """
    if search not in SEARCHES:
        raise unknown("search", search, SEARCHES)
    space = spaces.check(space, search, ALIASES)
    _check_budget(search, trials, minutes, seeds)
    listed = spaces.grid(space)[:trials] if search == "grid" else spaces.corners(space)
    spaces.check_applies(recipe, listed)  # now, and not after the first trial
    if search == "optuna":
        import_optuna()
    work = _Sweep(recipe, parts or Parts(), space, seeds, minutes, on_event or (lambda kind, record: None))
    try:
        work.one({}, given=True)
        if search == "optuna":
            work.propose(space, trials)
        for settings in listed if search == "grid" else ():
            work.one(settings)
    except OutOfTime:
        work.note(f"the {minutes:g} minutes are spent; the same call goes on from here")
    except (KeyboardInterrupt, SystemExit):
        work.sum_up()  # keeps what was finished
        raise
    result = work.sum_up()
    if result is None:
        errors = [trial.error for trial in work.record.trials if trial.error]
        raise TrainingError(
            f"no trial finished{': ' + errors[0] if errors else ''}",
            "each trial has its folder"
            if errors
            else "give it more minutes: the same call goes on from here",
        )
    return result


def _check_budget(search: str, trials: int | None, minutes: float | None, seeds: int) -> None:
    check_range("seeds", seeds, 1, None)
    if trials is not None:
        check_range("trials", trials, 1, None)
    if minutes is not None:
        check_range("minutes", minutes, 0, None, open_low=True)
    if search == "optuna" and trials is None and minutes is None:
        raise RecipeError("search='optuna' would never end", "give trials=20, or minutes=60")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError("a sweep runs its trials in one process", "start it without torchrun")


class _Sweep:
    """The state of one call: the record, what all trials share, and the clock."""

    def __init__(
        self, recipe: Recipe, parts: Parts, space: Any, seeds: int, minutes: float | None, say: OnEvent
    ):
        self.recipe, self.seeds, self.say = recipe, seeds, say
        self.until = math.inf if minutes is None else clock() + 60 * minutes
        self.folder, self.notes = Path(recipe.output), []
        self.names = list(
            space if isinstance(space, dict) else dict.fromkeys(n for each in space for n in each)
        )
        self.task = resolve(TASKS, recipe.task, "task")()
        self.shared = share(recipe, parts, self.names, self.note)
        self.record = record.Record(self.folder, self.shared.about)

    def note(self, said: str) -> None:
        self.notes.append(said)
        self.say("note", {"text": said})

    def propose(self, space: dict[str, Any], trials: int | None) -> None:
        """What Optuna proposes, until `trials` beside the recipe as given have ended or nothing new comes."""
        study = Study(space, self.recipe.train.seed, self.record.trials)
        repeats = 0
        while repeats < REPEATS and (trials is None or self._ended() < trials):
            asked, settings = study.ask()
            before = self._ended()
            trial = self.one(
                settings, hopeless=lambda step, loss, asked=asked: study.is_hopeless(asked, step, loss)
            )
            study.tell(asked, trial)
            repeats = 0 if self._ended() > before else repeats + 1
        if repeats == REPEATS:
            self.note("every proposal was tried already: the space is exhausted")

    def _ended(self) -> int:
        return sum(self.record.ended(trial, self.seeds) for trial in self.record.trials if not trial.given)

    # ---- one trial

    def one(
        self, settings: dict[str, Any], given: bool = False, hopeless: Hopeless | None = None
    ) -> record.Trial:
        """Run the trial of these settings, or go on with it, unless it ended before. Raises OutOfTime."""
        recipe, refusal = self.recipe, None
        try:
            recipe = spaces.applied(self.recipe, settings)
        except RecipeError as error:
            refusal = error
        content = {"refused": settings} if refusal else record.content_of(recipe)
        trial = self.record.trial(settings, content, given)
        if self.record.ended(trial, self.seeds):
            return trial
        if clock() >= self.until:
            raise OutOfTime
        folder = self.folder / trial.folder
        if not trial.begun:
            _drop_checkpoints(folder)  # of a sweep whose record is gone
        trial.begun, trial.state, trial.error = True, "unfinished", None
        folder.mkdir(parents=True, exist_ok=True)
        self.record.save()
        self.say("trial", {"number": trial.number, "settings": settings, "folder": str(folder)})
        try:
            if refusal:
                raise refusal
            done = {run.seed for run in self.record.runs(trial, self.seeds)}
            for seed in range(self.seeds):
                if seed not in done:
                    self._run(trial, recipe, seed, hopeless if seed == 0 else None)
            trial.state = "finished"
        except Stopped:
            trial.state = "stopped"
        except FinetunerError as error:
            trial.state, trial.error = "failed", str(error)
        self.record.save()
        self._tidy()
        self.say(
            "trial_done",
            {"number": trial.number, "state": trial.state, "loss": trial.loss, "error": trial.error},
        )
        return trial

    def _run(self, trial: record.Trial, recipe: Recipe, seed: int, hopeless: Hopeless | None) -> None:
        """Train with one seed, and score it on the held-out rows while it is in memory."""
        name, shared = trial.folder_of(seed), self.shared
        folder = self.folder / name
        recipe = replace(
            recipe, output=str(folder), train=replace(recipe.train, seed=recipe.train.seed + seed)
        )
        saves = recipe.train.save_every != 0
        watch = Watch(folder, self.say, lambda: clock() >= self.until, saves, hopeless)
        resume = checkpoint.newest(folder, self.note) is not None
        try:
            result = fit(recipe, shared.fresh(), resume=resume, on_event=watch)
        finally:
            if seed == 0:
                trial.evaluations = watch.evaluations
        options = {"batch_size": recipe.train.batch_size, "vocabulary": shared.vocabulary}
        qualities = {
            use: evaluate(self.task, result.tuned.model, rows, **options) for use, rows in shared.rows.items()
        }
        self.record.keep_scores(name, qualities)
        loss, figures = qualities[ranking.CHOOSE].loss, result.metrics
        trial.runs = [run for run in trial.runs if run.seed != seed]
        trial.runs.append(record.Run(seed, name, loss, figures["steps"], figures["seconds"]))
        self.record.save()

    def _tidy(self) -> None:
        """Checkpoints take several times the room of a model: those of all that ended go, the best excepted."""
        best = ranking.best(self.record, self.seeds)
        for trial in self.record.trials:
            if trial.state != "unfinished" and trial is not best:
                _drop_checkpoints(self.folder / trial.folder)

    # ---- the end

    def sum_up(self) -> dict[str, Any] | None:
        """Rank, and write best.yaml and sweep.md; None where nothing finished yet."""
        self.record.save()
        best = ranking.best(self.record, self.seeds)
        if best is None:
            return None
        lines = ranking.ranked(self.record, self.seeds)
        names = dict.fromkeys([*self.names, *(name for line in lines for name in line["settings"])])
        for line in lines:
            line["values"] = self._values(line["settings"], names)
        winner = spaces.applied(self.recipe, best.settings)
        path = self.folder / "best.yaml"
        recipe_file.save(with_whole_paths(replace(winner, output=str(self.folder / "best"))), path)
        use = ranking.REPORT if ranking.REPORT in self.shared.rows else ranking.CHOOSE
        result = {
            "trials": lines,
            "best": lines[0],
            "report": ranking.reported(self.record, best, self.seeds, use, self.task.measure),
            "measure": self.task.measure.about(),
            "notes": self.notes,
            "recipe": str(path),
        }
        result["table"] = str(sweep_table.write(result, self.folder))
        return result

    def _values(self, settings: dict[str, Any], names: Any) -> dict[str, Any]:
        """What the recipe of a trial says of the settings that vary; of one that is no recipe, what was tried."""
        try:
            recipe = spaces.applied(self.recipe, settings)
        except RecipeError:
            return settings
        return {name: spaces.value_of(recipe, name) for name in names}


def _drop_checkpoints(folder: Path) -> None:
    for checkpoints in folder.glob("**/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
