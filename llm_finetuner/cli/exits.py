"""The exit codes, and the name of this program in messages."""

import os
import sys

OK, FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def program() -> str:
    """How this program was started, for messages."""
    return "llm-finetuner" if "llm-finetuner" in os.path.basename(sys.argv[0]) else "python finetune_cli.py"
