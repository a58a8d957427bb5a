"""The door: `python finetune_cli.py` opens the menu; LLMFineTuner is the Python interface."""

import os
import sys
from typing import Any

# Read when torch loads, so set before that; what the user has set stays.
ENVIRONMENT = {
    # Idle threads sleep instead of spinning: beside another program on the same cores, spinning made a step 20 times
    # slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch's allocator asks Linux for huge pages (c10/core/impl/alloc_cpu.cpp): touching fresh small ones cost more
    # than the arithmetic. Elsewhere it does nothing.
    "THP_MEM_ALLOC_ENABLE": "1",
}
os.environ.update({**ENVIRONMENT, **os.environ})


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
