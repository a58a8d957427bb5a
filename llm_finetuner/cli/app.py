"""The command line: sub-commands, exit codes, errors in two lines. Without arguments it opens the wizard."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from llm_finetuner.cli import imports
from llm_finetuner.cli.exits import FAILED, INTERRUPTED, TERMINATED, WRONG_USAGE, program
from llm_finetuner.cli.plain import clean
from llm_finetuner.errors import FinetunerError, RecipeError


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code; only our own bugs raise."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with terminated_politely():
        try:
            code = guarded(lambda: dispatch(argv), "--json" in argv)
        except SystemExit as stop:  # of --help, or SIGTERM
            imports.leave(stop.code)
            raise
        imports.leave(code)
        return code


def dispatch(argv: list[str]) -> int:
    """Run one command."""
    if not argv:
        gc.disable()  # imports leave nothing to collect, and looking costs 20 ms; the menu switches it on again
        from llm_finetuner.cli import wizard

        return wizard.start()
    from llm_finetuner.cli.parser import parser

    args = parser().parse_args(argv)
    if args.command is None:
        raise RecipeError("no command was given", f"{program()} --help lists them")
    from llm_finetuner.cli import commands

    return commands.run(args)


def guarded(action: Callable[[], int], as_json: bool) -> int:
    """Run `action`; errors of users become two lines and an exit code, Ctrl-C becomes 130."""
    try:
        return with_libraries(action)
    except FinetunerError as error:
        print(f"error: {clean(error.what)}", file=sys.stderr)
        if error.hint:
            print(f"  {clean(error.hint)}", file=sys.stderr)
        if as_json:
            import json

            print(json.dumps({"error": error.what, "hint": error.hint}))
        return WRONG_USAGE if isinstance(error, RecipeError) else FAILED
    except KeyboardInterrupt as stop:
        print(f"\nInterrupted. {stop.args[0] if stop.args else 'Nothing was changed.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def with_libraries(action: Callable[[], int]) -> int:
    """Run `action`; a library of others that is missing or broken is a TrainingError."""
    try:
        return action()
    except ImportError as error:
        raise imports.told(error.name or "a library", error) from error


class terminated_politely:
    """While it lasts, SIGTERM raises SystemExit(143): prompts and live views restore the terminal."""

    def __enter__(self) -> None:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *_) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    @staticmethod
    def _stop(_signal: int, _frame: Any) -> None:
        toolkit = sys.modules.get("prompt_toolkit.application.current")
        prompt = toolkit.get_app_or_none() if toolkit else None
        if prompt is None or not prompt.is_running or prompt.loop is None:
            raise SystemExit(TERMINATED)
        # raised here it would have to cross the prompt's event loop, which then can wait for ever
        prompt.loop.call_soon_threadsafe(lambda: prompt.exit(exception=SystemExit(TERMINATED)))
