"""Models that transform text in the menu and at the command line: the prefix, the encoder, files of references."""
# ruff: noqa: F811, I001  fixtures are arguments

import json

import pytest
from label_tokenizers import t5 as build_tokenizer
from menu_keys import CTRL_B, DOWN, ENTER, answers_to
from menu_keys import keys  # noqa: F401  fixture
from test_seq2seq import build_t5

from llm_finetuner.cli import jobs
from llm_finetuner.cli.configs import has_two_stacks
from llm_finetuner.cli.prompts import BACK
from llm_finetuner.cli.questions import further, questions
from llm_finetuner.cli.settings import build, paths_in
from llm_finetuner.cli.words import words_of
from llm_finetuner.registry import TASKS


def asked(task: str) -> set[str]:
    given = {
        "method": "vanilla_distillation",
        "student.name": "teacher/2",
        "data.source": "d.csv",
        "task": task,
    }
    at_once = {question.key for question, _ in questions(given) if question.make(given) is not None}
    return at_once | {setting.path for setting in further(given)}


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_leaves_to_ask(task):
    found = asked(task)
    assert ("data.prefix" in found, "student.keep_encoder" in found) == ((task == "seq2seq_lm"),) * 2
    assert ("data.mask" in found) == (task == "masked_lm")


def test_a_prefix_keeps_the_blank_at_its_end():
    paths = {"task": "seq2seq_lm", "student.name": "s", "teacher.name": "t", "data.source": "d"}
    recipe = build(4, {**paths, "data.prefix": "summarize: "})
    words = words_of(recipe)
    assert words[words.index("--prefix") + 1] == "summarize: " and "--set" not in words
    assert paths_in({"--prefix": "summarize: "}, distil=True) == {"data.prefix": "summarize: "}
    assert paths_in({"--prefix": "none"}, distil=True) == {"data.prefix": None}
    assert "--prefix" not in words_of(build(4, paths))


@pytest.fixture
def desk(tmp_path):
    tokenizer = build_tokenizer()
    build_t5(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    rows = [{"article": f"the cat {i}", "summary": "cat"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_menu_asks_for_a_prefix_and_shows_it(keys, desk, capsys):
    task = [DOWN * 5, ENTER]
    recipe = keys(
        answers_to("full"), *task, "small", ENTER, "rows.jsonl", ENTER, "play: ", ENTER, ENTER, ENTER * 7
    )
    assert (recipe.task, recipe.data.prefix) == ("seq2seq_lm", "play: ")
    assert "_play : _the _cat" in " ".join(capsys.readouterr().out.split())


def test_a_benchmark_of_sources_asks_for_references_too(keys, desk):
    (desk / "prompts.txt").write_text("the cat\nthe dog\n")
    (desk / "references.txt").write_text("cat\ndog\n")
    assert keys(lambda: jobs.ask_files("causal_lm"), ENTER) == {"prompts": "prompts.txt"}
    both = {"prompts": "prompts.txt", "references": "references.txt"}
    assert keys(lambda: jobs.ask_files("seq2seq_lm"), ENTER, ENTER) == both
    assert keys(lambda: jobs.ask_files("seq2seq_lm"), ENTER, CTRL_B) is BACK


def test_a_configuration_says_whether_there_are_two_stacks(desk, student_folder):
    assert has_two_stacks(str(desk / "small")) and not has_two_stacks(student_folder)
    assert not has_two_stacks("./missing")
