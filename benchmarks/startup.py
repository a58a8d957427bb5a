"""Start-up: CPU until help and the first question are there, what a user waits for, and how late keys are answered.

    python benchmarks/startup.py [runs]

The first table is CPU seconds, so other work on the machine does not count; its first question is left by Ctrl-C, so
the figure includes leaving. The second is wall-clock seconds of one distillation through the menu. Somebody types at
the first question of it for as long as a user takes to answer a few, and then answers all at once: with the imports of
the run in a thread meanwhile, and with that thread switched off. Medians of fresh processes on a pseudo-terminal, in
turn.
"""

import json
import os
import pty
import re
import select
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLI = str(ROOT / "finetune_cli.py")
HELP_LIMIT, QUESTION_LIMIT = (
    0.15,
    0.10,
)  # seconds beyond the interpreter, and beyond interpreter + questionary
LAST_LINE, CTRL_C = b"Quit", b"\x03"
TYPING, A_KEY = 10.0, 0.1  # seconds at the first question, and between two keys there
PATIENCE = 120.0
WITHOUT = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import finetune_cli; from llm_finetuner.cli import imports; "
    "imports.begin = lambda more: None; sys.exit(finetune_cli.main([]))"
)
PROGRAMS = {"in a thread": [CLI], "when used": ["-c", WITHOUT]}


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, words: list[str], folder: str | Path = "."):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1", HF_HUB_OFFLINE="1")
            os.execv(sys.executable, [sys.executable, *words])
        self.seen = b""

    def read(self, patience: float) -> bool:
        """Take what it has written within so many seconds; False where it wrote nothing or has ended."""
        if not select.select([self.terminal], [], [], patience)[0]:
            return False
        try:
            said = os.read(self.terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.seen += said
        return bool(said)

    def until(self, pattern: bytes) -> float:
        """Seconds until it has written something like this, after all that was looked for before."""
        began = time.perf_counter()
        while not (found := re.search(pattern, self.seen)):
            if not self.read(PATIENCE):
                raise RuntimeError(f"{pattern!r} was never written; the last was {self.seen[-500:]!r}")
        self.seen = self.seen[found.end() :]
        return time.perf_counter() - began

    def send(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def end(self) -> float:
        """Wait until it has ended; the CPU seconds it took."""
        while self.read(PATIENCE):
            pass
        _, _, used = os.wait4(self.pid, 0)
        os.close(self.terminal)
        return used.ru_utime + used.ru_stime


def cpu(*words: str, until: bytes | None = None) -> float:
    """CPU seconds of `python words`; Ctrl-C when it has written `until`."""
    program = Terminal(list(words))
    if until:
        program.until(until)
        program.send(CTRL_C)
    return program.end()


def medians(measures: dict[str, Callable[[], float]], runs: int) -> dict[str, float]:
    """In turn, so that a busy minute of the machine falls on all of them; the first round writes bytecode."""
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(runs + 1)][1:]
    return {name: statistics.median(one[name] for one in rounds) for name in measures}


def cpu_table(runs: int) -> bool:
    """Print the first table; whether the limits hold."""
    found = medians(
        {
            "bare": lambda: cpu("-c", "pass"),
            "questionary": lambda: cpu("-c", "import questionary"),
            "help": lambda: cpu(CLI, "--help"),
            "question": lambda: cpu(CLI, until=LAST_LINE),
        },
        runs,
    )
    bare, questionary, told, asked = found.values()
    print(f"CPU seconds, medians of {runs} fresh processes, Python {sys.version.split()[0]}")
    print(f"interpreter                {bare:.3f}")
    print(f"interpreter + questionary  {questionary:.3f}")
    print(f"--help                     {told:.3f}   {told - bare:+.3f} (limit {HELP_LIMIT})")
    print(f"first question             {asked:.3f}   {asked - questionary:+.3f} (limit {QUESTION_LIMIT})")
    return told - bare <= HELP_LIMIT and asked - questionary <= QUESTION_LIMIT


def type_slowly(program: Terminal) -> list[float]:
    """Type and erase a letter for TYPING seconds; how long each key took to be seen, in seconds."""
    late, end, number = [], time.perf_counter() + TYPING, 0
    while time.perf_counter() < end:
        while program.read(0):
            pass
        began = time.perf_counter()
        program.send(b"x" if number % 2 == 0 else b"\x7f")
        program.read(PATIENCE)
        late.append(time.perf_counter() - began)
        number += 1
        time.sleep(max(0.0, A_KEY - late[-1]))
    program.send(b"\x15")  # the line is empty again
    return late


def distil(words: list[str]) -> dict[str, float]:
    """One distillation from the menu to its first step: seconds of waiting, and keys."""
    models = ROOT / "data" / "quickstart"
    with tempfile.TemporaryDirectory() as folder:
        rows = [json.dumps({"text": f"def f{i}(x):\n    return x + {i}\n"}) for i in range(64)]
        Path(folder, "rows.jsonl").write_text("\n".join(rows) + "\n")
        program = Terminal(words, folder)
        program.until(LAST_LINE)
        program.send(b"4\r")
        program.until(rb"model for")
        program.send(b"\r")  # write text
        program.until(rb"Student model")
        late = sorted(type_slowly(program))
        waits = 0.0
        for answer, then in answers(models):
            program.send(answer.encode() + b"\r")
            waits += program.until(then)
        program.send(b"\r")
        started = first_step(program, Path(folder, "run", "log.jsonl"))
        os.kill(program.pid, signal.SIGKILL)
        program.end()
    return {
        "before": waits,
        "started": started,
        "typical": 1000 * statistics.median(late),
        "late": 1000 * late[int(0.95 * len(late))],
        "latest": 1000 * late[-1],
    }


def answers(models: Path) -> list[tuple[str, bytes]]:
    """What is answered, and what is then on the screen."""
    return [
        (str(models / "student"), rb"new weights"), ("", rb"What teaches"), ("", rb"Teacher model"),
        (str(models / "teacher"), rb"Which weights"), ("", rb"Training data"), ("rows.jsonl", rb"as you mean them"),
        ("", rb"Temperature"), ("", rb"Alpha"), ("", rb"Epochs"), ("", rb"Batch size"), ("", rb"Learning rate"),
        ("", rb"Longest"), ("", rb"How many"), ("", rb"other settings"), ("", rb"Output folder"),
        ("run", rb"Train baselines"), ("", rb"Start\?"),
    ]  # fmt: skip


def first_step(program: Terminal, log: Path) -> float:
    """Seconds until the log of the run has its first line."""
    began = time.perf_counter()
    while not (log.exists() and log.stat().st_size):
        program.read(0.01)
        if time.perf_counter() - began > PATIENCE:
            raise RuntimeError(f"no step was made; the last was {program.seen[-500:]!r}")
    return time.perf_counter() - began


def waiting_table(runs: int) -> None:
    """Print the second table."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for turn in range(runs + 1):
        for name, words in PROGRAMS.items():
            record = distil(words)
            if turn:  # the first round brings the files into memory
                found[name].append(record)
    print(f"\nWall-clock seconds, medians (least to most) of {runs} runs; imports:")
    print(f"{'':34}" + "".join(f"{name:>26}" for name in found))
    lines = {
        "before": "waiting for questions",
        "started": "last answer to first step",
        "typical": "key to echo, ms: median",
        "late": "key to echo, ms: 95 % within",
        "latest": "key to echo, ms: slowest",
    }
    for key, label in lines.items():
        cells = [sorted(record[key] for record in records) for records in found.values()]
        told = [f"{statistics.median(c):.2f} ({c[0]:.2f} to {c[-1]:.2f})" for c in cells]
        print(f"{label:34}" + "".join(f"{cell:>26}" for cell in told))


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    kept = cpu_table(runs)
    waiting_table(runs)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
