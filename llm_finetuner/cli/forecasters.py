"""The commands evaluate and forecast: what a forecaster is worth, and what it says of the steps to come.

Heavy imports stand inside the functions; what is wrong with a table is told before torch is loaded.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.configs import config_of, is_forecaster
from llm_finetuner.cli.series_fit import UNTRAINED
from llm_finetuner.cli.settings import paths_in
from llm_finetuner.cli.training import check_finished, recipe_in
from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import number_or_text
from llm_finetuner.recipe import Data, Model, Recipe, shaped
from llm_finetuner.recipe_series import FORECASTING, Series
from llm_finetuner.registry import MODELS, TASKS, resolve, unknown

SIMPLE = ("repeat-last", "seasonal-naive", "linear")  # forecasters that no run has to train
OF_MODEL = ("lookback", "horizon")  # what a model that was trained says itself
STEPS, CHANNELS = 12, 24  # that are shown in a table: of a forecast, and of an evaluation
ORIGINAL = {"mae": "MAE", "rmse": "RMSE", "smape": "sMAPE %", "mase": "MASE", "crps": "CRPS"}


def evaluate(given: dict[str, Any], screen) -> Any:
    """evaluate --model MODEL --data FILE: errors on the test part of a table."""
    name, data = given["model"], read_by(given)
    from llm_finetuner.data import windows

    frame = windows.read(data.source, data.series)
    _warn(frame.doubts, screen)
    frame.part("test")
    _load_torch()
    from llm_finetuner import forecasting_job
    from llm_finetuner.benchmark.verdict import finite

    model = _ready(name, data.series, frame.season, lambda: frame, screen)
    found = {"model": name, "data": data.source, "split": data.series.split, "season": frame.season}
    found |= finite(forecasting_job.evaluate(model, frame, levels_in(given), screen.warn, name))
    screen.say(frame.layout)
    _show(found, screen)
    return found


def forecast(given: dict[str, Any], screen) -> Any:
    """forecast --model MODEL --data FILE [--level 80 90] [--output FILE]: the steps after the end of a table."""
    name, data = given["model"], read_by(given, cuts=True)
    plan, path = data.series, _free_file(given, data.source)
    horizon = paths_in(_of_series(given), distil=False).get("data.series.horizon")
    from llm_finetuner.data import series, windows

    groups, layout = series.load(data.source, plan)
    _warn(layout.doubts, screen)
    season = series.season_for(groups, plan)
    _load_torch()
    from llm_finetuner import forecasting_job as job

    model = _ready(name, plan, season, lambda: windows.frame(groups, plan, season), screen)
    levels = levels_in(given)
    found = job.forecast(model, groups, levels, horizon=horizon, warn=screen.warn)
    table = job.as_given(found, layout)
    steps = horizon or model.config.horizon
    after = groups[0].times[-1]
    screen.say(
        f"{layout.describe()}; {steps} steps after {after}, each from the last {model.config.lookback}"
    )
    if path is None:
        _show_ahead(found, levels, screen)
    else:
        table.to_csv(path, index=False)
        screen.show(f"{len(table)} rows in {path}")
    rows = json.loads(table.to_json(orient="records", date_format="iso"))
    return {"model": name, "lookback": model.config.lookback, "horizon": steps, "rows": rows}


# ---- which model, and how its data are read


def read_by(given: dict[str, Any], cuts: bool = False) -> Data:
    """How the data are read: as the run of the model says, and the flags over it. Raises FinetunerError.

    cuts: whether a horizon may be less than that of a model that was trained.
    """
    name, flags = given["model"], paths_in(_of_series(given), distil=False)
    recipe = _recipe_of(name)
    plan, told = recipe.data.series, config_of(name) if name not in MODELS else {}
    for field in OF_MODEL:
        path = f"data.series.{field}"
        own = told.get(field, getattr(plan, field) if recipe.data.source else None)
        if own is None:
            continue
        asked = flags.pop(path, own)
        if asked != own and not (cuts and field == "horizon" and asked < own):
            raise RecipeError(
                f"{name} has {field} {own}, and --{field} says {asked}",
                f"leave it out: the model says it{'; a shorter horizon can be given' * cuts}",
            )
        plan = replace(plan, **{field: own})
    from llm_finetuner.recipe_file import change

    paths = [(path, value) for path, value in flags.items() if path.startswith("data.")]
    data = change(replace(recipe, data=replace(recipe.data, series=plan)), paths).data
    if not data.source:
        raise RecipeError("no data are named", "give a .csv, .tsv or .parquet file with --data")
    return data


def levels_in(given: dict[str, Any]) -> list[float]:
    """--level 80 90, or 80,90. Raises RecipeError."""
    words = [word.strip() for words in given.get("level", []) for word in words.split(",") if word.strip()]
    found = [number_or_text(word) for word in words]
    if wrong := [word for word in found if isinstance(word, str)]:
        raise RecipeError(f"--level is in percent, got {wrong[0]!r}", "such as --level 80 90")
    return [float(word) for word in found]


def _of_series(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "--task": FORECASTING}


def _recipe_of(name: str) -> Recipe:
    """That of a run; an empty one of any other forecaster. Raises RecipeError for what forecasts nothing."""
    if (Path(name) / "recipe.yaml").exists():
        recipe = recipe_in(name)
        if recipe.task != FORECASTING:
            raise RecipeError(
                f"{name} is for {recipe.task}, and forecasts no series", f"compare {name} judges it"
            )
        check_finished(name)
        return recipe
    if name in UNTRAINED:
        raise RecipeError(
            f"a {name} that is built anew has learned nothing",
            f"train one (finetune --task forecasting), and give the folder of the run; or {', '.join(SIMPLE)}",
        )
    if name not in MODELS and not is_forecaster(name):
        if Path(name).is_dir():
            raise RecipeError(f"{name} holds no forecaster", "give the folder of a run, or a model of one")
        raise unknown("forecaster", name, (*SIMPLE, "the folder of a run"))
    return Recipe(task=FORECASTING)


# ---- the work


def _warn(doubts: Sequence[str], screen: Any) -> None:
    for doubt in doubts:
        screen.warn(doubt)


def _load_torch() -> None:
    from llm_finetuner.cli.progress import quiet_libraries

    quiet_libraries()


def _ready(name: str, plan: Series, season: int, frame: Callable[[], Any], screen: Any) -> Any:
    """A forecaster from its folder, or a simple one; a line is fitted to the training rows. Raises FinetunerError."""
    from llm_finetuner.engine import default_device
    from llm_finetuner.models.linear_forecaster import waits_for_rows
    from llm_finetuner.models.loading import load_trained
    from llm_finetuner.named_models import load_model

    task, device = resolve(TASKS, FORECASTING)(), default_device(None)
    if name not in MODELS:
        model = load_trained(name, device, merge=True, auto=task.auto)
        task.check_model(model, name)
        return model
    known = season if season > 1 else plan.season  # the last value again is no season, unless it is asked for
    data = Data(series=replace(plan, season=known, quantiles=[]))
    model = load_model(shaped(Model(name), data), device, 0)
    if waits_for_rows(model):
        train = frame().part("train")
        screen.say(f"fitting a line to {len(train):,} windows, look-back {plan.lookback}", "dim")
        task.fit(model, train, 0)
    return model


# ---- what is shown


def _show(found: dict[str, Any], screen) -> None:
    """The figures of a forecaster: of the scaled data, in the units of the data, and of intervals."""
    steps = found["by_step"]
    screen.facts(
        [
            ("MSE, MAE", f"{found['mse']:.4f}, {found['mae']:.4f} of the scaled data"),
            ("over", f"{found['windows']:,} test windows, look-back {found['lookback']}, "
             f"horizon {found['horizon']}, split {found['split']}"),
            ("skill", f"{_number(found['skill']['overall'])} against the {found['naive']}: 1 - MSE / its MSE"),
            ("MSE by step", ", ".join(f"{place + 1}: {steps[place]:.3f}" for place in _some(len(steps)))),
        ]
    )  # fmt: skip
    rows = [
        [name, *map(_number, (found["by_channel"][name], *(figures[key] for key in ORIGINAL)))]
        for name, figures in found["original"].items()
    ]
    _table(["channel", "MSE", *ORIGINAL.values()], rows, screen)
    screen.say(
        f"MSE: of the scaled data; the others in the units of the data, MASE by a season of {found['season']}"
    )
    keys = ("coverage", "width", "interval_score")
    for level, figures in found.get("intervals", {}).items():
        screen.heading(f"Intervals of {level} %, of the scaled data")
        parts = {"all": figures, **figures["by_channel"]}
        rows = [[name, *(_number(part[key]) for key in keys)] for name, part in parts.items()]
        _table(["channel", "coverage", "width", "interval score"], rows, screen)


def _table(head: list[str], rows: list[list[str]], screen) -> None:
    screen.table(head, rows[:CHANNELS])
    if len(rows) > CHANNELS:
        screen.say(f"and {len(rows) - CHANNELS} more: --json has all")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _some(steps: int, count: int = 4) -> list[int]:
    """The first step, the last, and some between."""
    return sorted({round(place * (steps - 1) / (count - 1)) for place in range(count)})


def _show_ahead(found: Any, levels: list[float], screen) -> None:
    """A line a series and time: the forecast, and from where to where its intervals go; of many steps the first."""
    series, time, model = found.columns[:3]
    more, lines = 0, []
    for name, rows in found.groupby(series, sort=False):
        more = max(more, len(rows) - STEPS)
        for _, row in rows.head(STEPS).iterrows():
            ends = (_between(row[f"{model}-lo-{x:g}"], row[f"{model}-hi-{x:g}"]) for x in levels)
            lines.append([str(name), str(row[time]), f"{row[model]:.5g}", *ends])
    screen.table(["series", "time", "forecast", *(f"{level:g} %" for level in levels)], lines)
    if more > 0:
        screen.show(f"and {more} more steps of each: --output FILE.csv or --json has all")


def _between(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.5g} to {high:.5g}"


def _free_file(given: dict[str, Any], history: str) -> Path | None:
    """The file to write. Raises RecipeError for one that is there, or is no .csv."""
    if "output" not in given:
        return None
    path = Path(given["output"]).expanduser()
    if path.suffix != ".csv":
        raise RecipeError(f"{given['output']} does not end in .csv", "the table is written as one")
    if path.resolve() == Path(history).expanduser().resolve():
        raise RecipeError(f"{given['output']} is the history itself", "choose another --output")
    if path.exists() and not given.get("overwrite"):
        raise RecipeError(f"{given['output']} exists already", "--overwrite replaces it")
    if not path.parent.is_dir():
        raise RecipeError(f"there is no folder {path.parent}", "make it first, or choose another --output")
    return path
