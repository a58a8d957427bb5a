"""The plain Hugging Face folder."""

from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner.task import Task


class Merged:
    """A plain Hugging Face folder, the adapter folded into the weights: for whatever reads such folders."""

    needs: tuple[str, ...] = ()

    def write(self, model: nn.Module, tokenizer: Any, task: Task, folder: Path) -> dict[str, Any]:
        """Write model and tokenizer. Returns {"parameters"}."""
        model.save_pretrained(str(folder))
        if tokenizer is not None:  # forecasters read numbers
            tokenizer.save_pretrained(str(folder))
        return {"parameters": model.num_parameters()}
