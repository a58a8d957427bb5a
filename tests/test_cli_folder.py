"""What a run may write to, through the command line: folders of others stay byte for byte, ours can be moved about."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from llm_finetuner.cli.app import main
from llm_finetuner.errors import TrainingError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Data, Model, Recipe, Teacher
from llm_finetuner.recipe_file import load
from llm_finetuner.run import is_run, with_whole_paths

ONE_STEP = [
    "--steps", "1", "--batch-size", "4", "--gradient-accumulation-steps", "1", "--num-samples", "12", "--no-compare",
]  # fmt: skip


@pytest.fixture
def desk(student_folder, teacher_folder, data_file, tmp_path, monkeypatch) -> Path:
    """The current folder: small, big and data/rows.jsonl in it."""
    shutil.copytree(student_folder, tmp_path / "small")
    shutil.copytree(teacher_folder, tmp_path / "big")
    (tmp_path / "data").mkdir()
    shutil.copy(data_file, tmp_path / "data" / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distil(*words: str) -> int:
    models = ["--student", "./small", "--teacher", "./big", "--data", "data/rows.jsonl"]
    return main(["distill", *models, *ONE_STEP, *words])


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- folders of others


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "output, said",
    [
        ("small", "is the folder of the student ./small"),
        ("./big/", "is the folder of the teacher ./big"),
        (".", "holds the student ./small"),
        ("data", "is the folder of the data data/rows.jsonl"),
        ("notes", "no run of ours"),
        ("notes/readme.md", "is a file"),
        ("notes/readme.md/below", "cannot be written"),
        ("/proc/nothing", "cannot be written"),
    ],
)
def test_they_are_refused_before_anything_is_written(desk, capsys, output, said, overwrite):
    (desk / "notes").mkdir()
    (desk / "notes" / "readme.md").write_text("mine")
    before = digests(desk)
    assert distil("--output", output, *overwrite) == 2
    err = capsys.readouterr().err
    assert said in err and "--overwrite" not in err and "resume" not in err
    assert len(err.splitlines()) == 2 and digests(desk) == before


def test_a_run_of_ours_that_holds_a_model_of_the_next_is_spared_too(desk, capsys):
    assert distil("--output", "first") == 0
    before = digests(desk)
    assert distil("--student", "first", "--output", "first", "--overwrite") == 2
    assert "is the folder of the student" in capsys.readouterr().err and digests(desk) == before


def test_a_run_inside_the_folder_that_is_read_would_read_its_own_log(desk, capsys):
    assert distil("--data", "data", "--output", "data/run") == 2
    assert "its own log would be read" in capsys.readouterr().err and not (desk / "data" / "run").exists()


def test_an_adapter_comes_without_a_model_card(desk, capsys):
    """peft writes one over the README.md that stands there."""
    words = [
        "finetune",
        "--method",
        "lora",
        "--student",
        "small",
        "--data",
        "data/rows.jsonl",
        *ONE_STEP[:-1],
    ]
    assert main([*words, "--output", "run"]) == 0
    assert (desk / "run" / "adapter_model.safetensors").exists() and not (desk / "run" / "README.md").exists()
    (desk / "run" / "README.md").write_text("my notes on this run")
    assert main([*words, "--output", "run", "--overwrite"]) == 0
    assert (desk / "run" / "README.md").read_text() == "my notes on this run"
    assert "metadata" not in "".join(capsys.readouterr())
    assert not [path for path in (desk / "run").iterdir() if path.is_dir() and path.name != "checkpoints"]


# ---- runs of ours


def test_only_a_run_is_offered_to_be_resumed_or_replaced(desk, capsys):
    assert distil("--output", "./run") == 0 and is_run("run")
    assert "saved in ./run\n" in capsys.readouterr().out
    assert distil("--output", "./run") == 2
    err = capsys.readouterr().err
    assert "./run already holds a run" in err and "resume ./run;" in err and "--overwrite" in err
    assert distil("--output", "./run", "--overwrite") == 0


def test_a_folder_that_is_empty_but_for_what_does_not_matter_is_taken(desk):
    (desk / "run").mkdir()
    (desk / "run" / ".gitkeep").touch()
    (desk / "run" / "bad_rows.jsonl").touch()  # of a run that stopped before its first step
    assert distil("--output", "run") == 0


def test_a_refused_folder_is_not_left_behind(desk):
    assert distil("--output", "a/b/c", "--data", "data/missing.jsonl") == 1
    assert not (desk / "a" / "b" / "c" / "recipe.yaml").exists()
    assert distil("--output", "deep/er", "--student", "deep") == 1
    with pytest.raises(FileNotFoundError):
        os.stat(desk / "deep" / "er" / "log.jsonl")


@pytest.mark.parametrize("output", ["/proc/nothing", "notes/below"])
def test_the_engine_says_so_too(desk, output):
    (desk / "notes").write_text("a file")
    finetuner = LLMFineTuner("small", output, device="cpu")
    finetuner.load_model(method="full")
    rows = finetuner.load_dataset_from_source("data/rows.jsonl", num_samples=4)
    with pytest.raises(TrainingError, match="cannot write into") as raised:
        finetuner.train(rows, steps=1)
    assert "another output" in raised.value.hint


# ---- from anywhere


def test_a_run_is_compared_and_resumed_from_another_folder(desk, capsys, monkeypatch):
    assert distil("--output", "run", "--save-every", "1", "--eval-data", "data/rows.jsonl") == 0
    kept = load("run/recipe.yaml")
    assert kept.student.name == str(desk / "small") and kept.teacher.name == str(desk / "big")
    assert kept.data.source == kept.data.eval_source == str(desk / "data" / "rows.jsonl")
    (desk / "elsewhere").mkdir()
    monkeypatch.chdir(desk / "elsewhere")
    assert main(["compare", "../run", "--json"]) == 0
    said, err = capsys.readouterr()
    assert "report: ../run/report.html" in err and json.loads(said[said.index("{\n") :])["models"]
    assert main(["resume", "../run", "--no-compare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["steps"] == 1


def test_the_recipe_that_is_shown_stays_as_typed(desk, capsys):
    assert distil("--dry-run", "--output", "run") == 0
    out = capsys.readouterr().out
    assert "name: ./small" in out and "source: data/rows.jsonl" in out and str(desk) not in out


def test_only_what_is_on_this_disk_gets_a_full_path(desk):
    recipe = Recipe(
        student=Model("gpt2"), teacher=Teacher("org/big"), data=Data("data/*.jsonl", eval_source="wikitext")
    )
    found = with_whole_paths(recipe)
    assert (found.student, found.teacher) == (recipe.student, recipe.teacher)
    assert found.data.source == str(desk / "data" / "*.jsonl") and found.data.eval_source == "wikitext"
    assert with_whole_paths(Recipe()) == Recipe()


def test_compare_names_the_command_for_a_run_that_was_not_finished(desk, capsys):
    assert distil("--output", "run") == 0
    (desk / "run" / "training.json").unlink()
    capsys.readouterr()
    assert main(["compare", "./run"]) == 1
    assert "finetune_cli.py resume ./run" in capsys.readouterr().err
