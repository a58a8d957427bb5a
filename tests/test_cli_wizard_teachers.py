"""The wizard's questions about teachers and schemes, by keystrokes: every kind of teacher, chains, caches."""
# ruff: noqa: F811, I001  fixtures are arguments

import shutil

import pytest
from menu_keys import CTRL_U, DATA, DOWN, ENTER, MODELS, TEXT, answers_to
from menu_keys import here, keys  # noqa: F401  fixtures
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llm_finetuner.cli import prompts, side_jobs, walk
from llm_finetuner.cli.chains import as_planned, check_stages
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.prompts import Pick
from llm_finetuner.cli.settings import build
from llm_finetuner.registry import METHODS, options_of, resolve


def options_asked(count: int) -> str:
    """Enter for `count` options of the method, five training questions, advanced, output."""
    return ENTER * (count + 7)


def test_several_teachers(keys, here):
    moves = ["small", ENTER, DOWN, ENTER, "big big", ENTER, "0.3,0.7", ENTER, DOWN, ENTER, ENTER]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, *DATA, options_asked(2))
    assert recipe.teacher.kind == "ensemble" and recipe.teacher.name == ""
    assert recipe.teacher.options == {"members": ["big", "big"], "weights": [0.3, 0.7], "mixture": "logits"}


def test_answers_in_a_cache(keys, here):
    (here / "answers").mkdir()
    (here / "answers" / "manifest.json").write_text("{}")
    moves = ["small", ENTER, DOWN, DOWN, ENTER, "nowhere", ENTER, CTRL_U, "answers", ENTER, ENTER]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, *DATA, options_asked(2))
    assert (recipe.teacher.kind, recipe.teacher.options) == ("cached", {"path": "answers"})


def test_an_endpoint(keys, here):
    moves = [
        "small",
        ENTER,
        DOWN * 3,
        ENTER,
        "served",
        ENTER,
        "http://127.0.0.1:9/v1",
        ENTER,
        "20",
        ENTER,
        ENTER,
    ]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, *DATA, options_asked(2))
    assert (recipe.teacher.kind, recipe.teacher.name, recipe.teacher.options["k"]) == ("remote", "served", 20)


def test_a_student_cut_from_its_teacher(keys, here):
    moves = ["teacher/0", ENTER, CTRL_U, "teacher/2", ENTER, ENTER, "big", ENTER, ENTER]
    recipe = keys(answers_to("vanilla_distillation"), TEXT, *moves, *DATA, options_asked(2))
    assert (recipe.student.name, recipe.output) == ("teacher/2", "outputs/part-vanilla_distillation")


def test_objectives_are_asked_with_an_example(keys, here):
    mixture = ["klx=1", ENTER, CTRL_U, "jsd=1:beta=0.1", ENTER, "last", ENTER]
    recipe = keys(answers_to("distillation"), *MODELS, ENTER, *DATA, *mixture, options_asked(0))
    assert recipe.options == {"objectives": {"jsd": {"weight": 1, "beta": 0.1}}, "layers": "last"}


def test_self_distillation_asks_for_no_teacher_and_for_what_matters(keys, here):
    average = ["3", ENTER, ENTER, DOWN, ENTER, "0.9", ENTER]  # temperature, alpha, by, decay; no exits
    recipe = keys(
        answers_to("self_distillation"), TEXT, "small", ENTER, ENTER, *DATA, *average, options_asked(0)
    )
    assert recipe.teacher is None and recipe.options["by"] == "average" and recipe.options["decay"] == 0.9
    exits = [ENTER * 3, "0", ENTER]
    recipe = keys(
        answers_to("self_distillation"), TEXT, "small", ENTER, ENTER, *DATA, *exits, options_asked(0)
    )
    assert recipe.options["exits"] == [0]


@pytest.mark.parametrize(
    "method, kinds", [("online_distillation", 1), ("on_policy_distillation", 1), ("sequence_distillation", 0)]
)
def test_methods_ask_for_the_teachers_that_they_can_hear(keys, here, method, kinds):
    count = len(options_of(resolve(METHODS, method)))
    asked = [TEXT] if method == "online_distillation" else []  # in the others a model writes
    moves = ["small", ENTER, ENTER * kinds, "big", ENTER, ENTER]
    recipe = keys(answers_to(method), *asked, *moves, *DATA, options_asked(count))
    wanted = {"student.name": "small", "teacher.name": "big", "data.source": "rows.jsonl"}
    assert recipe == build(method, {**wanted, "output": f"outputs/small-{method}"})


def test_a_chain_of_stages(keys, here):
    moves = ["big", ENTER, "big", ENTER, "small", ENTER, ENTER, ENTER, *DATA, options_asked(2)]
    recipe = keys(lambda: walk.Walk("vanilla_distillation", Screen(), "chain").forward(), *moves)
    assert recipe.stages == ["big", "small"] and recipe.teacher.name == "big"
    assert recipe.output == "outputs/big-chain"


@pytest.fixture
def bare(here):
    """A third folder: configuration and tokenizer, no weights."""
    shutil.copytree(here / "small", here / "bare", ignore=shutil.ignore_patterns("*.safetensors"))


def test_a_stage_without_weights_starts_from_new_ones(keys, bare):
    moves = ["big", ENTER, "teacher/2", ENTER, "bare", ENTER, ENTER, ENTER, ENTER, *DATA, options_asked(2)]
    recipe = keys(lambda: walk.Walk("vanilla_distillation", Screen(), "chain").forward(), *moves)
    assert recipe.stages == ["teacher/2", {"student": "bare", "student.from_scratch": True}]
    assert (recipe.student.name, recipe.output) == ("teacher/2", "outputs/part-chain")
    first, second = as_planned(recipe)
    assert not first.student.from_scratch and second.student.from_scratch
    check_stages(recipe)


def test_a_peer_without_weights_starts_from_new_ones(keys, bare):
    moves = ["bare", ENTER, ENTER, ENTER, "bare", ENTER, ENTER, ENTER]
    count = len(options_of(resolve(METHODS, "online_distillation")))
    recipe = keys(answers_to("online_distillation"), TEXT, *moves, *DATA, options_asked(count))
    assert recipe.student.from_scratch and recipe.teacher.name == "bare" and recipe.teacher.from_scratch


def test_numbers_of_two_digits():
    choices = [(n, str(n), "", str(n)) for n in range(1, 13)]
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        for typed, wanted in (("12\r", 12), ("1\r", 1), ("2\r", 2), ("123\r", 3), ("10\r", 10)):
            pipe.send_text(typed)
            assert prompts.ask("Title", "", Pick(choices, 1)) == wanted


def test_the_menu_writes_a_cache_and_a_data_set(keys, here, capsys):
    few = ["8", ENTER]  # rows
    assert (
        keys(side_jobs.cache, TEXT, "small", ENTER, "big", ENTER, *DATA, ENTER, *few, "5", ENTER, "c", ENTER)
        == 0
    )
    assert (here / "c" / "manifest.json").exists() and "bytes an answer" in capsys.readouterr().out
    assert (
        keys(side_jobs.write, "big", ENTER, *DATA, *few, "4", ENTER, "1", ENTER, ENTER, "w.jsonl", ENTER) == 0
    )
    assert (here / "w.jsonl").exists()
