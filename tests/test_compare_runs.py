"""Several runs in one comparison: a line each, on the same rows, and what keeps runs out of one table."""

import json

import numpy as np
import pytest
from sequences import SMALL, arrays

from llm_finetuner.cli.app import main
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import OrderError
from llm_finetuner.finetuner import LLMFineTuner


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two sizes on the same columns, and one on others."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("columns", 0), ("others", 1)):
        x, y = arrays(24, seed=seed)
        y[-1] = np.nan  # a row of the test part without targets
        (root / name).mkdir()
        np.save(root / name / "inputs.npy", x.astype(np.complex64))
        np.save(root / name / "targets.npy", y.astype(np.complex64))
    for name, data, width in (("small", "columns", 4), ("large", "columns", 6), ("elsewhere", "others", 4)):
        shape = {**SMALL, "model_dim": width, "gate": "off", "bidirectional": True}
        tuner = LLMFineTuner("s4d", root / name, task="sequence_regression", shape=shape)
        tuner.load_model()
        tuner.fit(str(root / data), epochs=1, batch_size=4, gradient_accumulation_steps=1)
    return root


def test_every_run_has_its_line(runs, capsys):
    alone = {name: compare_run(runs / name)["models"][-1] for name in ("small", "large")}
    assert main(["compare", str(runs / "small"), str(runs / "large"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    lines = {line["name"]: line for line in said["models"]}
    for name, line in alone.items():
        assert lines[name]["nmse_db"] == line["nmse_db"] and lines[name]["parameters"] == line["parameters"]
    assert {finding["name"] for finding in said["findings"]} == {"small", "large"}
    page = (runs / "small" / "report.md").read_text(encoding="utf-8")
    assert "small" in page and "large" in page


def test_runs_on_other_rows_are_kept_apart(runs, capsys):
    with pytest.raises(OrderError, match="compared on different rows"):
        compare_run(runs / "small", others=[runs / "elsewhere"])
    assert main(["compare", str(runs / "small"), str(runs / "nothing")]) == 1
    assert "nothing holds no run" in capsys.readouterr().err


def test_runs_of_one_name_are_called_by_their_paths(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "large", tmp_path / "small")
    said = compare_run(runs / "small", others=[tmp_path / "small"])
    assert {str(runs / "small"), str(tmp_path / "small")} <= {line["name"] for line in said["models"]}


def test_a_student_alone_is_the_rival_of_its_own_run_only(runs, tmp_path):
    """The other run's student has another size: it is not "the same student on the truth alone"."""
    for name, width in (("first", 4), ("second", 6)):
        shape = {**SMALL, "model_dim": width, "gate": "off", "bidirectional": True}
        tuner = LLMFineTuner("s4d", tmp_path / name, task="sequence_regression", shape=shape)
        tuner.load_model("regression_distillation")
        tuner.load_teacher_model(str(runs / "large"))
        tuner.setup_regression_distillation()
        tuner.fit(str(runs / "columns"), epochs=1, batch_size=4, gradient_accumulation_steps=1)
    first, second = compare_run(tmp_path / "first", others=[tmp_path / "second"])["findings"]
    assert (first["name"], second["name"]) == ("first", "second")
    assert first["paid_at_equal_steps"] and "the same student on the truth alone" in first["sentence"]
    assert second["paid_at_equal_steps"] is None and "the same student" not in second["sentence"]
