"""Next-token prediction: the row of token t is answered by the label of token t + 1.

Shapes: B sequences, T tokens, D hidden width, H heads, N positions that count.
"""

import torch
from torch import Tensor, nn

from llm_finetuner.models.anatomy import capture, expose_attention
from llm_finetuner.models.loading import blocks_of, head_of
from llm_finetuner.output import Output, Want

IGNORE = -100


class CausalLM:
    """Decoder language models of transformers."""

    unfit = ("mse", "huber")  # objectives whose targets are numbers, not tokens

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
        if any(example.get("sampled") for example in examples):
            batch["sampled"] = torch.tensor([bool(example.get("sampled")) for example in examples])
        if not counted:
            batch["labels"].fill_(IGNORE)
        return batch

    def count(self, batch: dict[str, Tensor]) -> int:
        """Positions that count: labels but the first, which nothing predicts."""
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def prepare(self, model: nn.Module, want: Want) -> None:
        """Make a model ready to be asked for `want`."""
        if want.attention:
            expose_attention(model)

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass of the trunk; the head is left to the caller, position by position."""
        mask_BT = batch["labels"][:, 1:] != IGNORE
        kept, hooks = capture(model, want)
        try:
            said = model.base_model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            )
        finally:
            for hook in hooks:
                hook.remove()

        def pick(x_BTD: Tensor) -> Tensor:
            return x_BTD[:, :-1][mask_BT]

        examples, targets = mask_BT.nonzero()[:, 0], batch["labels"][:, 1:][mask_BT]
        if "sampled" in batch:  # [B]: what the student wrote itself is no ground truth
            targets = torch.where(batch["sampled"][examples], IGNORE, targets)
        return Output(
            rows=pick(said.last_hidden_state),
            head=head_of(model),
            features={block: pick(x) for (kind, block), x in kept.items() if kind == "features"},
            attention={
                block: pick(maps_BHTT.transpose(1, 2))
                for (kind, block), maps_BHTT in kept.items()
                if kind == "attention"
            },
            states={
                block: {role: pick(x) for role, x in roles.items()}
                for (kind, block), roles in kept.items()
                if kind == "states"
            },
            embeddings=pick(kept["embeddings", 0]) if want.embeddings else None,
            targets=targets,
            examples=examples,
        )
