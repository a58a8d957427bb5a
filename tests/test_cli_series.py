"""Series at the command line: flags and how they are spelled again, mistakes, evaluations, forecasts, previews."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli_app import recipe_of
from test_forecasters import SMALL

from llm_finetuner.cli import configs, forecasters, series_questions
from llm_finetuner.cli.app import main
from llm_finetuner.cli.settings import build
from llm_finetuner.cli.words import words_of
from llm_finetuner.models import build as build_model
from llm_finetuner.recipe_series import OF_SEQUENCES, Series
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
    made = set(MODELS) - set(OF_SEQUENCES)
    assert set(forecasters.SIMPLE) | set(series_questions.series_fit.UNTRAINED) == made
    shapes = {"time_llm": {"description": "waves"}}
    kinds = {
        build_model.empty(resolve(MODELS, name), shapes.get(name, {})).config.model_type for name in made
    }
    assert kinds == set(configs.FORECASTERS)


# ---- flags


def test_every_setting_of_series_is_a_flag_and_is_spelled_again():
    given = {
        "lookback": 24, "horizon": 6, "quantiles": [0.1, 0.5, 0.9], "split": "ett-hour", "train_percent": 10.0,
        "window_step": 2, "description": "load of a line, by the hour", "season": 12, "time_column": "none",
        "id_column": "who",
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
        ([*TEACH, "--teacher", "patch"], "patch was built with weights that nobody has trained"),
        ([*TEACH, "--teacher", "seasonal-naive"], "repeats a season, and none is given"),
        ([*TEACH, "--teacher", "big", "--horizon", "8"], "big has horizon 4, and the series are cut for 8"),
        ([*TEACH, "--teacher", "linear", "--quantiles", "0.1", "0.5", "0.9"], "linear gives one number a step"),
        ([*TEACH, "--teacher", "linear", "--feature-weight", "1"], "compares hidden states, and linear has none"),
        ([*TEACH, "--teacher", "linear", "--beta", "auto", "--alpha", "0.2"], "auto chooses it"),
        ([*TEACH, "--teacher", "linear", "--seeds", "0"], "seeds must be a whole number of at least 1"),
        ([*TEACH, "--teacher", "linear", "--alpha", "0", "--beta", "0"], "alpha, beta, feature_weight, relation"),
        ([*TEACH, "--teacher", "linear", "--beta", "lots"], "a number of at least 0, or auto, got 'lots'"),
        ([*TEACH, "--teacher", "linear", "--student", "nope"], "choose one of: time_llm, patch, linear, the folder"),
        ([*TRAIN, "--student", "./nope"], "./nope is not a folder"),
        ([*TRAIN, "--student", "big/nope"], "unknown forecaster 'big/nope'"),
        ([*TEACH, "--teacher", "3"], "choose one of: linear, repeat-last, seasonal-naive, the folder of a run"),
        ([*TEACH, "--teacher", "linaer"], "did you mean 'linear'?"),
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
        (["seasonal-naive", "--data", "rows.csv", *CUT], "season 24 is longer than look-back 16"),
        (["seasonal-naive", "--data", "rows.csv", *CUT, "--time-column", "none", "--targets", "c0"],
         "seasonal-naive repeats a season, and none is given"),
        (["linear", "--data", "rows.csv", *CUT, "--level", "0.8"], "level is in percent"),
        (["linear", "--data", "rows.csv", *CUT, "--level", "wide"], "--level is in percent, got 'wide'"),
    ],
)  # fmt: skip
def test_mistakes_of_evaluations(desk, capsys, words, said):
    assert main(["evaluate", "--model", *words]) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())


# ---- forecast


def test_a_forecast_goes_on_where_the_table_ends(desk, capsys):
    words = ["forecast", "--model", "linear", "--data", "rows.csv", *CUT, "--level", "80", "90"]
    found = answer(capsys, *words)
    assert answer(capsys, *words[:-2], "80,90") == found
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


# ---- previews


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
