"""The thread that imports what a run needs: what fails of it, and leaving while it is under way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
BEGUN = """
import sys
sys.path[:0] = [{root!r}, {folder!r}]
from llm_finetuner.cli import imports
imports.EVERY_RUN = {every!r}
imports.begin({more!r})
"""


def run(folder: Path, every: tuple, more: tuple, then: str) -> subprocess.CompletedProcess:
    """A process of its own, as what was imported stays."""
    (folder / "broken.py").write_text("raise ImportError('damaged', name='broken')")
    (folder / "endless.py").write_text("import threading; threading.Event().wait()")
    code = BEGUN.format(root=ROOT, folder=str(folder), every=every, more=more) + then
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_what_one_job_needs_does_not_stop_another(tmp_path):
    then = "imports._thread.join(); imports.wait(); print('goes on')"
    ended = run(tmp_path, ("json",), ("broken",), then)
    assert ended.stdout == "goes on\n" and not ended.stderr
    ended = run(tmp_path, ("broken",), (), then)
    assert "broken cannot be imported: damaged" in ended.stderr and not ended.stdout


@pytest.mark.parametrize("code, status, said", [(None, 0, ""), ("text", 1, "text\n"), (3, 3, ""), (0, 0, "")])
def test_leaving_with_what_exit_takes(tmp_path, code, status, said):
    ended = run(
        tmp_path, ("json",), ("endless",), f"imports.wait(); imports.leave({code!r}); print('stayed')"
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (status, said, "")
