"""Sequences that are odd work; those that are wrong are told of, with the place and what to do, at every door."""

import json

import numpy as np
import pytest
import torch
from sequences import SMALL, arrays

from llm_finetuner.cli.app import main
from llm_finetuner.data import signals
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.build_s4d import s4d

ONCE = {"epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "overwrite": True}
X, Y = (array.astype(np.complex64) for array in arrays(12, 21))  # an odd length


def tuner(folder, **shape) -> LLMFineTuner:
    made = LLMFineTuner(
        "s4d",
        folder,
        task="sequence_regression",
        shape={**SMALL, "gate": "off", "bidirectional": True, **shape},
    )
    made.load_model()
    return made


def parts(folder, train, test) -> str:
    for part, (inputs, targets) in {"train": train, "test": test}.items():
        (folder / part).mkdir(parents=True)
        np.save(folder / part / "inputs.npy", inputs)
        if targets is not None:
            np.save(folder / part / "targets.npy", targets)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> LLMFineTuner:
    made = tuner(tmp_path_factory.mktemp("run"))
    made.fit((X, Y), **ONCE)
    return made


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X[:1], Y[:1]),
        (X[:2], Y[:2]),
        (X[:, :1], Y[:, :1]),
        (X.astype(complex), Y.astype(complex)),
        (X * np.float32(1e30), Y),  # whose squares are beyond float32
        (X * np.array([1, 0], np.complex64), Y),
        (torch.from_numpy(X), torch.from_numpy(Y)),
    ],
    ids=["a row", "two rows", "a sample a row", "complex128", "huge", "a silent channel", "tensors"],
)
def test_odd_data_are_learned(tmp_path, x, y):
    assert np.isfinite(tuner(tmp_path).fit((x, y), **ONCE).history[-1]["loss"])


def test_the_share_to_select_and_to_test_on_is_the_one_asked_for(tmp_path):
    made = tuner(tmp_path)
    made.fit((X, Y), eval_fraction=0.25, **ONCE)
    assert made._parts.held_out.numbers.size == 3 and len(made._parts.train) == 6
    assert made.recipe.data.eval_fraction == 0.25
    said = np.stack(made.predict(X[9:]))
    want = 10 * np.log10((np.abs(said - Y[9:]) ** 2).sum() / (np.abs(Y[9:]) ** 2).sum())
    assert made.evaluate((X, Y))["nmse_db"] == pytest.approx(want, abs=1e-3)


def test_numbers_of_other_types_are_learned_as_what_they_say(tmp_path):
    whole = ((9 * X.real).astype(int), (9 * Y.real).astype(int))
    floats = tuple(array.astype(np.float16) for array in whole)
    losses = [
        tuner(tmp_path, complex_valued=False).fit(data, **ONCE).history[-1]["loss"]
        for data in (whole, floats)
    ]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("shape", [(1, 21, 2), (2, 7, 2), (3, 1, 2)])
def test_rows_of_any_length_and_number_are_answered(trained, shape):
    said = trained.predict(X[: shape[0], : shape[1]])
    assert np.stack(said).shape == (*shape[:2], 1)
    listed = trained.predict(X[: shape[0], : shape[1]].tolist())
    assert np.array_equal(np.stack(said), np.stack(listed))


BROKEN = X[:2].copy()
BROKEN[1, 3, 1] = np.nan


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (BROKEN, "NaN or infinity, first in sequence 1, sample 3, channel 1"),
        (X[:2, :0], r"the input is empty: \[2, 0, 2\]"),
        (X[:2, :, :1], r"must be \[batch, length, 2\], got \[2, 21, 1\]"),
        (X[0, :, 0], r"the sequences are \[21\]"),
        (np.array([["a", "b"]]), "are <U1, not numbers"),
        ("a path", "not numbers"),
        ([None], "are object, not numbers"),
        ([X[0], X[1, :5]], "unequal lengths"),
        ([[[1, 2], [3]]], "sequence 0 are no array"),
        (5, "predict reads a list, and this is 5"),
        (None, "predict reads a list"),
    ],
    ids=[
        "nan",
        "empty",
        "channels",
        "one axis",
        "texts",
        "a path",
        "nothing",
        "unequal",
        "ragged",
        "5",
        "none",
    ],
)
def test_what_cannot_be_answered_is_told(trained, wrong, said):
    with pytest.raises(DataError, match=said):
        trained.predict(wrong)
    assert trained.predict([]) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((X, Y.real), "a target is 1 real numbers, an answer of the model 2"),
        ((X > 0, Y), "are bool, not numbers"),
        ((X[None], Y[None]), r"are \[1, 12, 21, 2\]"),
        ((np.where(np.arange(12)[:, None, None] == 4, np.inf, X), Y), "in row 4, sample 0, channel 0"),
        ((X, 0 * Y), "zero everywhere"),
        ((X, Y[:5]), "inputs are 12 rows of 21 samples, targets 5 of 21"),
        ((X[:0], Y[:0]), "inputs are empty"),
        ((X, None), "no row of the train part has targets"),
    ],
    ids=["real targets", "bool", "four axes", "infinite", "silence", "fewer targets", "empty", "no targets"],
)
def test_what_cannot_be_learned_is_told(tmp_path, data, said):
    with pytest.raises(DataError, match=said):
        tuner(tmp_path).fit(data, **ONCE)


def test_parts_with_and_without_targets(tmp_path):
    """A test part without any cannot score; one with them scores a student that heard the teacher alone."""
    bare = parts(tmp_path / "bare", (X, Y), (X, None))
    teacher = tuner(tmp_path / "teacher")
    teacher.fit(bare, **ONCE)
    with pytest.raises(DataError, match="no row has targets to score against"):
        teacher.evaluate(bare)
    heard = parts(tmp_path / "heard", (X, None), (X, Y))
    student = tuner(tmp_path / "student")
    student.load_teacher_model(str(tmp_path / "teacher"))
    student.load_model("regression_distillation")
    student.setup_regression_distillation(alpha=0.0, beta=1.0, gamma=0.0)
    assert np.isfinite(student.fit(heard, **ONCE).history[-1]["output_mse"])
    found, test = student.evaluate(heard), signals.read(heard, 0).part("test")
    said = np.stack(student.predict(test.inputs))
    assert found["nmse_db"] == pytest.approx(
        10 * np.log10((np.abs(said - Y) ** 2).sum() / (np.abs(Y) ** 2).sum()), abs=1e-3
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,y\n", "a.csv holds no line of numbers"),
        ("", "cannot read"),
        ("x,y\n1,\n2,3\n", "targets hold nan"),
    ],
)
def test_a_table_that_holds_nothing_is_told(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        signals.read(tmp_path / "a.csv", 0.1)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("bidirectional=yes", "bidirectional must be true or false, got 'yes'"),
        ("complex_valued=1", "complex_valued must be true or false, got 1"),
        ("model_dim=4.5", "model_dim must be a whole number of at least 1, got 4.5"),
        ("model_dim=wide", "model_dim must be a whole number of at least 1, got 'wide'"),
        ("gate=yes", "gate must be one of channel, layer, shared, off; got 'yes'"),
        ("dt_min=small", "dt_min must be a number above 0, got 'small'"),
        ("activation=7", "activation must be one of"),
        ("delay=true", "delay must be a whole number of at least 0, got True"),
        ("preset=7", "unknown preset"),
    ],
)
def test_a_shape_that_means_nothing_is_told_at_the_command_line(tmp_path, capsys, word, said):
    np.savez(tmp_path / "data.npz", inputs=X, targets=Y)
    line = [
        "finetune",
        "--method",
        "full",
        "--task",
        "sequence_regression",
        "--student",
        "s4d",
        "--shape",
        word,
    ]
    assert main([*line, "--data", str(tmp_path / "data.npz"), "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "shape",
    [{"preset": ["tiny"]}, {"gate": ["off"]}, {"activation": {"a": 1}}, {"bidirectional": "yes"}],
    ids=str,
)
def test_lists_and_mappings_from_a_recipe_are_told_too(shape):
    with pytest.raises(RecipeError, match=json.dumps(next(iter(shape))).strip('"')):
        s4d(**shape)


def test_parts_of_other_channels_are_told(tmp_path):
    wide = np.concatenate([X, X[..., :1]], 2)
    for name, test, said in (
        ("inputs", (wide, Y), "channels of inputs: 2 in train, 3 in test"),
        ("targets", (X, np.repeat(Y, 2, 2)), "channels of targets: 1 in train, 2 in test"),
    ):
        with pytest.raises(DataError, match=said):
            signals.read(parts(tmp_path / name, (X, Y), test), 0)
