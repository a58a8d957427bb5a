"""What goes wrong at the command line, and what is said: the order of words, a hub out of reach, damaged weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_finetuner.benchmark.quality import Quality
from llm_finetuner.cli import answers, confirm, hub, jobs
from llm_finetuner.cli.app import main
from llm_finetuner.cli.parser import parser
from llm_finetuner.cli.settings import build
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_file import save

CLI = str(Path(__file__).resolve().parents[1] / "finetune_cli.py")
ONE_STEP = ["--steps", "1", "--batch-size", "4", "--gradient-accumulation-steps", "1", "--num-samples", "12"]


# ---- words


@pytest.mark.parametrize(
    "words",
    [
        ["r.yaml", "train.steps=5", "--dry-run", "temperature=4"],
        ["--dry-run", "r.yaml", "train.steps=5", "temperature=4"],
        ["r.yaml", "--dry-run", "train.steps=5", "--json", "temperature=4"],
        ["train.steps=5", "--dry-run", "r.yaml", "temperature=4"],
    ],
)
def test_flags_and_settings_in_any_order(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(build(4, {"student.name": "s", "teacher.name": "t", "data.source": "d"}), "r.yaml")
    assert main(["run", *words, *([] if "--json" in words else ["--json"])]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe["train"]["steps"] == 5 and recipe["options"]["temperature"] == 4.0


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "r.yaml", "--nope", "a=1"], "unrecognized arguments: --nope"),
        (["run"], "required: recipe"),
        (["list", "runs", "more"], "unrecognized arguments: more"),
        (["distill", "train.steps=1"], "unrecognized arguments: train.steps=1"),
    ],
)
def test_words_that_mean_nothing(words, said):
    with pytest.raises(RecipeError, match=said):
        parser().parse_args(words)


# ---- the hub


def test_a_hub_out_of_reach_is_asked_once_and_without_noise(data_file, tmp_path):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy")
    }
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    words = [
        "finetune",
        "--student",
        "gpt2-no-such-name",
        "--data",
        data_file,
        "--output",
        str(tmp_path / "run"),
    ]
    run = subprocess.run([sys.executable, CLI, *words], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "127.0.0.1:9 is out of reach" in run.stdout
    *_, error, hint = run.stderr.splitlines()
    assert error.startswith("error: cannot load 'gpt2-no-such-name'") and "is the hub name right" in hint
    assert not [
        line for line in run.stderr.splitlines() if "retry" in line.lower() or "attempt" in line.lower()
    ]


def test_whether_a_model_must_be_downloaded_is_said(tmp_path, student_folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.whereabouts(student_folder) == ""
    assert hub.whereabouts("gpt2") == hub.NOT_HERE  # the tests are offline
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.whereabouts("gpt2") == "will be downloaded from the hub"
    snapshot = tmp_path / "models--gpt2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--gpt2" / "refs").mkdir()
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert confirm.held(build(1, {"student.name": "gpt2"}).student) == "gpt2, in the hub's local cache"


# ---- results


@pytest.mark.parametrize("words", [["doctor"], ["list", "methods"], ["list", "runs", "--folder", "nowhere"]])
def test_quiet_keeps_results(words, capsys):
    assert main(words) == 0
    loud = capsys.readouterr().out
    assert main([*words, "--quiet"]) == 0
    quiet = capsys.readouterr().out
    assert len(quiet.splitlines()) >= len(loud.splitlines()) - 1 > -1 and quiet.strip()


def test_quiet_training_says_what_became_of_it(student_folder, data_file, tmp_path, capsys):
    words = ["finetune", "--method", "6", "--student", student_folder, "--data", data_file, *ONE_STEP]
    assert main([*words, "--output", str(tmp_path / "run"), "--quiet"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("done: 1 steps") and line.endswith(f"saved in {tmp_path / 'run'}")


def test_benchmark_rounds_and_says_against_what(student_folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("the red dog\nan old house\n")
    (tmp_path / "references.txt").write_text("zzz\nyyy\n")
    words = ["benchmark", student_folder, "--prompts", str(tmp_path / "prompts.txt")]
    answers = ["--references", str(tmp_path / "references.txt")]
    assert main([*words, *answers, "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ROUGE-1: 0.000" in lines and "ROUGE-L: 0.000" in lines
    assert lines[-1] == "scored against the references given"
    assert all(len(line.rpartition(".")[2]) <= 3 for line in lines[:-1])
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scored_against"].startswith("the second half") and found["mean_tokens"] > 0


def test_preview_says_what_is_cut(student_folder, data_file, tmp_path, capsys):
    words = ["preview", "--student", student_folder, "--data", data_file]
    assert main([*words, "--quiet"]) == 0
    assert "cut" not in capsys.readouterr().out
    assert main([*words, "--max-length", "16", "--quiet"]) == 0
    assert "40 rows are longer than 16 tokens and will be cut" in capsys.readouterr().out
    long = tmp_path / "long.jsonl"  # the model has 128 positions, whatever max_length says
    long.write_text(
        "".join(json.dumps({"prompt": "the red dog " * n, "completion": "b"}) + "\n" for n in (1, 200))
    )
    assert main(["preview", "--student", student_folder, "--data", str(long)]) == 0
    assert "; 1 rows are longer than 128 tokens and will be cut" in capsys.readouterr().out


# ---- damaged weights


def test_a_perplexity_of_no_number_is_no_number():
    from numpy import array, inf, nan

    for loss, wanted in ((nan, "nan"), (inf, "inf"), (800.0, "inf"), (0.0, "1.0")):
        assert str(Quality(array([loss]), array([1]), 0.0, 0.0).perplexity) == wanted


def test_an_evaluation_of_no_number_ends_the_run(student_folder, data_file, tmp_path, capsys):
    words = ["finetune", "--method", "6", "--student", student_folder, "--data", data_file, *ONE_STEP]
    words += [
        "--learning-rate",
        "1e38",
        "--save-every",
        "1",
        "--steps",
        "2",
        "--eval-every",
        "1",
        "--warmup",
        "0",
    ]
    assert main([*words, "--output", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "the evaluation at step 1 gives a loss of nan" in err
    assert "start again with a lower --learning-rate (now 1e+38)" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


# ---- hints


def test_another_encoding_is_named_with_the_line_that_mends_it(student_folder, tmp_path, capsys):
    for name, encoding in (("latin.txt", "latin-1"), ("word.jsonl", "cp1252")):
        path = tmp_path / name
        text = "caf\xe9\n" if name == "latin.txt" else '{"text": "\u201ccaf\xe9\u201d"}\n'
        path.write_bytes(text.encode(encoding))
        assert main(["preview", "--student", student_folder, "--data", str(path)]) == 1
        err = capsys.readouterr().err
        assert "not UTF-8: byte" in err and "on-bad-row" not in err
        command = err.splitlines()[1].rpartition(": ")[2]
        assert command.startswith("iconv -f ") and str(path) in command
        subprocess.run(["bash", "-c", command], check=True)
        mended = path.with_name(f"{path.stem}.utf8{path.suffix}")
        assert mended.read_text(encoding="utf-8") == text
        assert main(["preview", "--student", student_folder, "--data", str(mended)]) == 0


def test_held_out_data_of_no_known_shape_are_named(student_folder, data_file, tmp_path, capsys):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"a": "x", "b": "y"}\n')
    words = ["finetune", "--student", student_folder, "--data", data_file, "--eval-data", str(held_out)]
    assert main([*words, "--output", str(tmp_path / "run")]) == 1
    assert f"error: {held_out}: no known shape among the columns found: a, b" in capsys.readouterr().err


def test_a_folder_without_weights_is_told_of_new_ones(student_folder, data_file, tmp_path, capsys):
    from transformers import AutoConfig, AutoTokenizer

    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(student_folder).save_pretrained(tmp_path / "bare")
    words = ["finetune", "--method", "6", "--student", str(tmp_path / "bare"), "--data", data_file, *ONE_STEP]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "--from-scratch" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "run"), "--from-scratch"]) == 0


@pytest.mark.parametrize("kind", ["adapter as student", "no weights as teacher"])
def test_models_that_cannot_be_are_refused_at_the_prompt(kind, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    if kind == "adapter as student":
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(RecipeError, match="an adapter"):
            answers.student_name(False, str(tmp_path))
    else:
        with pytest.raises(RecipeError, match="no weights"):
            answers.teacher_name(str(tmp_path))
        assert answers.student_name(False, str(tmp_path)) == str(tmp_path)  # asked about next


def test_only_runs_that_were_not_finished_are_offered_to_be_resumed(
    student_folder, data_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "--method", "6", "--student", student_folder, "--data", data_file, *ONE_STEP]
    for name in ("whole", "half"):
        assert main([*words, "--output", f"outputs/{name}", "--save-every", "1"]) == 0
    Path("outputs/half/training.json").unlink()
    offered = []
    monkeypatch.setattr(jobs.prompts, "ask", lambda title, why, prompt: offered.append(prompt) or jobs.BACK)
    assert jobs.resume() is jobs.BACK
    assert [value for value, *_ in offered[0].choices] == ["outputs/half", jobs.OTHER]
