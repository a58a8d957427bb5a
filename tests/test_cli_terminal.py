"""On a real pseudo-terminal: exit codes, and a terminal that is left as it was found."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")

CLI = str(Path(__file__).resolve().parents[1] / "finetune_cli.py")
HEAVY = {"yaml", "rich", "torch", "transformers", "datasets", "peft", "numpy"}
PROBE = """
import atexit, runpy, sys
report = sys.argv[1]
atexit.register(lambda: print(" ".join(sys.modules), file=open(report, "w")))
sys.path.insert(0, {!r})
sys.argv = ["finetune_cli.py"]
runpy.run_module("finetune_cli", run_name="__main__")
"""


def spawn(*words: str, cwd: Path):
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HF_HUB_OFFLINE": "1"}
    child = pexpect.spawn(
        sys.executable, list(words), cwd=str(cwd), env=environment, dimensions=(24, 80), timeout=60
    )
    child.expect("Quit")
    return child


def is_sane(child) -> bool:
    """Line editing, echo and signals are on."""
    local = termios.tcgetattr(child.child_fd)[3]
    return all(local & flag for flag in (termios.ICANON, termios.ECHO, termios.ISIG))


def cursor_is_shown(written: bytes) -> bool:
    return written.rfind(b"\x1b[?25h") >= written.rfind(b"\x1b[?25l")


@pytest.mark.parametrize("words", [[], ["--quiet"]])
def test_without_a_terminal_it_names_the_flags(words):
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, CLI, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: ") and "--help" in run.stderr and "Traceback" not in run.stderr
    assert time.monotonic() - began < 10  # a second on an idle machine


@pytest.mark.parametrize("before", ["", "4\r", "4\r\rgpt2\r"])
def test_ctrl_c_leaves_with_130(tmp_path, before):
    child = spawn(CLI, cwd=tmp_path)
    for line in before.split("\r")[:-1]:
        child.send(line + "\r")
        child.expect("model")
    child.sendintr()
    child.expect("Nothing was changed")
    child.expect(pexpect.EOF)
    sane = is_sane(child)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (130, None) and sane
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["", "4\r"])
def test_sigterm_leaves_the_terminal_sane(tmp_path, before):
    child = spawn(CLI, cwd=tmp_path)
    if before:
        child.send(before)
        child.expect("model for")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    written, sane = child.before, is_sane(child)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (143, None)
    assert sane and cursor_is_shown(written)


def test_first_question_is_light(tmp_path):
    report = tmp_path / "modules"
    child = spawn("-c", PROBE.format(str(Path(CLI).parent)), str(report), cwd=tmp_path)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    loaded = set(report.read_text().split())
    assert "questionary" in loaded and not loaded & HEAVY


def test_no_color_is_honoured(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    child = spawn(CLI, cwd=tmp_path)
    written = child.before
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert b"\x1b[0;36" not in written and b"[36m" not in written and b"38;5" not in written


@pytest.mark.slow
def test_keys_hit_while_looking_ahead_start_no_run(student_folder, data_file, tmp_path):
    child = spawn(CLI, cwd=tmp_path)
    child.timeout = 240  # torch is loaded on the way
    answers = [("6", "model for"), ("", "Student model"), (student_folder, "Training data"),
               (data_file, "as you mean them"), ("", "Epochs"),
               ("", "Batch size"), ("", "Learning rate"), ("", "Longest"), ("", "How many"),
               ("", "other settings"), ("", "Output folder"), ("run", "Looking ahead")]  # fmt: skip
    for answer, expected in answers:
        child.send(f"{answer}\r")
        child.expect(expected)
    child.send("\r\r\r")
    child.expect("Start\\?")
    child.sendintr()
    child.expect("Nothing was changed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130 and list(tmp_path.iterdir()) == []


def started_run(student: str, data: str, folder: Path) -> subprocess.Popen:
    """A training that is under way."""
    words = [
        "--method",
        "full",
        "--student",
        student,
        "--data",
        data,
        "--output",
        str(folder),
        "--steps",
        "400",
    ]
    words += [
        "--batch-size",
        "1",
        "--gradient-accumulation-steps",
        "1",
        "--eval-every",
        "0",
        "--save-every",
        "0",
    ]
    run = subprocess.Popen(
        [sys.executable, CLI, "finetune", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    log = folder / "log.jsonl"
    while run.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.05)
    return run


@pytest.mark.slow
def test_an_interrupted_training_says_what_was_saved_and_resumes(student_folder, data_file, tmp_path):
    run = started_run(student_folder, data_file, tmp_path / "run")
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert b"Saved: " in err and f"resume {tmp_path / 'run'}".encode() in err and b"Traceback" not in err
    again = subprocess.run(
        [sys.executable, CLI, "resume", str(tmp_path / "run"), "--json"], capture_output=True
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["metrics"]["steps"] == 400
    assert b"resumed from step" in again.stderr


@pytest.mark.slow
def test_sigterm_in_training_exits_with_143_and_saves(student_folder, data_file, tmp_path):
    run = started_run(student_folder, data_file, tmp_path / "run")
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 143 and b"Saved: " in out and b"Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").iterdir())


# ---- what stands on the screen, and what was typed too early


def screen_of(written: bytes) -> str:
    """What stands on a tall terminal after these bytes: moves of the cursor and erasing are followed, colours not."""
    lines, row, column = [""], 0, 0
    for move, number, kind, char in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|([^\x1b])", written.decode()):
        steps = int(number) if move and number.isdigit() else 1
        if kind in "AB" and kind:
            row = max(0, row + (steps if kind == "B" else -steps))
        elif kind in "CD" and kind:
            column = max(0, column + (steps if kind == "C" else -steps))
        elif kind == "J":
            lines[row:] = [lines[row][:column]]
        elif char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif char:
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + char + line[column + 1 :], column + 1
    return "\n".join(lines)


def test_ctrl_c_between_two_questions_is_not_lost(tmp_path):
    child = spawn(CLI, cwd=tmp_path)
    child.send("4\r\x03")
    child.expect("Nothing was changed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_keys_hit_before_a_question_is_drawn_do_not_answer_it(tmp_path):
    child = spawn(CLI, cwd=tmp_path)
    child.send("4\rzzz\rqqq\r")  # all at once: only the first was a question
    child.expect("model for")
    child.send("\r")
    child.expect("Student model")
    child.send("gpt2\r")
    child.expect("What teaches")
    child.send("\r")
    child.expect("Teacher model")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_going_back_takes_the_answer_off_the_screen(tmp_path):
    child = spawn(CLI, cwd=tmp_path)
    written, seen = child.before + child.after, []
    moves = [
        ("6\r", "model for"),
        ("\r", "Student model"),
        ("gpt2\r", "Training data"),
        ("\x1b", "Student model"),
        ("\x1b", "model for"),
        ("\x1b", "Quit"),
    ]
    for keys, expected in moves:
        child.send(keys)
        child.expect(expected)
        written += child.before + child.after
        seen.append(screen_of(written))
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert "? What do you want to do?  Full fine-tuning" in seen[2] and "? Student model  gpt2" in seen[2]
    assert "Full fine-tuning" in seen[3] and "gpt2" not in seen[3]
    assert "?  Full fine-tuning" not in seen[5] and seen[5].count("What do you want to do?") == 1


# ---- what is imported while the questions are answered

BROKEN = """
import importlib.abc, sys
sys.path.insert(0, {!r})


class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "transformers":
            raise ImportError("a library of it is damaged", name=name)


sys.meta_path.insert(0, Broken())
import finetune_cli
sys.exit(finetune_cli.main(sys.argv[1:]))
"""
IN_A_RUN = """
import sys, threading
sys.path.insert(0, {!r})
import finetune_cli
from llm_finetuner.cli import imports
begin = imports.begin
imports.begin = lambda more: (begin(more), print("begun", more, imports.under_way()))
sys.exit(finetune_cli.main())
"""


@pytest.mark.parametrize(("job", "question", "more"), [("1", "Model", "peft"), ("6", "model", r"\(\)")])
@pytest.mark.parametrize(("key", "code", "said"), [("\x03", 130, "Nothing was changed"), ("\x1b", 0, "Quit")])
def test_leaving_while_the_run_is_imported(tmp_path, job, question, more, key, code, said):
    child = spawn("-c", IN_A_RUN.format(str(Path(CLI).parent)), cwd=tmp_path)
    child.send(f"{job}\r")
    child.expect(f"begun.*{more}.*True")
    child.send(key)
    child.expect(said)
    if code == 0:
        child.send("q\r")
    child.expect(pexpect.EOF)
    written, sane = child.before, is_sane(child)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (code, None)
    assert sane and b"Traceback" not in written and b"Fatal" not in written


@pytest.mark.parametrize("job", ["q", "d", "o"])
def test_jobs_that_no_run_follows_import_nothing_ahead(job):
    from llm_finetuner.cli import prompts, wizard

    wizard.import_ahead(job)
    assert prompts._due == []


def test_a_broken_library_is_told_where_the_run_needs_it(student_folder, data_file, tmp_path):
    child = spawn("-c", BROKEN.format(str(Path(CLI).parent)), cwd=tmp_path)
    for answer, expected in [
        ("6", "model for"),
        ("", "Student model"),
        (student_folder, "Training data"),
        (data_file, "error"),
    ]:
        child.send(f"{answer}\r")
        child.expect(expected)
        assert b"Traceback" not in child.before
    child.expect(": transformers cannot be imported: a library of it is damaged")
    child.expect("requirements.txt")
    child.expect(pexpect.EOF)
    sane = is_sane(child)
    child.close()
    assert child.exitstatus == 1 and sane and b"Traceback" not in child.before


def test_a_broken_library_is_told_by_commands_too(student_folder, data_file, tmp_path):
    words = ["finetune", "--method", "6", "--student", student_folder, "--data", data_file, "--output", "run"]
    code = BROKEN.format(str(Path(CLI).parent))
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "error: transformers cannot be imported: a library of it is damaged" in run.stderr
