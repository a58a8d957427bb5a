"""What is told before anything is loaded: blocks, weights, caches, files and recipes that do not fit or are missing."""
# ruff: noqa: F811, I001  fixtures are arguments

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from menu_keys import CTRL_U, DATA, DOWN, ENTER, MODELS, TEXT, answers_to
from menu_keys import here, keys  # noqa: F401  fixtures

from llm_finetuner.cli import answers, fitting, jobs
from llm_finetuner.cli.app import main
from llm_finetuner.cli.asking import so_far
from llm_finetuner.cli.chains import check_stages
from llm_finetuner.cli.needed import blocks_kept, compares_blocks
from llm_finetuner.cli.questions import questions
from llm_finetuner.cli.settings import build
from llm_finetuner.cli.teaching import check_cache
from llm_finetuner.errors import RecipeError
from llm_finetuner.models.shrink import choose_blocks
from llm_finetuner.recipe_file import save
from llm_finetuner.registry import OBJECTIVES
from llm_finetuner.scheme import Term
from llm_finetuner.terms import kind_of

PAIR = ["--student", "small", "--teacher", "big"]  # 2 blocks and 4


@pytest.fixture
def desk(here, monkeypatch):
    monkeypatch.chdir(here)
    return here


def write_manifest(folder: Path, layers: list[int]) -> None:
    folder.mkdir(parents=True)
    manifest = {"settings": {"mode": "top_k", "layers": layers}, "depth": 4, "about": {"teacher": "big"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "fitted.safetensors").write_bytes(b"")


# ---- the command line


@pytest.mark.parametrize(
    "words, said",
    [
        (["--method", "9", "--student", "small", "--exits", "1"], "can stop early after blocks 0 to 0"),
        (["--method", "5", *PAIR, "--layers", "0,2"], "the student has blocks 0 to 1"),
        (["--method", "5", *PAIR, "--layers", "0:4"], "the teacher has blocks 0 to 3"),
        (["--method", "8", *PAIR, "--objectives", "cka=1:layers=5"], "the student has blocks 0 to 1"),
        (["--method", "7", "--student", "small", "--teacher", "big", "big"], "several teachers together give answers"),
        ([*PAIR, "big", "--weights", "1", "2", "3"], "weights of 2 teachers must be 2 numbers"),
        (["--student", "teacher/100", "--teacher", "big"], "less than one block: the teacher has 4"),
        (["--student", "small", "--cache", "nowhere"], "no cache in nowhere: there is no such folder"),
        ([*PAIR, "--cache", "rows.jsonl"], "the cache rows.jsonl cannot be made: rows.jsonl is a file"),
        ([*PAIR, "--cache", "rows.jsonl/answers"], "rows.jsonl is a file"),
        (["--student", "small", "--teacher", "./big/more"], "./big/more is not a folder"),
    ],
)  # fmt: skip
def test_it_is_told_before_anything_is_loaded(desk, words, said, capsys):
    assert main(["distill", "--data", "rows.jsonl", "--output", "run", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and "Loading" not in out and len(err.splitlines()) == 2 and not Path("run").exists()


def test_most_of_it_needs_no_torch(desk):
    words = ["distill", "--data", "rows.jsonl", "--student", "teacher/9", "--teacher", "big"]
    door = str(Path(__file__).resolve().parents[1])
    program = "import sys; from llm_finetuner.cli.app import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program, *words], env={"PYTHONPATH": door}, capture_output=True, text=True
    )
    assert run.stdout.split() == ["2", "False"], run.stderr


def test_folders_without_weights_are_told_before_the_first_stage(desk, capsys):
    shutil.copytree("small", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    given = ["--data", "rows.jsonl", "--output", "run"]
    assert main(["distill", "--student", "bare", "--teacher", "big", *given]) == 2
    assert "bare holds no weights\n  --from-scratch" in capsys.readouterr().err
    assert main(["distill", "--student", "small", "--teacher", "bare", *given]) == 2
    assert "bare holds no weights\n  give the folder" in capsys.readouterr().err
    recipe = build(
        4, {"student.name": "small", "teacher.name": "big", "data.source": "rows.jsonl", "output": "run"}
    )
    save(replace(recipe, stages=["small", "bare"]), "chain.yaml")
    assert main(["run", "chain.yaml"]) == 2
    assert "stage 2: bare holds no weights" in capsys.readouterr().err and not Path("run").exists()
    stages = [{"student": "bare", "student.from_scratch": True}, "small"]
    check_stages(
        replace(recipe, stages=stages)
    )  # the first stage's student will have weights when it teaches
    check_cache(
        replace(recipe, student=replace(recipe.student, name="bare")), "answers"
    )  # its tokenizer is enough


def test_data_that_are_not_there(desk, capsys):
    assert main(["finetune", "--student", "small", "--data", "row.jsonl"]) == 1
    out, err = capsys.readouterr()
    assert "no such file: row.jsonl\n  did you mean rows.jsonl" in err and "Loading" not in out
    assert main(["finetune", "--student", "small", "--data", "outputs/quickstart/data"]) == 1
    assert "make quickstart" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="make quickstart"):
        answers.data_source("outputs/quickstart/data")


def test_a_model_that_another_recipe_makes(desk, capsys):
    save(build(4, {"student.name": "s"}), "recipes/first.yaml")
    assert (
        main(["distill", "--student", "small", "--teacher", "outputs/recipes/first", "--data", "rows.jsonl"])
        == 2
    )
    assert "run recipes/first.yaml" in capsys.readouterr().err


def test_a_dry_run_only_warns(desk, capsys):
    assert main(["distill", *PAIR, "--data", "row.jsonl", "--dry-run", "--json"]) == 0
    assert "warning: no such file: row.jsonl" in capsys.readouterr().err


def test_the_hint_for_a_missing_cache_is_the_command_that_makes_it(desk, capsys):
    words = ["--student", "small", "--data", "rows.jsonl", "--num-samples", "8", "--max-length", "64"]
    assert main(["distill", *words, "--cache", "answers", "--steps", "1", "--output", "run"]) == 2
    hint = capsys.readouterr().err.splitlines()[1]
    command = hint.partition("finetune_cli.py ")[2].replace("TEACHER", "big").split()
    assert command[0] == "cache" and main([*command, "--k", "5", "--quiet"]) == 0
    assert (
        main(["distill", *words, "--cache", "answers", "--steps", "1", "--output", "run", "--no-compare"])
        == 0
    )


def test_the_hint_for_a_cache_without_hidden_states_names_the_flag(desk, capsys):
    write_manifest(Path("answers"), layers=[])
    words = ["distill", "--method", "7", "--student", "small", "--data", "rows.jsonl", "--cache", "answers"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "teacher blocks 3, and the cache answers keeps none" in err
    assert "--teacher big" in err and "--to answers-layers --keep-layers 3" in err
    write_manifest(Path("more"), layers=[3])
    recipe = {"student.name": "small", "teacher.kind": "cached", "teacher.options.path": "more"}
    fitting.check_models(build("relation_distillation", recipe))


def test_blocks_that_a_cache_cannot_keep(desk, capsys):
    words = ["cache", *PAIR, "--data", "rows.jsonl", "--to", "answers", "--keep-layers", "1", "4"]
    assert main(words) == 2
    assert "--keep-layers names block 4: the teacher big has blocks 0 to 3" in capsys.readouterr().err


def test_a_recipe_that_is_mistyped(desk, capsys):
    paths = {"student.name": "s", "teacher.name": "t", "data.source": "d"}
    save(build(4, paths), "recipes/relation.yaml")
    for typed in ("relation.yaml", "recipes/relatoin.yaml", "recipes/relation.yml"):
        for command in (["run", typed], ["sweep", typed, "alpha=0.1,0.5"]):
            assert main(command) == 2
            assert "did you mean recipes/relation.yaml?" in capsys.readouterr().err


def test_the_share_that_is_kept_is_rounded_as_the_model_is_cut():
    for depth in (1, 2, 5, 12, 24):
        for divisor in range(1, depth + 1):
            assert blocks_kept(f"teacher/{divisor}", depth) == len(choose_blocks(depth, divisor))


def test_objectives_that_compare_blocks_are_known_by_their_file():
    for name in OBJECTIVES:
        assert compares_blocks(Term(name)) == (kind_of(Term(name)) not in ("logits", "spans")), name


def test_the_depth_is_read_where_it_stands(tmp_path):
    for number, config in enumerate(
        ({"n_layer": 3}, {"num_hidden_layers": 3}, {"text_config": {"n_layers": 3}})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        assert fitting.depth_of(str(folder)) == 3
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder)})
    )
    assert fitting.depth_of(str(tmp_path / "adapter")) == 3
    for name, base in (("itself", "itself"), ("one", "other"), ("other", "one"), ("odd", 3)):
        (tmp_path / name).mkdir()
        told = {"base_model_name_or_path": str(tmp_path / base) if isinstance(base, str) else base}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(told))
        assert fitting.depth_of(str(tmp_path / name)) is None
    assert fitting.depth_of(str(tmp_path)) is None and fitting.depth_of("no-such/model") is None


# ---- texts that a teacher wrote


def test_texts_of_other_settings_are_overwritten_on_request(desk, capsys):
    words = ["generate", "--teacher", "big", "--data", "rows.jsonl", "--num-samples", "2", "--to", "w.jsonl"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert ".tokens" not in capsys.readouterr().out
    assert main([*words, "--max-new-tokens", "5"]) == 1
    err = capsys.readouterr().err
    assert "--overwrite" in err and ".tokens" not in err
    assert main([*words, "--max-new-tokens", "5", "--overwrite"]) == 0


def test_a_run_is_overwritten_with_the_texts_of_its_teacher(desk, capsys):
    words = ["distill", "--method", "12", *PAIR, "--data", "rows.jsonl", "--num-samples", "6", "--steps", "1"]
    words += ["--no-compare", "--output", "run", "--quiet"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert main([*words, "--max-new-tokens", "3", "--overwrite"]) == 0, capsys.readouterr().err


def test_rows_that_a_cache_holds_once(desk, capsys):
    rows = Path("rows.jsonl").read_text().splitlines()[:3]
    Path("twice.jsonl").write_text("\n".join([*rows, *rows[:2]]) + "\n")
    words = ["cache", *PAIR, "--data", "twice.jsonl", "--k", "5", "--eval-fraction", "0"]
    assert main([*words, "--to", "answers"]) == 0
    assert "2 more rows repeat one of them and are stored once" in " ".join(capsys.readouterr().out.split())


# ---- the menu


def test_exits_and_layers_are_told_at_their_question(keys, here):
    deep = [ENTER * 2, ENTER, "1", ENTER, CTRL_U, "0", ENTER]  # temperature, alpha, by; exits
    recipe = keys(answers_to("self_distillation"), TEXT, "small", ENTER, ENTER, *DATA, *deep, ENTER * 7)
    assert recipe.options["exits"] == [0]
    layers = [ENTER * 2, "7", ENTER, CTRL_U, "0", ENTER, ENTER * 3]
    recipe = keys(answers_to("feature_distillation"), *MODELS, ENTER, *DATA, *layers, ENTER * 7)
    assert recipe.options["feature_layers"] == [0]


def test_too_small_a_part_is_told_when_the_teacher_is_named(keys, here):
    moves = [
        "teacher/9",
        ENTER,
        ENTER,
        "big",
        ENTER,
        "\x02",
        "\x02",
        CTRL_U,
        "teacher/4",
        ENTER,
        ENTER,
        "big",
        ENTER,
    ]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, ENTER, *DATA, ENTER * 9)
    assert recipe.student.name == "teacher/4"


def test_weights_are_told_at_their_question(keys, here):
    moves = ["small", ENTER, DOWN, ENTER, "big big", ENTER, "1", ENTER, CTRL_U, "1,2", ENTER, ENTER, ENTER]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, *DATA, ENTER * 9)
    assert recipe.teacher.options["weights"] == [1.0, 2.0]


def test_hidden_states_of_several_teachers(here, monkeypatch):
    monkeypatch.chdir(here)
    given = {"method": "relation_distillation", "job": "train", "student.name": "small"}
    (kind,) = [question for question, _ in questions(given) if question.key == "teacher.kind"]
    assert [value for value, *_ in kind.make(given).choices] == ["live", "cached", "across", "live_cached"]
    mixed = {**given, "method": "distillation", "teacher.kind": "ensemble", "data.source": "rows.jsonl",
             "teacher.options.members": ["big", "big"]}  # fmt: skip
    (asked,) = [question for question, _ in questions(mixed) if question.key == "options.objectives"]
    with pytest.raises(RecipeError, match="several teachers together give answers only"):
        asked.make(mixed).parse("cka=1")
    assert so_far({**mixed, "options.objectives": asked.make(mixed).parse("jsd=1")}).terms


def test_the_cache_that_was_written_last_is_offered(tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    assert answers.newest_cache() == "outputs/cache"
    for number, folder in enumerate(("outputs/new/answers", "old")):
        write_manifest(Path(folder), [])
        os.utime(Path(folder, "manifest.json"), (1000 - number, 1000 - number))
    Path("outputs/run").mkdir()
    Path("outputs/run/manifest.json").write_text("{}")  # of a checkpoint
    assert answers.newest_cache() == "outputs/new/answers"
    given = {"method": "vanilla_distillation", "job": "train", "student.name": "s", "teacher.kind": "cached"}
    (path,) = [question for question, _ in questions(given) if question.key == "teacher.options.path"]
    assert path.make(given).default == "outputs/new/answers"


def test_baselines_are_asked_for_before_the_start(keys, here, monkeypatch):
    asked = []
    ask = jobs.prompts.ask
    monkeypatch.setattr(jobs.prompts, "ask", lambda title, *rest: asked.append(title) or ask(title, *rest))
    moves = [*MODELS, ENTER, *DATA, ENTER * 9, ENTER, "\x1b[A", ENTER]
    assert keys(lambda: jobs.distil_or_finetune("vanilla_distillation"), *moves) == 0
    assert [title for title in asked if "?" in title][-2:] == [
        "Train baselines for the comparison?",
        "Start?",
    ]
