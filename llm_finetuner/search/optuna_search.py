"""Optuna as the one who proposes: its sampler chooses the next settings, its median pruner stops hopeless trials.

The study lives in memory and is fed from the record of the sweep, so there is no second file that could disagree.
"""

import json
from typing import Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.search.record import Trial

STARTUP = 4  # trials that have to be finished before any is stopped: a median of fewer says little


class Study:
    """Asks for settings and is told how they did. Raises RecipeError where Optuna is not installed."""

    def __init__(self, space: dict[str, Any], seed: int, known: list[Trial]):
        """known: trials that ended before; unfinished ones among them are proposed first."""
        self._optuna = optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: _distribution(optuna.distributions, values) for name, values in space.items()}
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed + len(known)),  # not the first proposals once more
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=0),
        )
        for trial in known:
            if trial.state == "unfinished":
                if params := self._inside(trial):
                    self._study.enqueue_trial(params)
            elif trial.state in ("finished", "stopped") and trial.evaluations:
                self._study.add_trial(self._past(trial))

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """(what to tell about, the settings to try)."""
        asked = self._study.ask(self._space)
        return asked, {
            name: json.loads(value) if isinstance(value, str) else value
            for name, value in asked.params.items()
        }

    def is_hopeless(self, asked: Any, step: int, loss: float) -> bool:
        """Worse at this step than the median of the trials before it."""
        asked.report(loss, step)
        return asked.should_prune()

    def tell(self, asked: Any, trial: Trial) -> None:
        state = self._optuna.trial.TrialState
        told = {"finished": state.COMPLETE, "stopped": state.PRUNED}.get(trial.state, state.FAIL)
        self._study.tell(asked, trial.loss if told == state.COMPLETE else None, state=told)

    def _inside(self, trial: Trial) -> dict[str, Any]:
        """Its settings in Optuna's form, empty where this space does not hold them."""
        if trial.settings.keys() != self._space.keys():
            return {}
        params, categorical = {}, self._optuna.distributions.CategoricalDistribution
        for name, value in trial.settings.items():
            kind = self._space[name]
            params[name] = json.dumps(value) if isinstance(kind, categorical) else value
            if isinstance(kind, categorical):
                held = params[name] in kind.choices
            else:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                held = number and isinstance(value, type(kind.low)) and kind.low <= value <= kind.high
            if not held:
                return {}
        return params

    def _past(self, trial: Trial) -> Any:
        """An earlier trial; one from outside this space still counts in the median, without its settings."""
        params, state = self._inside(trial), self._optuna.trial.TrialState
        finished = trial.state == "finished"
        return self._optuna.trial.create_trial(
            state=state.COMPLETE if finished else state.PRUNED,
            value=trial.loss if finished else trial.evaluations[-1][1],
            params=params,
            distributions=self._space if params else {},
            intermediate_values=dict(trial.evaluations),
        )


def import_optuna() -> Any:
    """The module. Raises RecipeError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "search='optuna' needs Optuna, which is not installed",
            'pip install "llm-finetuner[search]" (or optuna), or search="grid"',
        ) from error
    return optuna


def _distribution(kinds: Any, values: list | dict[str, Any]) -> Any:
    if isinstance(values, list):
        return kinds.CategoricalDistribution([json.dumps(value) for value in values])
    low, high, log = values["low"], values["high"], bool(values.get("log"))
    whole = isinstance(low, int) and isinstance(high, int)
    return (kinds.IntDistribution if whole else kinds.FloatDistribution)(low, high, log=log)
