"""Series in the menu: questions, the table as it is read, mistakes at the prompt, a run to its end."""
# ruff: noqa: F811, I001  fixtures are arguments

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from menu_keys import CTRL_U, DOWN, ENTER, answers_to
from menu_keys import keys  # noqa: F401  fixture
from test_cli_app import recipe_of
from test_cli_series import desk, made, table  # noqa: F401  fixtures

from llm_finetuner import recipe_file
from llm_finetuner.cli import confirm, jobs, series_questions, side_jobs
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.questions import further, questions
from llm_finetuner.cli.settings import build, fields_of
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data

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


def test_wrong_answers_are_found_at_their_questions(keys, desk):
    """An empty table, one of no rows, a student and a teacher that are nothing: each is refused, and typed again."""
    Path("empty.csv").write_text("")
    Path("head.csv").write_text("date,c0\n")
    moves = [
        "empty.csv",
        ENTER,
        CTRL_U,
        "head.csv",
        ENTER,
        CTRL_U,
        *TABLE,
        "foo",
        ENTER,
        CTRL_U,
        "patch",
        ENTER,
    ]
    moves += [*SMALLER, ENTER, "3", ENTER, CTRL_U, "big", ENTER, ENTER, ENTER, LAST]
    recipe = keys(answers_to("forecast_distillation"), *moves)
    assert (recipe.data.source, recipe.student.name, recipe.teacher.name) == ("rows.csv", "patch", "big")


def test_a_run_of_the_same_windows_is_offered_as_teacher(desk):
    answers = {"method": "forecast_distillation", "student.name": "patch", "data.source": "rows.csv"}
    offered = series_questions.teacher()[0].make
    Path("outputs").mkdir()
    shutil.copytree("big", "outputs/wider")
    config = json.loads(Path("big/config.json").read_text())
    Path("outputs/wider/config.json").write_text(json.dumps({**config, "horizon": 8}))
    cut = {"data.series.lookback": 16, "data.series.horizon": 4}
    assert offered({**answers, **cut}).default == "linear"
    assert offered({**answers, **cut, "data.series.horizon": 8}).default == "outputs/wider"
    shutil.copytree("big", "outputs/same")
    os.utime("outputs/same/training.json", (0, 0))  # the older one
    assert offered({**answers, **cut}).default == "outputs/same"


def test_all_that_was_said_of_the_data_is_shown_before_the_start(desk, capsys):
    named = {"student.name": "time_llm", "teacher.name": "linear", "data.source": "rows.csv"}
    said = {
        "missing": "forward",
        "description": "two waves",
        "lookback": 16,
        "horizon": 4,
        "targets": ["c0", "c1"],
    }
    paths = {f"data.series.{name}": value for name, value in said.items()}
    assert confirm.confirm_screen(build("forecast_distillation", {**named, **paths}), Screen())
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("description two waves", "targets c0,c1", "missing forward", "windows of 16 + 4 steps"):
        assert words in shown


def test_the_hint_of_parts_is_for_language_models():
    given = {"method": "forecast_distillation", "task": "forecasting"}
    assert "teacher/" not in " ".join(told for _, told in questions(given))
    assert "teacher/2" in " ".join(told for _, told in questions({"method": "vanilla_distillation"}))


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


def test_answers_of_a_forecaster_are_kept_from_the_menu(keys, desk, capsys):
    moves = [DOWN * 6, ENTER, *TABLE, ENTER, *SMALLER, "linear", ENTER, "answers", ENTER]
    said = "fitted to the training rows in a second"
    with pytest.raises(RecipeError, match=said):
        keys(side_jobs.cache, *moves)
    moves = [DOWN * 6, ENTER, *TABLE, ENTER, *SMALLER, "big", ENTER, "answers", ENTER]
    assert keys(side_jobs.cache, *moves) == 0 and Path("answers").is_dir()
    assert "--cache answers" in capsys.readouterr().out
