"""Labels at the command line: an adapter that keeps them, what they weigh, and what numbers are called."""
# ruff: noqa: F811, I001  fixtures are arguments

import json
from pathlib import Path

import pytest
from test_cli_tasks import FULL, desk, models, preview  # noqa: F401  fixtures

from llm_finetuner.cli.app import main


def test_an_adapter_for_a_classifier_is_one_command(desk, capsys):
    """--task classification --method lora: with weights that are shown, and a folder that keeps the labels."""
    words = [
        *FULL,
        "--task",
        "classification",
        "--method",
        "lora",
        "--class-weights",
        "balanced",
        "--epochs",
        "1",
    ]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "class weights: neg" in said and "pos" in said
    kept = json.loads(Path("out/adapter_labels.json").read_text())
    assert kept == {"labels": ["neg", "pos"], "problem_type": "single_label_classification"}


def test_what_labels_weigh_is_shown_before_a_run(desk, capsys):
    words = ["--task", "classification", "--student", "small", "--data", "rows.csv"]
    seen = preview(capsys, *words, "--class-weights", "balanced")
    assert seen["class_weights"] == pytest.approx({"neg": 18 / 12, "pos": 18 / 24})
    assert preview(capsys, *words, "--class-weights", "neg=3")["class_weights"] == {"neg": 3.0, "pos": 1.0}
    assert "class_weights" not in preview(capsys, *words)
    tags = ["--task", "token_classification", "--student", "small", "--data", "tags.jsonl"]
    seen = preview(capsys, *tags, "--class-weights", "balanced")
    assert seen["labels"] == {"O": 8, "B": 8} and seen["class_weights"] == {"O": 1.0, "B": 1.0}
    assert main(["preview", *words, "--class-weights", "god=3"]) == 2
    assert "data.class_weights names 'god', and the labels are neg, pos" in capsys.readouterr().err


def test_numbers_get_their_names_at_the_command_line(desk, capsys):
    """Beside a model whose labels have names, numbers are refused with the setting that names them."""
    Path("numbers.csv").write_text("text,label\ngood film,1\nbad film,0\n")
    words = ["preview", "--task", "classification", "--student", "big", "--data", "numbers.csv"]
    assert main(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "label '1' in column 'label' is not known; known are 'pos', 'neg'" in said and "--label-names" in said
    )
    seen = preview(capsys, *words[1:], "--label-names", "neg", "pos")
    assert seen["labels"] == {"pos": 1, "neg": 1} and [row[-1] for row in seen["rows"]][0] == ["pos", True]
