"""Sequence regression through its doors: the facade, the command line, recipes, students begun with their teacher."""

import json
import warnings

import numpy as np
import pytest
import torch
from sequences import BIG, SMALL, arrays, model

from llm_finetuner import recipe_file
from llm_finetuner.chain import stages_of
from llm_finetuner.cli.app import main
from llm_finetuner.data import signals
from llm_finetuner.errors import DataError, FinetunerError, OrderError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.s4d import S4DModel
from llm_finetuner.models.s4d_transfer import transfer
from llm_finetuner.named_models import cut, load_student
from llm_finetuner.tasks.sequence_regression import SequenceRegression

QUICK = {"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}
SHAPE = ["input_dim=2", "model_dim=4", "state_dim=8", "num_layers=2", "gate=off", "bidirectional=true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("columns")
    x, y = arrays(24, labelled=None)
    np.save(folder / "inputs.npy", x.astype(np.complex64))
    np.save(folder / "targets.npy", y.astype(np.complex64))
    (folder / "meta.json").write_text(json.dumps({"rows": [2, 18]}))
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> str:
    """A run of a teacher with gates."""
    folder = str(tmp_path_factory.mktemp("runs") / "teacher")
    tuner = LLMFineTuner(
        "s4d", folder, task="sequence_regression", shape={"preset": "teacher", **BIG, "bidirectional": True}
    )
    tuner.load_model()
    tuner.fit(data, **QUICK)
    return folder


def test_the_facade_trains_scores_answers_and_compares(tmp_path, data, teacher):
    folder = tmp_path / "student"
    shape = {**SMALL, "gate": "off", "bidirectional": True}
    tuner = LLMFineTuner("s4d", folder, task="sequence_regression", shape=shape)
    tuner.load_model("regression_distillation")
    tuner.load_teacher_model(teacher)
    with pytest.warns(UserWarning, match="temperature=4.0 has no effect: answers are numbers"):
        tuner.setup_regression_distillation(temperature=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner.setup_regression_distillation()
    result = tuner.fit(data, **QUICK)
    assert {"mse", "output_mse", "hidden_nmse", "eval_nmse_db"} <= result.history[-1].keys()
    told = tuner.evaluate(data)
    assert told["nmse_db_low"] < told["nmse_db"] < told["nmse_db_high"] and "mse_to_teacher" in told
    assert "accuracy" not in told and 0 <= told["coherence"] <= 1
    x, y = arrays(24)
    said = tuner.predict(x.astype(np.complex64)[-2:])  # the test part
    errors = np.abs(np.stack(said) - y[-2:])[:, 2:18] ** 2
    assert told["nmse_db"] == pytest.approx(
        10 * np.log10(errors.sum() / (np.abs(y[-2:, 2:18]) ** 2).sum()), abs=1e-3
    )
    verdict = tuner.compare(data)
    roles = [line["role"] for line in verdict["models"]]
    assert roles == ["teacher", "simple", "baseline_steps", "distilled"]
    assert verdict["measure"]["key"] == "nmse_db" and (folder / "report.html").exists()
    assert recipe_file.load(folder / "recipe.yaml").data.source == data
    again = LLMFineTuner(str(folder), tmp_path / "again", task="sequence_regression")
    again.load_model()
    assert again.evaluate(data)["nmse_db"] == pytest.approx(told["nmse_db"], abs=1e-5)


def test_the_facade_begins_a_student_with_its_teacher_as_a_recipe_does(tmp_path, data, teacher):
    """To the bit; the comparison's student alone has other weights."""
    from dataclasses import replace

    from llm_finetuner.trainer import fit

    recipe = recipe_of(data, teacher, tmp_path / "recipe", ["--student", "s4d", "--init", "teacher"])
    shape = {**SMALL, "gate": "off"}
    student, train = replace(recipe.student, shape=shape), {**vars(recipe.train), "epochs": 2, "steps": None}
    recipe = replace(recipe, student=student, train=replace(recipe.train, **{**train, "batch_size": 4}))
    fit(recipe)
    for given in (teacher, S4DModel.from_pretrained(teacher)):
        tuner = LLMFineTuner(
            "s4d", tmp_path / "facade", task="sequence_regression", shape=shape, init="teacher"
        )
        with pytest.raises(OrderError, match="no live teacher is loaded"):
            tuner.load_model("regression_distillation")
        tuner.load_teacher_model(given)
        tuner.load_model("regression_distillation")
        assert tuner.model.config.bidirectional  # as its teacher
        tuner.setup_regression_distillation()
        plan = {
            "learning_rate": 1e-2,
            "gradient_accumulation_steps": recipe.train.gradient_accumulation_steps,
        }
        tuner.fit(data, epochs=2, batch_size=4, overwrite=True, **plan)
        want = S4DModel.from_pretrained(recipe.output)
        made = S4DModel.from_pretrained(tuner.recipe.output)
        for (name, got), weight in zip(made.named_parameters(), want.parameters(), strict=True):
            assert torch.equal(got, weight), name
    verdict = tuner.compare(data, seeds=2)
    assert [line["role"] for line in verdict["models"]].count("baseline_steps") == 1
    assert len(verdict["seeds"]["distilled"]) == 2
    with pytest.raises(RecipeError, match="init=teacher is for a student s4d"):
        LLMFineTuner("patch", tmp_path, task="forecasting", init="teacher")


def test_weights_of_a_run_go_into_a_model_made_of_a_configuration(tmp_path, data, teacher):
    """As an integration does: sizes by hand and load_state_dict; what 1 is in the data's units comes along."""
    from safetensors.torch import load_file

    from llm_finetuner.models.s4d_configs import get_model_from_configs

    whole = S4DModel.from_pretrained(teacher).eval()
    config = {"name": "s4_ssm", **BIG, "bidirectional": True, "use_selectivity": True, "complex_valued": True}
    x = torch.from_numpy(arrays(3)[0].astype(np.complex64))
    torch.save(whole.state_dict(), tmp_path / "final_student_model.pth")
    for weights in (
        load_file(f"{teacher}/model.safetensors"),
        torch.load(tmp_path / "final_student_model.pth"),
    ):
        rebuilt = get_model_from_configs(**config)
        assert rebuilt.config.input_scale is None
        rebuilt.load_state_dict(weights)
        assert rebuilt.config.input_scale == pytest.approx(whole.config.input_scale)
        with torch.no_grad():
            assert torch.equal(rebuilt.eval()(x), whole(x))
    other = get_model_from_configs(**{**config, "use_selectivity": False})
    with pytest.raises(RuntimeError, match="gate"):
        other.load_state_dict(weights)


def test_a_folder_written_before_weights_held_the_scales_is_read_with_those_of_its_configuration(
    tmp_path, teacher
):
    from safetensors.torch import load_file, save_file

    whole = S4DModel.from_pretrained(teacher).eval()
    whole.save_pretrained(tmp_path)
    kept = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "_scale" not in k}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    read = S4DModel.from_pretrained(tmp_path)
    assert torch.equal(read.input_scale, whole.input_scale) and not torch.all(read.input_scale == 1)
    assert torch.equal(read.output_scale, whole.output_scale)


def test_the_facade_refuses_what_it_cannot_do(tmp_path, data):
    tuner = LLMFineTuner("s4d", tmp_path, task="sequence_regression", shape={**SMALL, "bidirectional": True})
    tuner.load_model()
    for action, said in (
        (lambda: tuner.prepare_dataset(data), "reads sequences of numbers"),
        (lambda: tuner.generate("a"), "reads sequences of numbers"),
        (lambda: tuner.forecast(data), "forecasts no series"),
        (lambda: tuner.evaluate(data, level=[80]), "intervals of forecasts"),
        (lambda: tuner.fit(data, eval_dataset=data), "parted before"),
        (lambda: tuner.fit(tuner.load_dataset_from_source(data), eval_fraction=0.2), "parted before"),
        (lambda: tuner.load_model("lora"), "full tuning"),
    ):  # fmt: skip
        with pytest.raises(FinetunerError, match=said):
            action()
            tuner.fit(data, **QUICK)
    with pytest.raises(DataError, match="there is no"):
        LLMFineTuner("s4d", tmp_path, task="sequence_regression").load_dataset_from_source("nowhere")


def test_a_run_goes_on_where_it_was_stopped(tmp_path, data, teacher):
    """Projections and the groups of state-space parameters come back from a checkpoint."""
    from dataclasses import replace

    from llm_finetuner.trainer import fit

    words = ["--student", "s4d", "--shape", *SHAPE, "model_dim=3"]
    whole = recipe_of(data, teacher, tmp_path / "whole", words)
    straight = fit(whole).history
    half = replace(whole, output=str(tmp_path / "half"))

    def stop(kind, record):
        if kind == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(replace(half, train=replace(half.train, save_every=3)), on_event=stop)
    resumed = fit(replace(half, train=replace(half.train, save_every=3)), resume=True).history
    assert [r["loss"] for r in resumed] == [r["loss"] for r in straight][-len(resumed) :]


def recipe_of(data, teacher, folder, words):
    from llm_finetuner.cli.parser import parser
    from llm_finetuner.cli.settings import build, paths_in

    line = [
        "distill",
        "--task",
        "sequence_regression",
        "--data",
        data,
        "--teacher",
        teacher,
        "--output",
        str(folder),
    ]
    given = vars(parser().parse_args([*line, *words, "--steps", "8", "--learning-rate", "1e-2"]))
    return build("regression_distillation", paths_in(given, True, "regression_distillation"), [])


def test_a_student_begins_with_what_matters_of_its_teacher(tmp_path, data, teacher):
    recipe = recipe_of(data, teacher, tmp_path, ["--student", "s4d", "--init", "teacher", "--shape", *SHAPE])
    train = signals.read(data, 0.1).part("train")
    made = cut(load_student(recipe, "cpu"), recipe, train)
    whole = S4DModel.from_pretrained(teacher)
    want = model(double=False, gate="off")
    x = torch.from_numpy(np.stack([train[n]["inputs"] for n in range(16)]))
    modes = want.config.state_dim // 2  # more than the 2 samples in front that do not count
    transfer(whole, want, calibration=x.to(torch.complex64), lags=modes)
    for (name, got), (_, weight) in zip(made.named_parameters(), want.named_parameters(), strict=True):
        assert torch.equal(got, weight), name
    assert torch.equal(made.input_scale, whole.input_scale) and not torch.all(made.input_scale == 1)


def test_the_command_line_to_its_end(tmp_path, data, teacher, capsys):
    run = str(tmp_path / "run")
    line = [
        "distill",
        "--task",
        "sequence_regression",
        "--student",
        "s4d",
        "--init",
        "teacher",
        "--shape",
        *SHAPE,
    ]
    line += ["--teacher", teacher, "--data", data, "--output", run, "--steps", "4", "--json"]
    assert main(line) == 0
    said = json.loads(capsys.readouterr().out)
    lines = {m["role"]: m for m in said["verdict"]["models"]}
    assert lines["baseline_steps"]["parameters"] == lines["distilled"]["parameters"]
    assert main(["evaluate", "--model", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nmse_db"] == pytest.approx(lines["distilled"]["nmse_db"]) and found["rows"] == 2
    assert main(["evaluate", "--model", run, "--data", data, "--task", "sequence_regression"]) == 0
    assert "NMSE" in capsys.readouterr().out
    assert main(["preview", "--task", "sequence_regression", "--data", data]) == 0
    assert "20 train, 2 validation, 2 test rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--student", "patch"], "patch forecasts series"),
        (["--student", "s4d", "--max-length", "8"], "data.max_length is not for sequence_regression"),
        (["--student", "s4d", "--shape", "width=3"], "unknown option of s4d 'width'"),
        (["--student", "s4d", "--teacher", "s4d"], "weights that nobody has trained"),
        (["--student", "s4d", "--shape", "gate=wide"], "gate must be one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, data, teacher, capsys, words, said):
    line = ["distill", "--task", "sequence_regression", "--data", data, "--output", str(tmp_path / "run")]
    assert main([*line, "--teacher", teacher, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_of_sequences_is_for_no_other_task(tmp_path, data, capsys):
    for task in ("forecasting", "causal_lm"):
        assert main(["finetune", "--task", task, "--student", "s4d", "--data", data]) != 0
        assert "sequence" in capsys.readouterr().err


def test_a_recipe_is_begun_with_by_distill_and_changed_by_words_and_flags(tmp_path, capsys, monkeypatch):
    words = (
        "student.model_dim=40 student.state_dim=320 student.num_layers=5 temperature=5.0 alpha=0.25 beta=0.6"
    )
    line = [
        "distill",
        "--config",
        "recipes/sarssm_compressed.yaml",
        *words.split(),
        "train.epochs=300",
        "--gamma",
        "0.1",
    ]
    monkeypatch.chdir(recipe_folder())
    assert main([*line, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    shape = {name: value for name, value in said["student"]["shape"].items() if value is not None}
    assert shape == {"preset": "compressed", "model_dim": 40, "state_dim": 320, "num_layers": 5}
    assert {k: v for k, v in said["options"].items() if v is not None} == {
        "alpha": 0.25, "beta": 0.6, "gamma": 0.1, "feature_layers": "uniform", "temperature": 5.0,
    }  # fmt: skip
    assert said["train"]["epochs"] == 300 and said["student"]["init"] == "auto"


def recipe_folder():
    from pathlib import Path

    return Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["teacher", "standard", "compressed", "tiny"])
def test_recipes_are_of_the_presets(name):
    recipe = recipe_file.load(recipe_folder() / "recipes" / f"sarssm_{name}.yaml")
    assert not stages_of(recipe) and recipe.student.shape["preset"] == name
    assert recipe.inherits == (name != "teacher")


def test_only_a_student_that_is_built_begins_so(tmp_path, data, teacher):
    with pytest.raises(RecipeError, match="no teacher is named"):
        recipe = recipe_file.from_dict(
            {"task": "sequence_regression", "student": {"name": "s4d", "init": "teacher"}}
        )
        load_student(recipe, "cpu")


def test_what_learns_nothing_stands_beside_the_models(tmp_path):
    """Zeros have 0 dB and retain nothing; filters are those of the simulator."""
    from llm_finetuner.benchmark.focus import focused
    from llm_finetuner.benchmark.quality import evaluate_all
    from llm_finetuner.data import sar, sar_files
    from llm_finetuner.data.sar_processors import PROCESSORS
    from llm_finetuner.data.sar_scenes import Scene

    sar_files.write(tmp_path, sar.AIRBORNE, Scene(), {"train": 16, "validation": 2, "test": 12}, 0)
    task, found = SequenceRegression(), signals.read(tmp_path, 0.1)
    models = dict(task.simple_models(found.part("train")))
    scores = evaluate_all(task, models, found.part("test"))
    value = {name: task.measure.value(quality) for name, quality in scores.items()}
    assert value["zeros"] == 0 and task.measure.retained(value["zeros"], -10.0) == 0
    radar, test = sar_files.read_columns(tmp_path, "test")
    for name in ("matched filter", "matched filter, pulses blanked"):
        want = focused(PROCESSORS[name](radar, test)[:, test.rows], test.truth[:, test.rows, 0])
        assert value[name] == pytest.approx(want.nmse_db, abs=1e-3)
        assert scores[name].figures["psnr"] == pytest.approx(want.psnr, abs=1e-3)
        assert scores[name].figures["coherence"] == pytest.approx(want.coherence, abs=1e-4)
    assert -1 < value["unfocused"] < 0.1
    assert list(dict(task.simple_models(signals.read(arrays(), 0.1).part("train")))) == ["zeros"]
