"""Next-token prediction: the row of token t is answered by the label of token t + 1.

Shapes: B sequences, T tokens, D hidden width, N positions that count.
"""

import torch
from torch import Tensor, nn

from llm_finetuner.models.loading import blocks_of, head_of
from llm_finetuner.output import Output, Want

IGNORE = -100


class CausalLM:
    """Decoder language models of transformers."""

    def width(self, model: nn.Module) -> int:
        """Width of what the blocks put out: D."""
        return model.config.get_text_config().hidden_size

    def depth(self, model: nn.Module) -> int:
        return len(blocks_of(model))

    def vocabulary(self, model: nn.Module) -> int:
        """Width of the logits: V."""
        return model.get_output_embeddings().weight.shape[0]

    def collate(self, examples: list[dict], counted: bool = True) -> dict[str, Tensor]:
        """Pad on the right to the longest: {input_ids, attention_mask, labels}, each [B, T].

        counted=False masks every label: the stand-in batch of a process that has no example left in a step.
        """
        length = max(len(example["input_ids"]) for example in examples)

        def pad(key: str, value: int) -> Tensor:
            return torch.tensor([list(e[key]) + [value] * (length - len(e[key])) for e in examples])

        batch = {
            "input_ids": pad("input_ids", 0),
            "attention_mask": pad("attention_mask", 0),
            "labels": pad("labels", IGNORE),
        }
        if not counted:
            batch["labels"].fill_(IGNORE)
        return batch

    def count(self, batch: dict[str, Tensor]) -> int:
        """Positions that count: labels but the first, which nothing predicts."""
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass of the trunk; the head is left to the caller, position by position."""
        mask_BT = batch["labels"][:, 1:] != IGNORE
        features: dict[int, Tensor] = {}
        hooks = [self._capture(blocks_of(model)[layer], layer, features) for layer in want.layers]
        try:
            said = model.base_model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            )
        finally:
            for hook in hooks:
                hook.remove()
        return Output(
            rows=said.last_hidden_state[:, :-1][mask_BT],
            head=head_of(model),
            features={layer: hidden_BTD[:, :-1][mask_BT] for layer, hidden_BTD in features.items()},
            targets=batch["labels"][:, 1:][mask_BT],
            examples=mask_BT.nonzero()[:, 0],
        )

    @staticmethod
    def _capture(block: nn.Module, layer: int, features: dict[int, Tensor]):
        def keep(_module, _inputs, output):
            features[layer] = output[0] if isinstance(output, tuple) else output

        return block.register_forward_hook(keep)
