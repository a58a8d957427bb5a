"""The menu driven by keystrokes: what the tests of the wizard share."""

import os
import shutil

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llm_finetuner.cli import walk
from llm_finetuner.cli.console import Screen

ENTER, DOWN, SPACE, CTRL_B, CTRL_C, CTRL_D, CTRL_U = "\r", "\x1b[B", " ", "\x02", "\x03", "\x04", "\x15"


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """keys(action, *texts): run the action with these keystrokes, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(action, *texts):
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text("".join(texts))
            if not texts[-1].endswith("\x1b"):  # which waits for what may follow it
                pipe.close()  # a question that nobody answers ends the walk
            return action()

    return run


@pytest.fixture
def here(student_folder, teacher_folder, data_file, tmp_path):
    """Two model folders and a data file, with the short names that are typed."""
    os.symlink(student_folder, tmp_path / "small")
    os.symlink(teacher_folder, tmp_path / "big")
    shutil.copy(data_file, tmp_path / "rows.jsonl")
    return tmp_path


def answers_to(method):
    return lambda: walk.Walk(method, Screen()).forward()


TEXT = ENTER  # the model is to write text
MODELS = [TEXT, "small", ENTER, ENTER, "big", ENTER]  # one model teaches
DATA = ["rows.jsonl", ENTER, ENTER]  # the file, and yes to the preview
