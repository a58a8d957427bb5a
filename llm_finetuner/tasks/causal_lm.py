"""Next-token prediction: the row of token t is answered by the label of token t + 1.

Shapes: B sequences, T tokens, D hidden width, H heads, N positions that count; R rows of L places where sequences
share rows. A batch is padded [B, T] for everybody; only the forward pass of a model that can be packed is laid out in
other rows, and what is picked from it is the same N positions in the same order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.benchmark.text import continuations, encode
from llm_finetuner.data import text
from llm_finetuner.data.layout import share_rows
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models.anatomy import Enough, capture, sort_out
from llm_finetuner.models.loading import check_head, head_of
from llm_finetuner.models.packing import check_packable, packable
from llm_finetuner.output import Output, Want
from llm_finetuner.recipe import Data
from llm_finetuner.task import Task

IGNORE = -100
NEW_TOKENS = 64  # of a completion that is held against a reference


class CausalLM(Task):
    """Decoder language models of transformers."""

    auto = "AutoModelForCausalLM"
    writes = generates = True
    task_type = "CAUSAL_LM"
    shapes_of_text = True
    first = 1  # nothing predicts the one before

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> text.Prepared:
        """Tokenise and mark what is counted. Raises DataError."""
        return text.prepare(
            rows, tokenizer, text_columns=data.text_columns, max_length=data.max_length, loss_on=data.loss_on
        )

    def predict(self, model: nn.Module, tokenizer: Any, texts: list[str], data: Data) -> list[str]:
        """Raises RecipeError: such a model writes."""
        raise RecipeError("a model for causal_lm continues texts", "generate(prompts) has it write")

    # ---- completions

    def new_tokens(self, data: Data) -> int:
        """Tokens of a completion, at most, where nothing else is said."""
        return NEW_TOKENS

    def prompt_ids(self, texts: Sequence[str], tokenizer: Any, data: Data) -> list[list[int]]:
        """Tokens of prompts. Raises DataError."""
        return [encode(tokenizer, prompt) for prompt in texts]

    def answer_ids(self, texts: Sequence[str], tokenizer: Any, data: Data) -> list[list[int]]:
        """Tokens of completions that are known."""
        return [list(tokenizer(said, add_special_tokens=False)["input_ids"]) for said in texts]

    def write(self, model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], **options: Any) -> list:
        """(new tokens, whether the model ended the text) for each prompt, greedily."""
        return continuations(model, tokenizer, prompts, **options)

    def joined(self, prompt: list[int], answer: list[int], positions: int | None) -> dict[str, list[int]]:
        """The example in which the answer counts."""
        ids, labels = prompt + answer, [IGNORE] * len(prompt) + answer
        kept = slice(None if positions is None else -positions, None)
        return {"input_ids": ids[kept], "attention_mask": [1] * len(ids[kept]), "labels": labels[kept]}

    # ---- models

    def check_model(self, model: nn.Module, name: str) -> None:
        """Raise ModelError where the head does what this version does not know."""
        check_head(model, name)

    def vocabulary(self, model: nn.Module) -> int:
        """Width of the logits: V."""
        return model.get_output_embeddings().weight.shape[0]

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """Pad on the right to the longest: {input_ids, attention_mask, labels}, each [B, T].

        counted=False masks every label: the stand-in batch of a process that has no example left in a step.
        packed=True says where every example stands when they share rows: packed [B, 2], row and first place.
        """
        batch = super().collate(examples, counted)
        if any(example.get("sampled") for example in examples):
            batch["sampled"] = torch.tensor([bool(example.get("sampled")) for example in examples])
        if packed:
            batch["packed"] = torch.tensor(_places(examples))
        return batch

    def positions(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Where the positions that count stand; what the student wrote itself is no ground truth."""
        found = super().positions(batch)
        if "sampled" in batch:  # [B]
            wrote_N = batch["sampled"][found["examples"]]
            found["targets"] = torch.where(wrote_N, IGNORE, found["targets"])
        return found

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """(tokens that a forward pass reads, places that it computes, which padding is the rest of)."""
        read_B = _tokens_read(batch["labels"])
        return int(read_B.sum()), _rows(batch, read_B) * _width(batch, read_B)

    def check_packing(self, model: nn.Module) -> None:
        """Raise RecipeError for a student whose examples cannot share rows. Other models are then given padded ones."""
        check_packable(model)

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass of the trunk; the head is left to the caller, position by position."""
        layout = _Layout(batch, "packed" in batch and packable(model))
        kept, hooks = capture(model, want)
        try:
            rows = layout.pick(model.base_model(**layout.inputs, use_cache=False).last_hidden_state)
        except Enough:
            rows = layout.example_N.new_empty(len(layout.example_N), 0)
        finally:
            for hook in hooks:
                hook.remove()
        return Output(
            rows=rows,
            head=head_of(model),
            **sort_out(kept, layout.pick, layout.pick_maps),
            **self.positions(batch),
        )


class _Layout:
    """What a model is given of a batch, and where its answers stand.

    A sequence is read up to the last position that counts: nothing behind it is asked for, and a causal model does not
    look there.
    """

    def __init__(self, batch: dict[str, Tensor], packed: bool):
        ids_BT, labels_BT = batch["input_ids"], batch["labels"]
        self.example_N, label_N = _counted(labels_BT).nonzero(as_tuple=True)
        self.tokens, self.first_N = ids_BT.shape[1], None
        self.read_B = _tokens_read(labels_BT)
        self.row_N, self.place_N = self.example_N, label_N - 1  # of [R, L], which is [B, T] where padded
        if not packed:
            width = int(self.read_B.max())
            self.inputs = {name: batch[name][:, :width] for name in ("input_ids", "attention_mask")}
            return
        row_B, first_B = batch["packed"].unbind(1)
        places_T = torch.arange(self.tokens, device=ids_BT.device)
        example, token = (places_T < self.read_B[:, None]).nonzero(as_tuple=True)
        at = row_B[example], first_B[example] + token
        ids_RL = ids_BT.new_zeros(_rows(batch, self.read_B), _width(batch, self.read_B))
        # places at the end of a row that nobody has stay at position 0: each is a sequence of its own
        self.inputs = {
            "input_ids": ids_RL.index_put(at, ids_BT[example, token]),
            "position_ids": ids_RL.index_put(at, token),
        }
        self.first_N = first_B[self.example_N]
        self.row_N, self.place_N = row_B[self.example_N], self.first_N + self.place_N

    def pick(self, x_RLD: Tensor) -> Tensor:
        """The positions that count: -> [N, D]."""
        return x_RLD.flatten(0, 1).index_select(0, self.row_N * x_RLD.shape[1] + self.place_N)

    def pick_maps(self, maps_RHLL: Tensor) -> Tensor:
        """Where the positions that count look in their own sequence: -> [N, H, T]."""
        maps_NHL = maps_RHLL[self.row_N, :, self.place_N]
        if self.first_N is None:
            return nn.functional.pad(maps_NHL, (0, self.tokens - maps_NHL.shape[-1]))
        places_T = torch.arange(self.tokens, device=maps_NHL.device)
        at_NT = (self.first_N[:, None] + places_T).clamp(max=maps_NHL.shape[-1] - 1)
        own_NHT = maps_NHL.gather(2, at_NT[:, None].expand(-1, maps_NHL.shape[1], -1))
        inside_NT = places_T < self.read_B[self.example_N, None]
        return torch.where(inside_NT[:, None], own_NHT, 0)


def _places(examples: list[dict]) -> list[tuple[int, int]]:
    """(row, first place) of each example. Raises DataError."""
    read = [max([1, *(i for i, label in enumerate(e["labels"]) if label != IGNORE)]) for e in examples]
    if any(0 in list(e["attention_mask"])[:n] for e, n in zip(examples, read, strict=True)):
        raise DataError(
            "train.packing: a row has an attention_mask of 0 before its last token",
            "take padding on the left out of the rows, or leave packing out",
        )
    rows, _ = share_rows([len(example["input_ids"]) for example in examples])
    places = [(0, 0)] * len(examples)
    for number, row in enumerate(rows):
        first = 0
        for i in row:
            places[i] = (number, first)
            first += read[i]
    return places


def _counted(labels_BT: Tensor) -> Tensor:
    """[B, T] true for the labels that a position is compared with: nothing predicts the first."""
    counted_BT = labels_BT != IGNORE
    counted_BT[:, 0] = False
    return counted_BT


def _tokens_read(labels_BT: Tensor) -> Tensor:
    """[B] tokens up to the last position that counts, at least one."""
    places_T = torch.arange(labels_BT.shape[1], device=labels_BT.device)
    return (_counted(labels_BT) * places_T).amax(1).clamp(min=1)


def _rows(batch: dict[str, Tensor], read_B: Tensor) -> int:
    """R."""
    return int(batch["packed"][:, 0].max()) + 1 if "packed" in batch else len(read_B)


def _width(batch: dict[str, Tensor], read_B: Tensor) -> int:
    """L."""
    return int((batch["packed"][:, 1] + read_B if "packed" in batch else read_B).max())
