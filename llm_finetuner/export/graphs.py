"""What is written of a model as ONNX: its graphs, what each takes and puts out, and what their axes are called.

One graph, or two for models of two stacks, under the names that Optimum looks for: a source is then encoded once, not
anew for each token of its target. None keeps keys and values: every call reads the whole sequence.

Shapes: B texts, T tokens, S tokens of a target, D width, V vocabulary or labels.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from llm_finetuner.models.anatomy import reads_segments
from llm_finetuner.task import Task

BATCH, SEQUENCE, TARGET = "batch_size", "sequence_length", "decoder_sequence_length"
HEARD = "last_hidden_state"  # what the encoder puts out
AXES = {  # of all that a graph takes, by the model's own names
    "input_ids": (BATCH, SEQUENCE),
    "attention_mask": (BATCH, SEQUENCE),
    "token_type_ids": (BATCH, SEQUENCE),
    "decoder_input_ids": (BATCH, TARGET),
    HEARD: (BATCH, SEQUENCE),
}


@dataclass(frozen=True)
class Graph:
    """One file. feeds: {name of an input: what of AXES it is}, in the order in which `module` takes them."""

    file: str
    module: nn.Module
    feeds: dict[str, str]
    output: str


def graphs_of(model: nn.Module, tokenizer: Any, task: Task) -> list[Graph]:
    """The graphs in the order in which they are run."""
    if task.two_stacks:
        source = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
        target = {
            "input_ids": "decoder_input_ids",
            "encoder_attention_mask": "attention_mask",
            "encoder_hidden_states": HEARD,
        }
        return [
            Graph("encoder_model.onnx", _Encoder(model).eval(), source, HEARD),
            Graph("decoder_model.onnx", _Decoder(model).eval(), target, "logits"),
        ]
    names = ["input_ids", "attention_mask"]
    if reads_segments(model) and "token_type_ids" in tokenizer.model_input_names:
        names.append("token_type_ids")
    whole = _Whole(model, names, counted=task.writes).eval()
    return [Graph("model.onnx", whole, {name: name for name in names}, "logits")]


class _Whole(nn.Module):
    """All of a model: ids, mask ... [B, T] -> logits [B, T, V] or [B, V].

    counted: positions are counted from the mask, as transformers' `generate` does, so that padding on the left does not
    move them either.
    """

    def __init__(self, model: nn.Module, names: list[str], counted: bool):
        super().__init__()
        takes = inspect.signature(model.forward).parameters
        self.model, self.names = model, names
        self.fixed = {"use_cache": False} if "use_cache" in takes else {}
        self.counted = counted and "position_ids" in takes

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        if self.counted:
            given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return self.model(**given, **self.fixed).logits


class _Encoder(nn.Module):
    """ids, mask [B, T] -> what the decoder hears [B, T, D]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, *source_BT: Tensor) -> Tensor:
        ids_BT, mask_BT = source_BT
        return self.encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state


class _Decoder(nn.Module):
    """ids of the target [B, S], mask of the source [B, T], what the encoder said [B, T, D] -> logits [B, S, V]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        ids_BS, mask_BT, heard_BTD = tensors
        return self.model(
            decoder_input_ids=ids_BS, attention_mask=mask_BT, use_cache=False,
            encoder_outputs=BaseModelOutput(last_hidden_state=heard_BTD),
        ).logits  # fmt: skip
