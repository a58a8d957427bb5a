"""The menu and the walk through the questions. It only builds a Recipe; commands.py runs it."""

import gc
import sys
from collections.abc import Callable
from typing import Any

from llm_finetuner import __version__
from llm_finetuner.cli import imports, prompts
from llm_finetuner.cli.exits import OK, program
from llm_finetuner.cli.prompts import BACK, Pick
from llm_finetuner.errors import RecipeError
from llm_finetuner.registry import MENU

OTHER_JOBS = (  # key, title, what it means
    ("p", "Chain of stages", "A teacher, a middle student, a small one: each is the next one's teacher"),
    ("r", "Run a recipe or a chain", "A recipe.yaml that was saved or written before"),
    ("s", "Resume a run or a chain", "Go on from its newest checkpoint"),
    ("c", "Compare or benchmark", "Measure the models of a run, or score completions of prompts"),
    ("k", "Cache a teacher's answers", "Then no teacher is needed in memory"),
    ("w", "Let a teacher write a data set", "It completes the prompts of yours"),
    ("f", "Find better settings", "Try several, ranked with their uncertainty"),
    ("o", "Open a report", "The report.html of a run"),
    ("d", "Doctor", "What this machine has, and what is missing"),
    ("q", "Quit", ""),
)
OF_NUMBERS = {13: "Forecasts of a series", 14: "Numbers at every sample"}  # one line, for a screen has 24
SHOW_CURSOR = "\x1b[?25h"
LIGHT = ("o", "d", "q")  # jobs that no run follows


def start() -> int:
    """Open the menu and return the exit code. Raises RecipeError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RecipeError(
            "the menu needs a terminal, and stdin or stdout is none",
            f"use flags: {program()} distill --student S --teacher T --data D, or see {program()} --help",
        )
    prompts.note(f"LLM Finetuner {__version__}   Enter accepts, Esc or Ctrl-B goes back, Ctrl-C leaves.\n")
    with KeptTerminal():
        return menu(import_ahead)


def import_ahead(choice: Any) -> None:
    """Begin to import what the job will need when its first question stands on the screen."""
    if choice not in LIGHT:
        more = imports.ADAPTERS.get(MENU[choice][2], ()) if choice in MENU else ()
        prompts.once_drawn(lambda: imports.begin(more))


class KeptTerminal:
    """Leaves the terminal as it was, even where a signal came while a prompt was being drawn."""

    def __enter__(self) -> None:
        if sys.platform != "win32":
            import termios

            self.mode = termios.tcgetattr(sys.stdin)
            silent = termios.tcgetattr(sys.stdin)
            # keys hit between questions are dropped, so they shall not be seen either
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)

    def __exit__(self, *_) -> None:
        if sys.platform != "win32":
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self.mode)
            sys.stdout.write(SHOW_CURSOR)
            sys.stdout.flush()


def menu(on_choice: Callable[[Any], None] = lambda choice: None) -> int:
    """The first screen, again after each job that is not a run. `on_choice` is told which job was chosen."""
    choice: Any = 1
    while True:
        choice = prompts.ask("What do you want to do?", "", first_screen(choice))
        if not imports.under_way():
            gc.enable()
        if choice is BACK or choice == "q":
            return OK
        on_choice(choice)
        from llm_finetuner.cli import jobs

        method = which_numbers() if choice in OF_NUMBERS else MENU[choice][0] if choice in MENU else None
        done = BACK
        if method is not BACK:
            done = jobs.distil_or_finetune(method) if method else jobs.OTHERS[choice]()
        if done is not BACK:
            return done
        while prompts.take_back():  # what was answered on the way
            pass


def first_screen(default: Any) -> Pick:
    """The methods under their numbers, then the other jobs."""
    methods = [(n, *title.split(": ")[:2], str(n)) for n, (*_, title) in MENU.items() if n not in OF_NUMBERS]
    first, told = min(OF_NUMBERS), "Forecasts of a series, or numbers at every sample"
    methods.append((first, "Distillation of numbers", told, str(first)))
    return Pick([*methods, *((key, title, told, key) for key, title, told in OTHER_JOBS)], default)


def which_numbers() -> Any:
    """The method for the numbers that are learned; or BACK."""
    choices = [(MENU[n][0], title, MENU[n][3].split(": ")[1], None) for n, title in OF_NUMBERS.items()]
    return prompts.ask("What is learned?", "", Pick(choices, choices[0][0]))
