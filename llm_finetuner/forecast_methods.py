"""What LLMFineTuner does with numbers: it reads and parts them, and of series it forecasts the next steps."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from llm_finetuner import forecasting_job, recipe_file
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data import series, signals, tables
from llm_finetuner.errors import OrderError, RecipeError
from llm_finetuner.judging import Judging
from llm_finetuner.models import loading
from llm_finetuner.models.linear_forecaster import forget, is_fitted, waits_for_rows
from llm_finetuner.models.naive import Naive
from llm_finetuner.recipe_series import Series
from llm_finetuner.registry import MODELS
from llm_finetuner.run import is_run

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (80, 90)  # percent
OWN_SPLIT = (
    "the rows of these data are parted before, and weights are chosen on the validation part",
    'of a table by series={"split": "70-10-20"}: percent to train, select and test on, or ett-hour, ett-minute; of '
    "sequences by folders train/, validation/ and test/, or by eval_fraction of a path or of arrays",
)
OF_MODEL = ("lookback", "horizon", "quantiles")  # what a trained forecaster is made for


class Forecasting(Judging):
    """The part of LLMFineTuner that deals with series."""

    def forecast(
        self, history: Any, horizon: int | None = None, level: Sequence[float] = LEVELS, *,
        windows: int = forecasting_job.WINDOWS,
    ) -> "pd.DataFrame":  # fmt: skip
        """The steps after the last row of each series: a table as it was given, long or wide.

        history: a table or file; horizon: at most the model's. A long table gets a column called as the kind of the
        model, and with level=[80] its interval, patch-lo-80 and patch-hi-80; a wide one has such columns of each
        channel. Intervals are learned from the forecasts of the last `windows` of the history (fewer are faster) behind
        the training rows; a series with too few of those has empty ends, which a warning tells; level=[] leaves
        intervals out. Raises OrderError, DataError, RecipeError.
        """
        self._need_forecaster()
        plan = self.recipe.data.series
        groups, layout = series.load(history, plan)
        _warn(layout.doubts)
        found = forecasting_job.forecast(self.model, groups, level, horizon=horizon, windows=windows)
        return forecasting_job.as_given(found, layout)

    def cross_validation(
        self, table: Any, n_windows: int = 1, step_size: int | None = None, level: Sequence[float] = (), *,
        horizon: int | None = None, windows: int = forecasting_job.WINDOWS,
    ) -> "pd.DataFrame":  # fmt: skip
        """Forecasts from n_windows earlier ends of the table, step_size rows apart (None: a horizon), as a long table.

        Its columns are unique_id, ds, cutoff (the last time that was known), y, and those of `forecast`. The model is
        not trained anew: a warning tells of cut-offs within its training rows. Raises OrderError, DataError and
        RecipeError.
        """
        self._need_forecaster()
        plan = self.recipe.data.series
        groups, layout = series.load(table, plan)
        _warn(layout.doubts)
        return forecasting_job.backtest(
            self.model, groups, level, cutoffs=n_windows, step=step_size, horizon=horizon, windows=windows,
        )  # fmt: skip

    def _evaluate_series(
        self, table: Any, batch_size: int, exit_layer: int | None, level: Sequence[float]
    ) -> dict[str, Any]:
        """The figures of the test part, with a teacher mse_to_teacher too; a line is fitted to its training rows."""
        rows = self._prepare(table).dataset
        _warn(rows.frame.doubts, 4)
        self._task.check_inputs(rows, self.model)
        if self._last is None and self.recipe.student.name in MODELS and is_fitted(self.model):
            forget(self.model)  # nobody had it fitted to rows of their choice: each table has its own
        if waits_for_rows(self.model):
            self._task.fit(self.model, rows.frame.part("train"), self.recipe.train.seed)
        self._need_forecaster()
        model, teacher = self._stopped(exit_layer), self._heard(rows)
        warn = functools.partial(warnings.warn, stacklevel=4)  # where `evaluate` was called
        found = forecasting_job.evaluate(model, rows.frame, level, warn)
        if teacher is not None:
            quality = evaluate(self._task, model, rows, batch_size=batch_size, teacher=teacher)
            found["mse_to_teacher"] = quality.figures["mse_to_teacher"]
        return found

    def _load_numbers(self, source: Any, *of_rows: Any) -> "pd.DataFrame | signals.Recording":
        """The table of a file, once it was seen to hold series; sequences in parts. of_rows: options of neither."""
        if any(option is not None for option in of_rows):
            raise RecipeError(
                "numbers are read whole: dataset_config, num_samples, data_files and only are for rows of text",
                "of a table series={...} of LLMFineTuner names columns and how much is used (targets, train_percent)",
            )
        if not self._task.series:
            if isinstance(source, str | Path):
                self._set_data(source=str(source))
            return signals.read(source, self.recipe.data.eval_fraction)
        _, layout = series.load(source, self.recipe.data.series)
        _warn(layout.doubts, 4)
        if isinstance(source, str | Path):
            self._set_data(source=str(source))
        return tables.read(source)[0]

    def _share(self, source: Any, eval_dataset: Any, share: float | None) -> float:
        """Of sequences in one part the share to select on, and as many to test on, which `evaluate` reads too.

        Raises RecipeError for data that are parted before.
        """
        parted = self._task.series or isinstance(source, signals.Recording | signals.Signals)
        if eval_dataset is not None or (share is not None and parted):
            raise RecipeError(*OWN_SPLIT)
        if share is not None:
            self._set_data(eval_fraction=share)
        return self.recipe.data.eval_fraction

    def _own_parts(self, source: Any) -> tuple[Any, Any]:
        """The rows to train on, and those that weights are chosen on; a file that is named is noted."""
        if isinstance(source, str | Path):
            self._set_data(source=str(source))
        train, validation = self._task.own_parts(source, self._data(), lambda note: None)
        if self._task.series:
            _warn(train.frame.doubts, 4)
        self._task.check_inputs(train, self.model)
        self._task.fit(self.model, train, self.recipe.train.seed)
        return train, validation

    def _need_forecaster(self) -> None:
        self._need_model()
        if not self._task.series:
            raise RecipeError(
                f"a model for {self.recipe.task} forecasts no series", 'LLMFineTuner(..., task="forecasting")'
            )
        name, ready = self.recipe.student.name, isinstance(self.model, Naive) or is_fitted(self.model)
        if waits_for_rows(self.model) or (self._last is None and name in MODELS and not ready):
            raise OrderError(
                f"{name or 'the line'} has not learned from any rows yet", "call fit(table) first"
            )


def _warn(doubts: Sequence[str], level: int = 3) -> None:
    """Python's own warnings, where LLMFineTuner was called."""
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=level)


def plan_of(model: str | nn.Module, task: str, given: dict[str, Any] | Series | None) -> Series:
    """How series are read: what is given, before that of the run that the model comes from, or what it is made for.

    Raises RecipeError for settings that there are not, or of another task.
    """
    if given is not None and task != "forecasting":
        raise RecipeError(
            f"series says how numbers over time are read, and the task is {task}", "leave it out"
        )
    found = asdict(given) if isinstance(given, Series) else dict(given or {})
    if task == "forecasting":
        found = {**_of_model(model), **found}
    return recipe_file.from_dict({"data": {"series": found}}).data.series


def _of_model(model: str | nn.Module) -> dict[str, Any]:
    if isinstance(model, nn.Module):
        return {name: value for name, value in vars(model.config).items() if name in OF_MODEL}
    if is_run(model):
        return asdict(recipe_file.load(Path(model) / "recipe.yaml").data.series)
    if model in MODELS or not Path(model).is_dir():
        return {}
    return {name: value for name, value in vars(loading.load_config(model)).items() if name in OF_MODEL}
