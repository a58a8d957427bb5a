"""Every kind of teacher and every scheme through the real command line, on tiny models."""
# ruff: noqa: F811, I001  fixtures are arguments

import json
import os
import shutil
from pathlib import Path

import pytest
from menu_keys import CTRL_U, DOWN, ENTER
from menu_keys import here, keys  # noqa: F401  fixtures

from llm_finetuner import sweep
from llm_finetuner.cli import side_jobs
from llm_finetuner.cli.app import main
from llm_finetuner.recipe_file import load

QUICK = ["--steps", "2", "--batch-size", "4", "--gradient-accumulation-steps", "1", "--num-samples", "12"]


@pytest.fixture
def desk(student_folder, teacher_folder, data_file, tmp_path, monkeypatch) -> Path:
    """The current folder: small, big and rows.jsonl in it."""
    os.symlink(student_folder, tmp_path / "small")
    os.symlink(teacher_folder, tmp_path / "big")
    shutil.copy(data_file, tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distil(*words: str) -> int:
    return main(["distill", "--data", "rows.jsonl", *QUICK, "--no-compare", "--output", "run", *words])


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def log(folder: str = "run") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]


# ---- what a teacher leaves on disk


def test_a_cache_is_made_used_and_tells_its_error(desk, capsys):
    words = ["--student", "small", "--teacher", "big", "--data", "rows.jsonl", "--num-samples", "12"]
    assert main(["cache", *words, "--to", "answers", "--k", "20", "--json"]) == 0
    figures = told(capsys)
    assert figures["rows"] == 12 and figures["mean_kl"] < 0.5 and figures["bytes_per_token"] < 80
    assert "--cache answers" in figures["command"] and "--teacher" not in figures["command"]
    assert distil("--student", "small", "--cache", "answers") == 0
    assert load("run/recipe.yaml").teacher.kind == "cached"
    assert main(["cache", *words, "--to", "answers", "--k", "20", "--quiet"]) == 0, "it is gone on with"
    said = capsys.readouterr().out
    assert "bytes an answer" in said and "nats an answer" in said and "of the probability" in said
    assert main(["cache", *words, "--to", "small"]) == 2 and "student" in capsys.readouterr().err


def test_a_teacher_writes_a_data_set_that_can_be_learned(desk, capsys):
    words = ["generate", "--teacher", "big", "--data", "rows.jsonl", "--num-samples", "4"]
    words += [
        "--max-new-tokens",
        "6",
        "--sampling-temperature",
        "1",
        "--samples",
        "2",
        "--to",
        "out/written.jsonl",
    ]
    assert main([*words, "--json"]) == 0
    figures = told(capsys)
    rows = [json.loads(line) for line in Path("out/written.jsonl").read_text().splitlines()]
    assert len(rows) == figures["rows"] == 8 - figures["blank"]
    assert all(row["prompt"].startswith("Question: what of") and row["completion"].strip() for row in rows)
    assert main([*words, "--json"]) == 0 and told(capsys) == figures, "nothing is written again"
    student = ["--student", "small", "--data", "out/written.jsonl", "--steps", "1", "--output", "run"]
    assert main(["finetune", "--method", "full", *student, "--quiet"]) == 0
    assert "prompt and completion" in _preview(capsys)
    assert main([*words[:-1], "rows.jsonl"]) == 2
    assert "no teacher of ours wrote it" in capsys.readouterr().err


def _preview(capsys) -> str:
    capsys.readouterr()
    assert main(["preview", "--student", "small", "--data", "out/written.jsonl"]) == 0
    return capsys.readouterr().out


# ---- teachers and methods


@pytest.mark.parametrize(
    "words, terms",
    [
        (["--student", "small", "--teacher", "big", "big", "--weights", "0.3", "0.7"], ["forward_kl"]),
        (["--student", "teacher/2", "--teacher", "big", "--temperature", "4..1:cosine"], ["forward_kl"]),
        (["--method", "9", "--student", "small", "--exits", "0"], ["cross_entropy"]),
        (["--method", "9", "--student", "small", "--by", "average", "--decay", "0.9"], ["forward_kl"]),
        (["--method", "10", "--student", "small", "--teacher", "small", "big"], ["forward_kl"]),
        (
            ["--method", "8", "--student", "small", "--teacher", "big", "--layers", "last", "--objectives",
             "cross_entropy=0.5", "reverse_kl=0..1:temperature=1", "hidden_mse=0.1:layers=0:3"],
            ["cross_entropy", "reverse_kl", "hidden_mse"],
        ),
        (["--method", "7", "--student", "small", "--teacher", "big", "--relation", "similarity"], ["similarity"]),
    ],
)  # fmt: skip
def test_methods_and_teachers(desk, words, terms):
    assert distil(*words) == 0
    assert all(name in log()[-1] for name in terms)


def test_on_policy_and_sequence_level(desk):
    few = ["--max-new-tokens", "4", "--student", "small", "--teacher", "big"]
    assert distil("--method", "11", "--share", "1", *few) == 0
    assert distil("--method", "12", *few, "--overwrite") == 0
    assert (Path("run") / "written.jsonl").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--student", "small", "--teacher", "m", "--teacher-kind", "remote"],
            "teacher.options.url is missing",
        ),
        (["--student", "small", "--url", "http://127.0.0.1:9/v1"], "teacher.name is missing"),
        (["--student", "small", "--teacher-kind", "cached"], "teacher.options.path is missing"),
        (["--student", "teacher/2", "--cache", "c"], "no teacher is named"),
        (["--method", "self_distillation", "--student", "teacher/2"], "no teacher is named"),
        (["--method", "11", "--student", "small", "--cache", "c"], "asks the teacher about new texts"),
        (["--method", "12", "--student", "small", "--teacher", "big", "big"], "needs models"),
        (["--student", "small", "--teacher", "big", "--weights", "1"], "an ensemble needs members"),
        (["--student", "small", "--teacher", "big", "--temperature", "4..1:step"], "changes over the run"),
        (
            ["--method", "8", "--student", "small", "--teacher", "big", "--objectives", "klx=1"],
            "unknown objective",
        ),
        (["--method", "8", "--student", "small", "--teacher", "big", "--objectives", "jsd=x"], "no weight"),
        (["--method", "5", "--student", "small", "--teacher", "big", "--layers", "first"], "or a map"),
        (["--student", "small", "--teacher", "big", "--only", "math"], "not column=value"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(desk, words, said, capsys):
    assert distil(*words) == 2
    assert said in capsys.readouterr().err and not Path("run").exists()


def test_an_ensemble_has_no_hidden_states(desk, capsys):
    assert distil("--method", "5", "--student", "small", "--teacher", "big", "big") == 2
    assert "give answers only" in capsys.readouterr().err


def test_a_cache_of_another_tokenizer_is_refused(desk, capsys):
    from conftest import build_gpt2, build_tokenizer, save_model

    other = build_tokenizer(["<|more|>"])
    save_model(desk / "other", build_gpt2(len(other)), other)
    words = ["--student", "small", "--teacher", "big", "--data", "rows.jsonl", "--num-samples", "12"]
    assert main(["cache", *words, "--to", "answers", "--quiet"]) == 0
    assert distil("--student", "other", "--cache", "answers") == 1
    assert "another tokenizer" in capsys.readouterr().err


def test_only_the_rows_of_one_task(desk, capsys):
    rows = [{"text": f"the {kind} dog sees", "kind": kind} for kind in ("red", "blue") for _ in range(6)]
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--student", "small", "--data", "mixed.jsonl", "--text-columns", "text", "--only", "kind=red"]
    assert main(["preview", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("6 rows") and "blue" not in said


# ---- chains and searches


CHAIN = """
method: vanilla_distillation
teacher: {name: big}
student: {name: small}
data: {source: rows.jsonl, samples: 12}
train: {steps: 2, batch_size: 4, gradient_accumulation_steps: 1, save_every: 1}
stages: [small, {student: small, temperature: 1}]
output: out
"""


def test_a_chain_is_shown_run_killed_between_stages_and_gone_on_with(desk, capsys, monkeypatch):
    Path("chain.yaml").write_text(CHAIN)
    assert main(["run", "chain.yaml", "--dry-run", "--json"]) == 0
    first, second = told(capsys)
    assert first["teacher"]["name"] == "big" and second["teacher"]["name"] == "out/stage_1"
    assert not Path("out").exists()
    from llm_finetuner import chain

    real = chain.compare_run

    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "compare_run", killed)
    assert main(["run", "chain.yaml"]) == 130
    assert "resume out" in capsys.readouterr().err
    assert Path("out/stage_1/training.json").exists() and not Path("out/stage_2").exists()
    stamp = Path("out/stage_1/training.json").stat().st_mtime_ns
    monkeypatch.setattr(chain, "compare_run", real)
    assert main(["run", "chain.yaml"]) == 2
    assert "already holds a chain" in capsys.readouterr().err
    monkeypatch.chdir(desk / "small")
    assert main(["resume", str(desk / "out")]) == 0
    said = capsys.readouterr().out
    assert "Stage 2 of 2" in said and "perplexity" in said and said.count("report: ") == 2
    assert Path(desk, "out/stage_1/training.json").stat().st_mtime_ns == stamp
    assert json.loads(Path(desk, "out/chain.json").read_text())["stages"][1]["metrics"]["steps"] == 2


def test_fit_refuses_stages(desk):
    from llm_finetuner.errors import RecipeError
    from llm_finetuner.trainer import fit

    Path("chain.yaml").write_text(CHAIN)
    with pytest.raises(RecipeError, match="stages is a chain"):
        fit(load("chain.yaml"))
    assert not Path("out").exists()


def test_a_search_ranks_and_leaves_the_best_recipe(desk, capsys):
    Path("r.yaml").write_text(CHAIN.replace("stages", "# stages"))
    words = ["sweep", "r.yaml", "alpha=0.1,0.5", "--set", "train.steps=1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "trial 0" in said and "Trials, best first" in said and "(as given)" in said
    assert load("out/best.yaml").train.steps == 1
    assert main([*words, "--json"]) == 0, "the same call goes on, with nothing left to do"
    assert len(told(capsys)["trials"]) == 2
    assert main(["sweep", "r.yaml"]) == 2 and "no setting to vary" in capsys.readouterr().err
    assert main(["sweep", "r.yaml", "alpha=0:1"]) == 2 and "optuna" in capsys.readouterr().err
    assert main([*words, "--trials", "1", "--output", "other"]) == 0 and Path("other/best.yaml").exists()


def test_the_menu_searches_in_a_folder_of_its_own_and_asks_first(keys, here, capsys, monkeypatch):
    Path("r.yaml").write_text(CHAIN.replace("stages", "# stages"))
    Path("out").mkdir()
    Path("out/somebody.txt").write_text("theirs")
    moves = [CTRL_U, "r.yaml", ENTER, ENTER, CTRL_U, "alpha=0.1,0.5", ENTER, ENTER]
    assert keys(side_jobs.search, *moves, DOWN, ENTER) == 0
    command = "sweep r.yaml alpha=0.1,0.5 --search grid --output out-search"
    assert command in capsys.readouterr().out and not Path("out-search").exists()

    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "fit", stopped)
    with pytest.raises(KeyboardInterrupt, match=command):
        keys(side_jobs.search, *moves, ENTER)
