"""A trained Time-LLM with everything that hangs on no window computed once: smaller and faster, and the same forecasts.

The prototypes are mixtures of the word embeddings, so their keys and values are constants, and the map that mixes
them is not needed any more; of the word embeddings only those stay that a prompt can hold.
"""

import copy

import torch

from llm_finetuner.errors import ModelError
from llm_finetuner.models import prompt
from llm_finetuner.models.time_llm import TimeLLM, TimeLLMConfig


@torch.no_grad()
def fold(model: TimeLLM) -> TimeLLM:
    """A folded copy; the model stays as it is. Raises ModelError for what is no Time-LLM, or folded already."""
    if not isinstance(model, TimeLLM) or model.config.folded:
        raise ModelError(
            f"a {type(model).__name__} has nothing to fold",
            "only a Time-LLM has, once: other forecasters go as they are",
        )
    slots, used = prompt.pruned(model.slots)
    words = model.words.weight
    settings = copy.deepcopy(model.config.to_dict())
    settings["backbone"] |= {"vocab_size": len(used), "pad_token_id": None}
    settings |= {"slots": [(list(slot.ids), slot.reads) for slot in slots], "folded": True}
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        settings.pop(name, None)
    folded = TimeLLM(TimeLLMConfig(**settings)).to(words.device, words.dtype)
    kept = model.state_dict()
    kept["backbone." + _embedding(model)] = words[used]
    gone = ("reprogram.mapping.", "reprogram.key.", "reprogram.value.")
    kept = {name: weight for name, weight in kept.items() if not name.startswith(gone)}
    kept["reprogram.keys"], kept["reprogram.values"] = model.reprogram.constants(words)
    folded.load_state_dict(kept)
    return folded.train(model.training)


def _embedding(model: TimeLLM) -> str:
    """The name of the word embeddings in the backbone's state."""
    weight = model.words.weight
    return next(name for name, found in model.backbone.named_parameters() if found is weight)
