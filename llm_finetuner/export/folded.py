"""A Time-LLM for forecasting alone: what hangs on no window is stored as the numbers it is."""

from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner.models.fold import fold
from llm_finetuner.task import Task


class Folded:
    """A Time-LLM made smaller and faster, with the same forecasts: prototypes as constants, unused words left out."""

    needs: tuple[str, ...] = ()

    def write(self, model: nn.Module, tokenizer: Any, task: Task, folder: Path) -> dict[str, Any]:
        """Write a folder that stands wherever the run's own does. Returns {"parameters", "parameters_before"}.

        Raises ModelError for what is no Time-LLM, or folded already.
        """
        before = model.num_parameters()
        folded = fold(model)
        folded.save_pretrained(str(folder))
        return {"parameters": folded.num_parameters(), "parameters_before": before}
