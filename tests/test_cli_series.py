"""Series at the command line and in the menu: flags, evaluations, forecasts, previews, mistakes, a run to its end."""
# ruff: noqa: F811, I001  fixtures are arguments

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from menu_keys import CTRL_U, DOWN, ENTER, answers_to
from menu_keys import keys  # noqa: F401  fixture
from test_cli_app import recipe_of
from test_forecasters import SMALL

from llm_finetuner import recipe_file
from llm_finetuner.cli import configs, confirm, forecasters, jobs, series_questions
from llm_finetuner.cli.app import main
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.questions import further
from llm_finetuner.cli.settings import build, fields_of
from llm_finetuner.cli.words import words_of
from llm_finetuner.models import build as build_model
from llm_finetuner.recipe import Data
from llm_finetuner.recipe_series import Series
from llm_finetuner.registry import MODELS, resolve

ROWS, LOOKBACK, HORIZON = 400, 16, 4
CUT = ["--lookback", "16", "--horizon", "4"]
SHAPE = ["--shape", *(f"{name}={value}" for name, value in SMALL.items())]


def table(seed: int = 0) -> pd.DataFrame:
    draw, steps = np.random.default_rng(seed), np.arange(ROWS)
    waves = {
        f"c{i}": 10 * i + np.sin(np.pi * steps / 12 + i) + 0.1 * draw.normal(size=ROWS) for i in range(2)
    }
    return pd.DataFrame({"date": pd.date_range("2021", periods=ROWS, freq="h"), **waves})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with rows.csv and the run of a small forecaster, trained from the command line."""
    folder = tmp_path_factory.mktemp("series")
    table().to_csv(folder / "rows.csv", index=False)
    words = [
        "finetune",
        "--task",
        "forecasting",
        "--student",
        "patch",
        "--data",
        str(folder / "rows.csv"),
        *CUT,
        *SHAPE,
    ]
    assert (
        main([*words, "--steps", "3", "--eval-every", "0", "--output", str(folder / "big"), "--quiet"]) == 0
    )
    return folder


@pytest.fixture
def desk(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "big"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def answer(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ---- facts that are written down here, so that no torch is needed to ask


def test_what_is_known_of_forecasters_is_so():
    assert set(forecasters.SIMPLE) | set(series_questions.series_fit.UNTRAINED) == set(MODELS)
    shapes = {"time_llm": {"description": "waves"}}
    kinds = {
        build_model.empty(resolve(MODELS, name), shapes.get(name, {})).config.model_type for name in MODELS
    }
    assert kinds == set(configs.FORECASTERS)


# ---- flags


def test_every_setting_of_series_is_a_flag_and_is_spelled_again():
    given = {
        "lookback": 24, "horizon": 6, "quantiles": [0.1, 0.5, 0.9], "split": "ett-hour", "train_percent": 10.0,
        "window_step": 2, "description": "load of a line, by the hour", "season": 12, "time_column": "none", "id_column": "who",
        "targets": ["a", "b"], "missing": "forward", "duplicates": "mean", "irregular": "fill", "constant": "keep",
        "short": "drop",
    }  # fmt: skip
    assert set(given) == set(vars(Series()))
    named = {
        "student.name": "time_llm",
        "data.source": "d.csv",
        "student.shape": {"num_layers": 1, "backbone": "gpt2"},
    }
    paths = {f"data.series.{name}": value for name, value in given.items()}
    recipe = build("full", {"task": "forecasting", **named, **paths})
    assert (
        recipe.student.shape["description"] == given["description"]
        and recipe.student.shape["num_layers"] == 1
    )
    words = words_of(recipe)
    assert "--set" not in words and recipe_of(words) == recipe


@pytest.mark.parametrize("options", [{"alpha": 0.2, "beta": 0.8}, {"beta": "auto"}, {"feature_weight": 0.1}])
def test_distillation_of_forecasters_is_spelled_again(options):
    paths = {
        "student.name": "patch",
        "data.source": "d.csv",
        **{f"options.{n}": v for n, v in options.items()},
    }
    for teacher in ({"teacher.name": "linear"}, {"teacher.options.members": ["linear", "runs/big"]}):
        recipe = build(13, {**paths, **teacher})
        words = words_of(recipe)
        assert (recipe.task, recipe.train.steps, recipe.train.batch_size) == ("forecasting", 1000, 32)
        assert "--set" not in words and recipe_of(words) == recipe
    assert recipe.teacher.options["members"][0]["shape"]["lookback"] == recipe.data.series.lookback


TRAIN = [
    "finetune",
    "--task",
    "forecasting",
    "--student",
    "patch",
    "--data",
    "rows.csv",
    *CUT,
    "--output",
    "out",
]
TEACH = ["distill", "--method", "13", "--student", "patch", "--data", "rows.csv", *CUT, "--output", "out"]


@pytest.mark.parametrize(
    "words, said",
    [
        ([*TRAIN, "--lookback", "1"], "lookback must be a whole number of at least 2"),
        ([*TRAIN, "--horizon", "300"], "too few for split 70-10-20"),
        ([*TRAIN, "--split", "70-10"], "three percentages that sum to 100"),
        ([*TRAIN, "--split", "ett-hour"], "400 rows are too few for split ett-hour"),
        ([*TRAIN, "--targets", "c0", "c9"], "there is no column 'c9'"),
        ([*TRAIN, "--data", "none.csv"], "none.csv is not a file"),
        ([*TRAIN, "--max-length", "12"], "data.max_length is for texts"),
        ([*TRAIN, "--shape", "hidden=3"], "did you mean 'hidden_size'?"),
        ([*TRAIN, "--shape", "hidden_size"], "'hidden_size' is not option=value"),
        ([*TRAIN, "--shape", "lookback=3"], "lookback is not of a model's shape"),
        ([*TRAIN, "--shape", "hidden_size=30", "num_heads=4"], "hidden_size=30 cannot be shared"),
        ([*TRAIN, "--shape", "patch_length=99"], "patch"),
        ([*TRAIN, "--student", "time_llm"], "data.series.description is missing"),
        ([*TRAIN, "--student", "repeat-last"], "repeat-last has nothing to learn"),
        ([*TRAIN, "--dtype", "float16"], "student.dtype is for models that are loaded"),
        ([*TRAIN, "--task", "causal_lm"], "data.series.lookback is for forecasting"),
        ([*TEACH, "--teacher", "patch"], "a patch that is built anew has learned nothing"),
        ([*TEACH, "--teacher", "seasonal-naive"], "repeats a season, and none is given"),
        ([*TEACH, "--teacher", "big", "--horizon", "8"], "big has horizon 4, and the series are cut for 8"),
        ([*TEACH, "--teacher", "linear", "--quantiles", "0.1", "0.5", "0.9"], "linear gives one number a step"),
        ([*TEACH, "--teacher", "linear", "--feature-weight", "1"], "compares hidden states, and linear has none"),
        ([*TEACH, "--teacher", "linear", "--beta", "auto", "--alpha", "0.2"], "auto chooses it"),
        ([*TEACH, "--teacher", "linear", "--seeds", "0"], "seeds must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_trained(desk, capsys, words, said):
    assert main(words) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()


# ---- evaluate


def test_an_evaluation_is_that_of_all_test_windows(desk, capsys):
    """Against the last value of each look-back, subtracted here."""
    found = answer(
        capsys, "evaluate", "--task", "forecasting", "--data", "rows.csv", "--model", "repeat-last", *CUT
    )
    values = table()[["c0", "c1"]].to_numpy()
    scaled = (values - values[:280].mean(0)) / values[:280].std(0)
    ends = range(320, ROWS - HORIZON + 1)
    gap = np.stack([scaled[end : end + HORIZON] - scaled[end - 1] for end in ends])
    assert (found["windows"], found["lookback"], found["horizon"]) == (len(ends), LOOKBACK, HORIZON)
    assert (found["mse"], found["mae"]) == pytest.approx(((gap**2).mean(), np.abs(gap).mean()), rel=1e-5)
    units = np.abs(gap * values[:280].std(0)).mean((0, 1))
    assert [found["original"][name]["mae"] for name in ("c0", "c1")] == pytest.approx(
        units.tolist(), rel=1e-5
    )
    assert set(found["original"]["c0"]) == {"mae", "rmse", "smape", "mase", "crps"}


def test_a_line_and_a_run_are_evaluated_alike(desk, capsys):
    words = ["evaluate", "--data", "rows.csv", "--model"]
    line = answer(capsys, *words, "linear", *CUT, "--level", "80")
    assert line["mse"] < answer(capsys, *words, "repeat-last", *CUT)["mse"]
    assert 0.5 < line["intervals"]["80"]["coverage"] <= 1
    run = answer(capsys, "evaluate", "--model", "big")  # its own table and cut
    assert run["windows"] == line["windows"] and run["mse"] > line["mse"]
    assert main([*words, "big"]) == 0
    shown = capsys.readouterr().out
    assert f"MSE, MAE: {run['mse']:.4f}" in shown and "look-back 16, horizon 4, split 70-10-20" in shown


@pytest.mark.parametrize(
    "words, said",
    [
        (["lnear", "--data", "rows.csv"], "did you mean 'linear'?"),
        (["time_llm", "--data", "rows.csv"], "a time_llm that is built anew has learned nothing"),
        (["linear"], "no data are named"),
        (["linear", "--data", "none.csv"], "none.csv is not a file"),
        (["linear", "--data", "rows.csv"], "too few for split 70-10-20"),
        (["big", "--lookback", "8"], "big has lookback 16, and --lookback says 8"),
        ([".", "--data", "rows.csv"], "holds no forecaster"),
        (["linear", "--data", "rows.csv", *CUT, "--level", "0.8"], "level is in percent"),
    ],
)
def test_mistakes_of_evaluations(desk, capsys, words, said):
    assert main(["evaluate", "--model", *words]) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


# ---- forecast


def test_a_forecast_goes_on_where_the_table_ends(desk, capsys):
    words = ["forecast", "--model", "linear", "--data", "rows.csv", *CUT, "--level", "80", "90"]
    found = answer(capsys, *words)
    assert main([*words, "--output", "next.csv"]) == 0
    written = pd.read_csv("next.csv")
    assert list(written)[:6] == ["date", "c0", "c0-lo-80", "c0-hi-80", "c0-lo-90", "c0-hi-90"]
    later = pd.date_range("2021", periods=ROWS + HORIZON, freq="h")[ROWS:]
    assert list(pd.to_datetime(written["date"])) == list(later)
    assert [row["c1"] for row in found["rows"]] == pytest.approx(written["c1"].tolist())
    for name in ("c0", "c1"):
        inner, outer = (written[f"{name}-hi-{x}"] - written[f"{name}-lo-{x}"] for x in (80, 90))
        assert (0 < inner).all() and (inner < outer).all()
    assert main([*words, "--output", "next.csv"]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*words, "--output", "next.csv", "--overwrite"]) == 0
    assert main([*words, "--output", "next.txt"]) == 2 and "does not end in .csv" in capsys.readouterr().err


def test_a_run_forecasts_a_long_table(desk, capsys):
    """The same numbers as the model itself gives, and a shorter horizon is its first steps."""
    long = table().melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    long.to_csv("long.csv", index=False)
    whole = answer(capsys, "forecast", "--model", "big", "--data", "long.csv")
    short = answer(capsys, "forecast", "--model", "big", "--data", "long.csv", "--horizon", "2")
    own = {name: [r["patch"] for r in whole["rows"] if r["unique_id"] == name] for name in ("c0", "c1")}
    assert [r["patch"] for r in short["rows"] if r["unique_id"] == "c1"] == own["c1"][:2]
    from transformers import AutoModel

    context = torch.tensor(table()["c1"].to_numpy()[-LOOKBACK:], dtype=torch.float32)
    with torch.no_grad():
        wanted = AutoModel.from_pretrained("big").eval()(context[None]).values[0].tolist()
    assert own["c1"] == pytest.approx(wanted, rel=1e-4)
    assert main(["forecast", "--model", "big", "--horizon", "5"]) == 2
    assert "a shorter horizon can be given" in capsys.readouterr().err


# ---- previews, the menu


def test_a_preview_shows_the_table_as_it_is_read(desk, capsys):
    seen = answer(capsys, "preview", "--task", "forecasting", "--data", "rows.csv", *CUT)
    assert (seen["channels"], seen["rows"], seen["frequency"], seen["season"]) == (
        ["c0", "c1"],
        ROWS,
        "h",
        24,
    )
    assert seen["windows"] == {"train": 261, "validation": 37, "test": 77}
    assert seen["head"][0] == ["time", "c0", "c1"] and len(seen["head"]) == 4


TABLE = [
    "rows.csv",
    ENTER,
    "16",
    ENTER,
    "4",
    ENTER,
    ENTER,
    ENTER,
]  # look-back, horizon, split, yes to the preview
SMALLER = [CTRL_U, "hidden_size=8 num_layers=1 num_heads=2", ENTER]
LAST = ENTER * 5  # steps, batch, rate, no other settings, output


def test_the_menu_asks_a_forecaster_for_its_windows(keys, desk):
    moves = [DOWN * 6, ENTER, *TABLE, ENTER, *SMALLER, "2", ENTER, ENTER * 4]
    recipe = keys(answers_to("full"), *moves)
    named = {
        "task": "forecasting",
        "student.name": "patch",
        "data.source": "rows.csv",
        "output": "outputs/patch-full",
    }
    cut = {"data.series.lookback": 16, "data.series.horizon": 4, "train.steps": 2}
    shape = {"student.shape": {"hidden_size": 8, "num_layers": 1, "num_heads": 2}}
    assert recipe == build("full", {**named, **cut, **shape})
    assert recipe_of(words_of(recipe)) == recipe


def test_the_menu_asks_for_the_share_of_the_teacher(keys, desk, capsys):
    """The kind of teacher, a teacher that has learned nothing, one that has, a share that cannot be, one that can."""
    moves = [
        *TABLE,
        ENTER,
        *SMALLER,
        ENTER,
        "patch",
        ENTER,
        CTRL_U,
        "big",
        ENTER,
        "2",
        ENTER,
        CTRL_U,
        "0.8",
        ENTER,
    ]
    recipe = keys(answers_to("forecast_distillation"), *moves, LAST)
    assert (recipe.task, recipe.teacher.name) == ("forecasting", "big")
    assert (recipe.options["alpha"], recipe.options["beta"]) == (0.2, 0.8)
    auto = keys(
        answers_to("forecast_distillation"), *TABLE, ENTER, ENTER, ENTER, "linear", ENTER, "auto", ENTER, LAST
    )
    assert auto.options["beta"] == "auto" and confirm.confirm_screen(auto, Screen())
    said = capsys.readouterr().out
    assert "windows of 16 + 4 steps: 261 to train" in said and "over 261 windows" in said


def test_time_llm_is_asked_what_the_data_are(keys, desk):
    moves = [DOWN * 6, ENTER, *TABLE, "time_llm", ENTER, "two waves", ENTER, *SMALLER, LAST]
    recipe = keys(answers_to("full"), *moves)
    assert recipe.data.series.description == recipe.student.shape["description"] == "two waves"
    assert recipe.student.shape["hidden_size"] == 8


def test_a_table_that_is_read_wrongly_can_be_read_otherwise(keys, desk, capsys):
    """A gap is told, and the setting that mends it stands first; or another table is taken."""
    frame = table()
    frame.loc[5, "c1"] = np.nan
    frame.to_csv("gaps.csv", index=False)
    gaps = ["gaps.csv", ENTER, "16", ENTER, "4", ENTER, ENTER]
    mend = [ENTER, ENTER, DOWN * 2, ENTER, ENTER]  # read it otherwise, missing, the third way, yes
    recipe = keys(answers_to("full"), DOWN * 6, ENTER, *gaps, *mend, ENTER, *SMALLER, LAST)
    assert recipe.data.series.missing == "forward" and "1 numbers are missing" in capsys.readouterr().out
    other = keys(answers_to("full"), DOWN * 6, ENTER, *gaps, DOWN, ENTER, *TABLE, ENTER, *SMALLER, LAST)
    assert (other.data.source, other.data.series.missing) == ("rows.csv", "error")


def test_settings_of_texts_are_not_offered_to_series_nor_the_other_way_round():
    given = {"method": "forecast_distillation", "student.name": "patch", "data.source": "d.csv"}
    paths = {setting.path for setting in further(given)}
    assert {"data.series.window_step", "options.feature_weight", "data.eval_samples"} <= paths
    assert not paths & {
        "data.max_length",
        "data.mask",
        "train.packing",
        "options.beta",
        "student.load_in_4bit",
    }
    texts = {setting.path for setting in further({**given, "method": "vanilla_distillation"})}
    assert not texts & {s.path for s in fields_of(Data, "data") if s.path.startswith("data.series.")}


def test_a_run_to_its_end_and_the_pairs_of_its_seeds(keys, desk, capsys):
    moves = [*TABLE, ENTER, *SMALLER, ENTER, "big", ENTER, ENTER, "2", ENTER, ENTER * 3, "out", ENTER]
    seeds = ["2", ENTER, ENTER]  # two seeds, start
    assert keys(lambda: jobs.distil_or_finetune("forecast_distillation"), *moves, *seeds) == 0
    said = capsys.readouterr().out
    assert (
        "--seeds 2" in said and "forecast --model out --level 80 90" in said and "line in closed form" in said
    )
    verdict = json.loads(Path("out/metrics.json").read_text())
    assert "seeds" in json.dumps(verdict) and recipe_file.load("out/recipe.yaml").options["beta"] == 0.5
