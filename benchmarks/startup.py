"""How much CPU it takes until the help and the first question are there: medians of several fresh processes.

    python benchmarks/startup.py [runs]

The first question is drawn on a pseudo-terminal and left by Ctrl-C, so its figure includes leaving. CPU seconds, not
wall-clock: other work on the machine does not count.
"""

import os
import pty
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLI = str(ROOT / "finetune_cli.py")
HELP_LIMIT, QUESTION_LIMIT = (
    0.15,
    0.10,
)  # seconds beyond the interpreter, and beyond interpreter + questionary
LAST_LINE, CTRL_C = b"Quit", b"\x03"


def cpu(*words: str, until: bytes | None = None) -> float:
    """CPU seconds of `python words` on a pseudo-terminal; Ctrl-C when it has written `until`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
        os.execv(sys.executable, [sys.executable, *words])
    seen, stopped = b"", False
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if until and until in seen and not stopped:
            os.write(terminal, CTRL_C)
            stopped = True
    _, _, used = os.wait4(pid, 0)
    os.close(terminal)
    return used.ru_utime + used.ru_stime


def medians(measures: dict[str, Callable[[], float]], runs: int) -> dict[str, float]:
    """In turn, so that a busy minute of the machine falls on all of them; the first round writes bytecode."""
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(runs + 1)][1:]
    return {name: statistics.median(one[name] for one in rounds) for name in measures}


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
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
    return int(told - bare > HELP_LIMIT or asked - questionary > QUESTION_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
