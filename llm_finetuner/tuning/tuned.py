"""What every way of tuning returns: a model to train, and how to save it."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llm_finetuner.models import labels


@dataclass
class Tuned:
    """A model whose moving weights have requires_grad set.

    model is the transformers model, with adapters injected in place; peft is the wrapper that can save them,
    or None. penalty is a term of the loss that belongs to the tuning; after_step(step) runs between the
    optimizer's step and zero_grad; state and load_state carry what else a resumed run needs. labelled: the adapter
    is of a model whose answers are labels with names, which peft does not save.
    """

    model: nn.Module
    peft: Any = None
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[int], None] = lambda step: None
    state: Callable[[], dict] = dict
    load_state: Callable[[dict], None] = lambda state: None
    labelled: bool = False

    def save(self, folder: str | Path, whole: bool = False) -> None:
        """Write a plain Hugging Face folder: the model, or the adapter where there is one.

        whole: the model with its adapter merged, for a base that no folder holds. Quantised weights cannot be.
        What another run left there goes first: a model beside somebody else's adapter would be loaded with it.
        """
        for pattern in ("adapter_*", "model*.safetensors*", "config.json", "generation_config.json"):
            for path in Path(folder).glob(pattern):
                path.unlink()
        if self.peft is None or whole:
            carries = self.peft is not None or _adapted(self.model)
            model = copy.deepcopy(self).merge() if carries else self.model
            model.save_pretrained(str(folder))
            return
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # peft writes a model card over any README.md
            self.peft.save_pretrained(aside)
            for path in Path(aside).glob("adapter_*"):
                path.replace(Path(folder) / path.name)
        if self.labelled:
            labels.write(self.model, folder)

    def merge(self) -> nn.Module:
        """Fold the adapter into the weights and return the plain model; a model without adapter as it is."""
        _untie(self.model)
        if self.peft is not None:
            return self.peft.merge_and_unload()
        if _adapted(self.model):  # it came with adapters in it
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils import ModulesToSaveWrapper

            for name, layer in list(self.model.named_modules()):
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    self.model.set_submodule(name, layer.get_base_layer())
                elif isinstance(layer, ModulesToSaveWrapper):
                    self.model.set_submodule(name, layer.modules_to_save[layer.active_adapters[0]])
        return self.model


def _adapted(module: nn.Module) -> bool:
    """Whether peft put adapters into it; told by name, for peft takes seconds to import."""
    return any(name.endswith("base_layer") for name, _ in module.named_modules())


def _untie(model: nn.Module) -> None:
    """Give a head that carries an adapter a weight of its own: folded into a tied one it would move the embedding."""
    head = model.get_output_embeddings()
    if head is not None and _adapted(head) and head.weight is model.get_input_embeddings().weight:
        head.get_base_layer().weight = nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = False
