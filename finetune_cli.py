"""The door: `python finetune_cli.py` opens the menu; LLMFineTuner is the Python interface."""

import os
import sys
from typing import Any

# Idle threads sleep instead of spinning: with another program on the same cores, spinning made a step 20 times slower.
# It is read when torch loads its OpenMP library, so it is set here, before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from llm_finetuner.cli.app import main as run

    return run(argv)


def __getattr__(name: str) -> Any:
    """LLMFineTuner on first use, so that the command line does not wait for torch."""
    if name == "LLMFineTuner":
        from llm_finetuner.finetuner import LLMFineTuner

        return LLMFineTuner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
