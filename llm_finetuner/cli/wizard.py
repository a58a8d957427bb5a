"""The menu and the walk through the questions. It only builds a Recipe; commands.py runs it."""

import os
import sys
import threading
from typing import Any

from llm_finetuner import __version__
from llm_finetuner.cli import prompts
from llm_finetuner.cli.app import OK, guarded, program
from llm_finetuner.cli.prompts import BACK, Pick
from llm_finetuner.errors import RecipeError
from llm_finetuner.registry import MENU

OTHER_JOBS = (  # key, title, what it means
    ("r", "Run a recipe", "A recipe.yaml that was saved or written before"),
    ("s", "Resume a run", "Go on from its newest checkpoint"),
    ("c", "Compare or benchmark", "Measure the models of a run, or score completions of prompts"),
    ("o", "Open a report", "The report.html of a run"),
    ("d", "Doctor", "What this machine has, and what is missing"),
    ("q", "Quit", ""),
)
HEAVY = ("torch", "transformers", "datasets")  # what training needs, imported while the user reads


def start() -> int:
    """Open the menu and return the exit code. Raises RecipeError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RecipeError(
            "the menu needs a terminal, and stdin or stdout is none",
            f"use flags: {program()} distill --student S --teacher T --data D, or see {program()} --help",
        )
    prompts.note(f"LLM Finetuner {__version__}   Enter accepts, Esc or Ctrl-B goes back, Ctrl-C leaves.\n")
    warm = threading.Thread(target=import_training_path, daemon=True)
    code = guarded(lambda: menu(warm), as_json=False)
    if warm.is_alive():  # an interpreter that is shut down in the middle of an import of torch may crash
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def import_training_path() -> None:
    """Import what the preview and the run will need; a failure is reported where it is needed."""
    for name in HEAVY:
        try:
            __import__(name)
        except ImportError:
            return


def menu(warm: threading.Thread | None = None) -> int:
    """The first screen, again after each job that is not a run."""
    choice: Any = 1
    while True:
        choice = prompts.ask("What do you want to do?", "", first_screen(choice))
        if choice is BACK or choice == "q":
            return OK
        if warm is not None and not warm.ident:
            warm.start()
        from llm_finetuner.cli import jobs

        done = jobs.distil_or_finetune(MENU[choice][0]) if choice in MENU else jobs.OTHERS[choice]()
        if done is not BACK:
            return done


def first_screen(default: Any) -> Pick:
    """The six methods under their numbers, then the other jobs."""
    methods = [(n, title.split(": ")[0], title.split(": ")[1], str(n)) for n, (*_, title) in MENU.items()]
    return Pick([*methods, *((key, title, told, key) for key, title, told in OTHER_JOBS)], default)
