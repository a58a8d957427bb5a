"""The commands evaluate and forecast. Heavy imports stand inside the functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.cli.configs import config_of, has_two_stacks, is_forecaster
from llm_finetuner.cli.console import METRICS, figure
from llm_finetuner.cli.hub import prepare
from llm_finetuner.cli.needed import TRANSFORMING, WRITING
from llm_finetuner.cli.settings import paths_in
from llm_finetuner.cli.training import check_finished, recipe_in
from llm_finetuner.errors import FinetunerError, RecipeError
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.recipe_series import FORECASTING, Series
from llm_finetuner.registry import MODELS, TASKS, resolve, unknown

OF_MODEL = ("lookback", "horizon")  # what a model that was trained says itself
ALL, STEPS = "all", 12  # the last line of a table; steps of a series that are shown
SIMPLE = ("repeat-last", "seasonal-naive", "linear")  # as forecasting_job.py, which needs torch


def evaluate(given: dict[str, Any], screen) -> Any:
    """evaluate MODEL --data FILE."""
    name = model_named(given)
    task, data = read_by(name, given)
    if not data.source:
        raise RecipeError("data.source is missing", "give it with --data")
    if task == FORECASTING:
        return _of_series(name, data, given.get("level", []), screen)
    if "level" in given:
        raise RecipeError(f"--level is of series, and {name} is for {task}", "leave it out")
    return _of_rows(name, task, data, given, screen)


def forecast(given: dict[str, Any], screen) -> Any:
    """forecast RUN --data FILE [--level 80 90] [--output FILE]."""
    name = model_named(given)
    task, data = read_by(name, {**given, "--task": FORECASTING})
    if not data.source:
        raise RecipeError("data.source is missing", "give it with --data")
    path = _free_file(given, data.source)
    from llm_finetuner.cli.progress import quiet_libraries
    from llm_finetuner.data import series

    groups, layout = series.load(data.source, data.series)
    quiet_libraries()
    from llm_finetuner import forecasting_job as job
    from llm_finetuner.data import windows

    levels, plan = job.check_levels(given.get("level", [])), data.series
    season = plan.season or series.season_of(groups[0].frequency)
    seen = None
    if name in SIMPLE:
        frame = windows.frame(groups, plan, season)
        model = job.simple(name, frame)
        groups = frame.groups  # without those that are too short
        seen = [borders["train"][1] for borders in frame.borders] if name == "linear" else None
    else:
        model = _trained(name)
        seen = _rows_seen(name, groups, screen) if levels else None
    ahead = job.forecast(model, groups, layout, levels, seen=seen, season=season)
    screen.say(
        f"{layout.describe()}; {plan.horizon} steps after {groups[0].times[-1]}, from the last {plan.lookback}"
    )
    if levels:
        rest = f"{min(ahead.windows):,}" + (
            f" to {max(ahead.windows):,}" if len(set(ahead.windows)) > 1 else ""
        )
        screen.say(f"intervals rest on the last {rest} windows of the history")
    rows = _plain(ahead.table)
    if path is None:
        _show_ahead(ahead.table, layout, levels, screen)
    else:
        ahead.table.to_csv(path, index=False)
        screen.show(f"{len(rows)} rows in {path}")
    return {"rows": rows, "windows": ahead.windows, "horizon": plan.horizon, "lookback": plan.lookback}


# ---- which model, and how its data are read


def model_named(given: dict[str, Any]) -> str:
    """The model, as a word or by --model. Raises RecipeError."""
    names = {given[key] for key in ("named", "model") if key in given}
    if len(names) != 1:
        said = "two models are named" if names else "no model is named"
        raise RecipeError(said, "give one: the folder of a run, or a model")
    return names.pop()


def read_by(name: str, given: dict[str, Any]) -> tuple[str, Data]:
    """(the task of a model, how its data are read): as its run says, and the flags over it. Raises FinetunerError."""
    recipe = Recipe(task=_task_of(name, given.get("--task")))
    if (Path(name) / "recipe.yaml").exists():
        check_finished(name)
        recipe = replace(recipe, data=recipe_in(name).data)
    flags = paths_in({**given, "--task": recipe.task}, distil=False)
    if recipe.task == FORECASTING:
        recipe = replace(recipe, data=replace(recipe.data, series=_series(name, recipe.data.series, flags)))
    from llm_finetuner.recipe_file import change

    paths = {path: value for path, value in flags.items() if path.startswith("data.")}
    return recipe.task, change(recipe, paths.items()).data


def _task_of(name: str, asked: str | None) -> str:
    """The task of a run, of a forecaster, else the one that is asked for. Raises RecipeError."""
    if asked is not None and asked not in TASKS:
        raise unknown("task", asked, TASKS)
    own = recipe_in(name).task if (Path(name) / "recipe.yaml").exists() else None
    if own is None and (name in MODELS or is_forecaster(name)):
        own = FORECASTING
    if asked == FORECASTING and own is None and not Path(name).is_dir():
        raise unknown("forecaster", name, (*SIMPLE, "the folder of a run"))
    if own is not None and asked not in (None, own):
        raise RecipeError(f"{name} is for {own}, not for {asked}", "leave --task out")
    return own or asked or (TRANSFORMING if has_two_stacks(name) else WRITING)[0]


def _series(name: str, plan: Series, flags: dict[str, Any]) -> Series:
    """The series with what the model itself says of its look-back and horizon. Raises RecipeError."""
    if name in MODELS:
        if name not in SIMPLE:
            raise RecipeError(
                f"a {name} that is built anew has learned nothing",
                f"train one, and give the folder of the run; or one of {', '.join(SIMPLE)}",
            )
        return plan
    config = config_of(name)
    for field in OF_MODEL:
        if flags.get(f"data.series.{field}", config.get(field)) != config.get(field):
            raise RecipeError(
                f"{name} has {field} {config.get(field)}, and --{field} says {flags[f'data.series.{field}']}",
                "leave it out: the model says it",
            )
    return replace(plan, **{field: config[field] for field in OF_MODEL if field in config})


# ---- the work


def _of_series(name: str, data: Data, levels: list[float], screen) -> Any:
    from llm_finetuner.cli.progress import quiet_libraries
    from llm_finetuner.data import windows

    frame = windows.read(data.source, data.series)  # what is wrong with it is told before torch is loaded
    quiet_libraries()
    from llm_finetuner import forecasting_job as job

    levels = job.check_levels(levels)
    model = job.simple(name, frame) if name in SIMPLE else _trained(name)
    found = {"model": name, "data": data.source, "split": data.series.split}
    found |= job.evaluate(model, frame, levels)
    screen.say(frame.layout)
    show(found, screen)
    return found


def show(found: dict[str, Any], screen) -> None:
    """The figures of a forecaster: on the scaled data, in the units of the data, and of intervals."""
    screen.facts(
        [
            ("MSE, MAE", f"{found['mse']:.4f}, {found['mae']:.4f} of the scaled data"),
            ("over", f"{found['windows']:,} test windows, look-back {found['lookback']}, "
             f"horizon {found['horizon']}, split {found['split']}"),
            ("MSE by step", ", ".join(f"{step} {value:.3f}" for step, value in _some(found["by_step"]))),
        ]
    )  # fmt: skip
    own = found["original"]
    names = ("mae", "rmse", "smape", "mase", "crps")
    rows = [
        [name, found["by_channel"][name], *(figures[key] for key in names)]
        for name, figures in own["channels"].items()
    ]
    rows.append([ALL, found["mse"], *(own["mean"][key] for key in names)])
    head = ["channel", "MSE", "MAE", "RMSE", "sMAPE %", f"MASE ({found['season']})", "CRPS"]
    screen.table(head, [_spelled(row) for row in rows])
    screen.say("MSE: of the scaled data; the others in the units of the data")
    for level, of_level in found.get("intervals", {}).items():
        screen.heading(f"Intervals of {level} %")
        parts = {**of_level["channels"], ALL: of_level}
        keys = ("coverage", "width", "interval_score")
        rows = [_spelled([name, *(part[key] for key in keys)]) for name, part in parts.items()]
        screen.table(["channel", "coverage", "width", "interval score"], rows)
        screen.say("of the scaled data")


def _spelled(row: list[Any]) -> list[str]:
    """A name and numbers."""
    return [row[0], *("-" if cell is None else f"{cell:.4g}" for cell in row[1:])]


def _some(values: list[float], count: int = 4) -> list[tuple[int, float]]:
    """The first step, the last, and some between: (step from 1, value)."""
    last = len(values) - 1
    steps = sorted({round(place * last / (count - 1)) for place in range(count)})
    return [(step + 1, values[step]) for step in steps]


def _of_rows(name: str, task: str, data: Data, given: dict[str, Any], screen) -> Any:
    """What LLMFineTuner.evaluate says of these rows."""
    prepare([name, data.source], screen.warn)
    screen.say("Loading ...", "dim")
    from llm_finetuner.cli.progress import quiet_libraries

    quiet_libraries()
    from llm_finetuner.finetuner import LLMFineTuner
    from llm_finetuner.models.loading import load_tokenizer, load_trained

    model = load_trained(name, merge=True, auto=resolve(TASKS, task).auto)
    tuner = LLMFineTuner(model, task=task, tokenizer=load_tokenizer(name))
    tuner.load_model(method="full")
    tuner.recipe = replace(tuner.recipe, data=data)
    rows = tuner.load_dataset_from_source(
        data.source, data.config, data.split, data.samples, data.files, data.on_bad_row, only=data.only
    )
    size = paths_in({**given, "--task": task}, distil=False).get("train.batch_size")
    figures = tuner.evaluate(rows, **({"batch_size": size} if size else {}))
    screen.facts((label, figure(figures, key, spell)) for key, label, spell in METRICS if key in figures)
    screen.show(f"over {figures['tokens']:,} {tuner._task.measure.units} of {data.source}")
    return figures


def _trained(name: str) -> Any:
    """A forecaster from its folder. Raises ModelError."""
    from llm_finetuner.engine import default_device
    from llm_finetuner.models.loading import load_trained
    from llm_finetuner.tasks.forecasting import Forecasting

    model = load_trained(name, default_device(None), merge=True, auto=Forecasting.auto)
    Forecasting().check_model(model, name)
    return model


def _rows_seen(name: str, groups: Any, screen) -> list[int] | None:
    """Rows of a history that a run was trained on; None, with a warning, where that cannot be told any more."""
    from llm_finetuner.data import windows
    from llm_finetuner.forecasting_job import rows_seen

    if not (Path(name) / "recipe.yaml").exists():
        screen.warn(f"{name} does not say what it was trained on; on such rows intervals come out too narrow")
        return None
    data = recipe_in(name).data
    try:
        return rows_seen(groups, windows.read(data.source, data.series))
    except FinetunerError as error:
        screen.warn(
            f"what {name} was trained on cannot be read ({error.what}); on such rows intervals come out too narrow"
        )
        return None


# ---- tables


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


def _plain(table: Any) -> list[dict[str, Any]]:
    """Rows as JSON can hold them, times as text."""
    import json

    return json.loads(table.to_json(orient="records", date_format="iso"))


def _show_ahead(table: Any, layout: Any, levels: list[float], screen) -> None:
    """A line a series and time: the forecast, and from where to where its intervals go. Of many steps the first ones."""
    time, target = table.columns[0 if layout.series is None else 1], layout.targets[0]
    parts = [(name, name, table) for name in layout.targets]
    if layout.series is not None:
        parts = [(str(name), target, rows) for name, rows in table.groupby(layout.series, sort=False)]
    lines, more = [], 0
    for name, column, rows in parts:
        more = max(more, len(rows) - STEPS)
        for _, row in rows.head(STEPS).iterrows():
            ends = [(row[f"{column}-lo-{level:g}"], row[f"{column}-hi-{level:g}"]) for level in levels]
            cells = [name, str(row[time]), f"{row[column]:.5g}", *(f"{low:.5g} to {high:.5g}" for low, high in ends)]
            lines.append(cells)
    screen.table(["series", "time", "forecast", *(f"{level:g} %" for level in levels)], lines)
    if more > 0:
        screen.show(f"and {more} more steps of each: --output FILE.csv or --json has all")
