"""Sequences in the menu: questions, the files as they are read, mistakes at the prompt, a run to its end."""

import json
from pathlib import Path

import numpy as np
import pytest
from menu_keys import CTRL_B, CTRL_U, DOWN, ENTER, answers_to, keys  # noqa: F401  a fixture
from sequences import arrays
from test_cli_app import recipe_of

from llm_finetuner import recipe_file
from llm_finetuner.cli import confirm, jobs, side_jobs, signal_questions, wizard
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.questions import further
from llm_finetuner.cli.settings import OF_ONE_TASK, build
from llm_finetuner.cli.signal_fit import KIND
from llm_finetuner.cli.words import words_of
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.s4d import S4DConfig
from llm_finetuner.registry import MENU

SIZES = {"model_dim": 4, "state_dim": 8, "num_layers": 2}
TYPED = " ".join(f"{name}={value}" for name, value in SIZES.items())
DATA = ["rows.npz", ENTER, ENTER]  # the file, and yes to the preview
TASK = [DOWN * 7, ENTER]
LAST = ENTER * 5  # epochs, batch, rate, no other settings, output


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with rows.npz and the run of a teacher."""
    folder = tmp_path_factory.mktemp("sequences")
    x, y = arrays(24)
    np.savez(folder / "rows.npz", inputs=x.astype(np.complex64), targets=y.astype(np.complex64))
    shape = {"preset": "teacher", **SIZES, "bidirectional": True}
    tuner = LLMFineTuner("s4d", folder / "big", task="sequence_regression", shape=shape)
    tuner.load_model()
    tuner.fit(str(folder / "rows.npz"), epochs=1, batch_size=8, gradient_accumulation_steps=1)
    return folder


@pytest.fixture
def desk(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.npz", "big"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def test_the_menu_asks_for_a_model_of_sequences(keys, desk):  # noqa: F811
    moves = [*TASK, *DATA, ENTER, CTRL_U, f"preset=teacher {TYPED} delay=3", ENTER, "2", ENTER, ENTER * 4]
    recipe = keys(answers_to("full"), *moves)
    named = {"task": "sequence_regression", "student.name": "s4d", "data.source": "rows.npz"}
    rest = {"output": "outputs/s4d-full", "train.epochs": 2.0}
    assert recipe == build(
        "full", {**named, **rest, "student.shape": {"preset": "teacher", **SIZES, "delay": 3}}
    )
    assert recipe.train.batch_size == 16 and recipe_of(words_of(recipe)) == recipe


def test_a_student_begins_with_its_teacher_and_looks_ahead_as_it_does(keys, desk, capsys):  # noqa: F811
    """A teacher that nobody trained and a size beyond the teacher's are refused at their questions."""
    taught = [
        *DATA,
        ENTER,
        ENTER,
        "s4d",
        ENTER,
        CTRL_U,
        "big",
        ENTER,
        ENTER,
    ]  # the student, one model, its name, init
    sized = [CTRL_U, "bidirectional=yes", ENTER, CTRL_U, f"preset=tiny {TYPED} bidirectional=true", ENTER]
    weighed = ["0.4", ENTER, "0.6", ENTER, "0", ENTER]
    recipe = keys(answers_to("regression_distillation"), *taught, *sized, *weighed, LAST)
    assert (recipe.student.init, recipe.teacher.name) == ("teacher", "big")
    assert [recipe.options[name] for name in ("alpha", "beta", "gamma")] == [0.4, 0.6, 0.0]
    assert recipe_of(words_of(recipe)) == recipe
    assert confirm.confirm_screen(recipe, Screen())
    said = capsys.readouterr().out
    assert (
        "20 train, 2 validation, 2 test rows" in said
        and "over 20 rows" in said
        and "16 x 1 rows a step" in said
    )
    assert "tokenizers" not in said and "tokens" not in said
    usual = keys(
        answers_to("regression_distillation"), *DATA, ENTER, ENTER, "big", ENTER, DOWN, ENTER, ENTER * 4, LAST
    )
    assert usual.student.init == "seed"
    given = {name: value for name, value in usual.student.shape.items() if value is not None}
    assert given == {"preset": "compressed", "bidirectional": True}


def test_a_shape_is_offered_as_the_rows_ask_for(keys, desk):  # noqa: F811
    x, y = arrays(24, complex_valued=False)
    np.savez("real.npz", inputs=np.concatenate([x, x[..., :1]], 2), targets=np.concatenate([y, y], 2))
    real = keys(answers_to("full"), *TASK, "real.npz", ENTER, ENTER, ENTER, ENTER, LAST)
    given = {name: value for name, value in real.student.shape.items() if value is not None}
    want = {"input_dim": 3, "output_dim": 2, "complex_valued": False}
    assert given == {"preset": "teacher", **want, "bidirectional": True}
    usual = S4DConfig()
    assert signal_questions.signal_sight.USUAL == {name: getattr(usual, name) for name in want}
    assert S4DConfig.model_type == KIND


def test_files_that_cannot_be_read_are_told_and_others_taken(keys, desk, capsys):  # noqa: F811
    x, y = arrays(6)
    np.savez("bad.npz", inputs=np.where(np.arange(20)[:, None] == 3, np.nan, x), targets=y)
    other = ["nowhere", ENTER, CTRL_U, "bad.npz", ENTER, ENTER]  # no such file; what is wrong: other data
    recipe = keys(answers_to("full"), *TASK, *other, CTRL_U, *DATA, ENTER, CTRL_U, TYPED, ENTER, LAST)
    assert recipe.data.source == "rows.npz" and "row 0, sample 3, channel 0" in capsys.readouterr().out


def test_settings_of_texts_are_not_offered():
    given = {"method": "regression_distillation", "student.name": "s4d", "data.source": "d.npz"}
    paths = {setting.path for setting in further(given)}
    assert {"options.feature_layers", "data.eval_samples", "train.seed", "train.watch_every"} <= paths
    assert not paths & {"data.max_length", "train.packing", "options.temperature", "student.load_in_4bit"}
    assert not paths & {"options.alpha", "student.init", "student.shape"}
    assert not [path for path in paths if path.startswith("data.series.")]


def test_a_run_to_its_end(keys, desk, capsys):  # noqa: F811
    taught = [*DATA, ENTER, ENTER, CTRL_U, "big", ENTER, ENTER, CTRL_U, f"{TYPED} bidirectional=true", ENTER]
    moves = [*taught, ENTER * 3, "1", ENTER, ENTER * 3, CTRL_U, "out", ENTER]
    assert keys(lambda: jobs.distil_or_finetune("regression_distillation"), *moves, "2", ENTER, ENTER) == 0
    said = capsys.readouterr().out
    assert "--seeds 2" in said and "--init teacher" in said and "NMSE" in said
    verdict = json.loads(Path("out/metrics.json").read_text())
    assert len(verdict["seeds"]["distilled"]) == 2 and verdict["signals"]["rows"] == 2
    assert recipe_file.load("out/recipe.yaml").student.init == "teacher"


def test_both_distillations_of_numbers_stand_on_one_line(keys, desk, monkeypatch):  # noqa: F811
    """Of the first screen, which has 24 lines; back from the second question is back to the first."""
    chosen = []
    monkeypatch.setattr(jobs, "distil_or_finetune", lambda method: chosen.append(method) or 0)
    assert len(wizard.first_screen(1).choices) < 24
    assert keys(wizard.menu, "13", ENTER, ENTER) == 0
    assert keys(wizard.menu, "13", ENTER, CTRL_B, "13", ENTER, DOWN, ENTER) == 0
    assert chosen == ["forecast_distillation", "regression_distillation"]
    assert {MENU[number][0] for number in wizard.OF_NUMBERS} == set(OF_ONE_TASK)


def test_answers_are_kept_from_the_menu(keys, desk, capsys):  # noqa: F811
    assert keys(side_jobs.cache, *TASK, *DATA, ENTER, CTRL_U, "big", ENTER, CTRL_U, "answers", ENTER) == 0
    assert "--cache answers" in capsys.readouterr().out and Path("answers").is_dir()
