"""What every way of tuning returns: a model to train, and how to save it."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass
class Tuned:
    """A model whose moving weights have requires_grad set.

    model is the transformers model, with adapters injected in place; peft is the wrapper that can save them,
    or None. penalty is a term of the loss that belongs to the tuning; after_step(step) runs between the
    optimizer's step and zero_grad; state and load_state carry what else a resumed run needs.
    """

    model: nn.Module
    peft: Any = None
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[int], None] = lambda step: None
    state: Callable[[], dict] = dict
    load_state: Callable[[dict], None] = lambda state: None

    def save(self, folder: str | Path, whole: bool = False) -> None:
        """Write a plain Hugging Face folder: the model, or the adapter where there is one.

        whole: the model with its adapter merged, for a base that no folder holds. Quantised weights cannot be.
        What another run left there goes first: a model beside somebody else's adapter would be loaded with it.
        """
        for pattern in ("adapter_*", "model*.safetensors*", "config.json", "generation_config.json"):
            for path in Path(folder).glob(pattern):
                path.unlink()
        if self.peft is None or whole:
            model = self.model if self.peft is None else copy.deepcopy(self).merge()
            model.save_pretrained(str(folder))
            return
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # peft writes a model card over any README.md
            self.peft.save_pretrained(aside)
            for path in Path(aside).glob("adapter_*"):
                path.replace(Path(folder) / path.name)

    def merge(self) -> nn.Module:
        """Fold the adapter into the weights and return the plain model; a model without adapter as it is."""
        return self.peft.merge_and_unload() if self.peft else self.model
