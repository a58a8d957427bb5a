"""A source text -> a target text, by models with an encoder and a decoder (T5, BART): summaries, translations.

Shapes: B pairs of texts, T tokens of the source, S of the target, N target tokens that count, D width, V vocabulary,
H heads.
The decoder reads the target shifted by one place, so that row s of its states is answered by label s: labels are not
shifted. What is read of blocks is the decoder's, at the N positions; attention maps are those among target tokens.
Data order, train.max_tokens and tokens_per_second go by the source alone: targets of one batch may differ in length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.benchmark import targets, text
from llm_finetuner.benchmark.measure import perplexity
from llm_finetuner.benchmark.quality import eval_mode
from llm_finetuner.data import columns, transform
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.anatomy import read_before, sort_out
from llm_finetuner.models.loading import check_logits, entry_device, head_of, positions_of
from llm_finetuner.output import Output, Want
from llm_finetuner.recipe import Data
from llm_finetuner.task import Asked, Task


class Seq2Seq(Task):
    """Models that transformers loads with AutoModelForSeq2SeqLM."""

    auto = "AutoModelForSeq2SeqLM"
    two_stacks = True
    measure = perplexity("a target token", "target tokens")
    task_type = "SEQ_2_SEQ_LM"
    generates = True  # but writes is False: no target goes on with what was given

    def vocabulary(self, model: nn.Module) -> int:
        """Width of the logits: V."""
        return model.get_output_embeddings().weight.shape[0]

    # ---- rows

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """Tokenise sources and targets; max_length holds for each of them. Raises DataError."""
        return transform.prepare(
            rows, tokenizer, text_columns=data.text_columns, max_length=data.max_length, prefix=data.prefix or "",
            on_bad_row=data.on_bad_row,
        )  # fmt: skip

    def fit(self, model: nn.Module, rows: Any, seed: int) -> None:
        """Raise DataError for targets that the decoder cannot read: token ids or lengths out of range."""
        size, positions = self.vocabulary(model), positions_of(model)
        highest = max(int(labels.max()) for labels in columns.flat(rows, "labels"))
        longest = int(columns.lengths(rows, "labels").max())
        if highest >= size:
            raise DataError(
                f"token id {highest} of a target does not exist: the model knows ids 0 to {size - 1}",
                "prepare the data with the tokenizer of this model",
            )
        if positions and longest > positions:
            raise DataError(
                f"a target has {longest} tokens, the decoder has {positions} positions",
                "prepare with a smaller max_length",
            )

    def check_rows(self, rows: Any) -> None:
        """Raise DataError where there is nothing to learn."""
        if not any((labels != IGNORED).any() for labels in columns.flat(rows, "labels")):
            raise DataError("no token of the targets counts", "labels must hold more than -100")

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """(tokens that a forward pass reads, places that it computes, which padding is the rest of): of both stacks."""
        mask_BT, labels_BS = batch["attention_mask"], batch["labels"]
        end_S = torch.arange(1, labels_BS.shape[1] + 1, device=labels_BS.device)
        targets = ((labels_BS != IGNORED) * end_S).amax(1).sum()  # what is masked before the last one is read
        return int(mask_BT.sum() + targets), mask_BT.numel() + labels_BS.numel()

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """What the answers to one row hang on, padded or not: its source, and its target up to what counts last."""
        seen, labels = np.asarray(row["attention_mask"]).astype(bool), np.asarray(row["labels"])
        target = labels[: np.flatnonzero(labels != IGNORED).max(initial=-1) + 1]
        read = b"target" + target.astype("<i4").tobytes()
        return Asked(np.asarray(row["input_ids"])[seen], read, target != IGNORED)

    # ---- targets that a model writes

    def predict(self, model: nn.Module, tokenizer: Any, texts: Sequence[str], data: Data) -> list[str]:
        """The target of each text, greedily."""
        sources = self.prompt_ids(texts, tokenizer, data)
        found = self.write(model, tokenizer, sources, max_new_tokens=data.max_length, batch_size=len(texts))
        return [text.decode(tokenizer, tokens) for tokens, _ in found]

    def new_tokens(self, data: Data) -> int:
        """Tokens of a target, at most."""
        return data.max_length

    def prompt_ids(self, texts: Sequence[str], tokenizer: Any, data: Data) -> list[list[int]]:
        """Tokens of sources, as rows have them. Raises DataError."""
        return [ids for ids, _ in transform.sources(tokenizer, data.max_length, data.prefix or "")(texts)]

    def answer_ids(self, texts: Sequence[str], tokenizer: Any, data: Data) -> list[list[int]]:
        """Tokens of targets, as rows have them. Raises DataError."""
        return [ids for ids, _ in transform.targets(tokenizer, data.max_length)(texts)]

    def write(self, model: nn.Module, tokenizer: Any, sources: Sequence[list[int]], **options: Any) -> list:
        """(tokens of the target, whether the model ended it) for each source, greedily. Raises DataError."""
        return targets.write(model, tokenizer, sources, **options)

    def joined(self, source: list[int], target: list[int], positions: int | None) -> dict[str, list[int]]:
        """The example of both."""
        return {"input_ids": source, "attention_mask": [1] * len(source), "labels": target[:positions]}

    def sampled_figures(
        self, model: nn.Module, tokenizer: Any, rows: Any, data: Data, count: int | None, batch_size: int
    ) -> dict[str, Any]:
        """rouge1, rouge2, rougeL of greedy targets against the rows' own, and rouge_rows, how many were written."""
        chosen = text.references_in(self, tokenizer, rows, text.TARGETS if count is None else count, data)
        said = text.complete(self, model, tokenizer, chosen, batch_size)
        return {**text.rouge([written for written, _ in said], chosen.texts), "rouge_rows": len(said)}

    # ---- models

    def check_packing(self, model: nn.Module) -> None:
        """Raises RecipeError: a source that shares a row would be read with its neighbours by the encoder."""
        raise RecipeError(
            "train.packing is for models with one stack of blocks, not for an encoder with a decoder",
            "train.max_tokens fills batches to an equal number of tokens of their sources",
        )

    @torch.no_grad()
    def check_model(self, model: nn.Module, name: str) -> None:
        """Hold that the head on what it reads is what the model itself answers. Raises ModelError."""
        config = model.config.to_dict()
        if not model.config.is_encoder_decoder:
            raise ModelError(
                f"{name} ({type(model).__name__}) has no encoder and decoder", "task=causal_lm, or T5, BART"
            )
        for setting in ("decoder_start_token_id", "pad_token_id"):
            if config.get(setting) is None:
                raise ModelError(
                    f"{name} ({type(model).__name__}) has no {setting}: its decoder reads the target behind that token",
                    f"set model.config.{setting}, or write it into config.json",
                )
        few_1T = torch.arange(1, 9, device=entry_device(model))[None]
        ids_1T = few_1T % model.get_input_embeddings().num_embeddings
        labels_1S = few_1T[:, :5] % self.vocabulary(model)
        batch = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T), "labels": labels_1S}
        with eval_mode(model):
            read, _ = _pass(model, batch, Want())
            if read is None or read.dim() != 3 or read.shape[:2] != labels_1S.shape:
                raise ModelError(
                    f"{name} ({type(model).__name__}) does not read its target as T5 and BART do",
                    "take a model of another family",
                )
            wanted = model(**batch, use_cache=False).logits
        check_logits(head_of(model)(read), wanted, model, name)

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass, which ends before the output layer: the caller runs it, position by position."""
        counted_BS, found = batch["labels"] != IGNORED, self.positions(batch)
        read, kept = _pass(model, batch, want)
        return Output(
            rows=found["targets"].new_empty(len(found["targets"]), 0) if read is None else read[counted_BS],
            head=head_of(model),
            **sort_out(kept, lambda x: x[counted_BS], lambda maps: maps.transpose(1, 2)[counted_BS]),
            **found,
        )


def _pass(model: nn.Module, batch: dict[str, Tensor], want: Want) -> tuple[Tensor | None, dict]:
    """(what the output layer reads [B, S, D], None where no answers are wanted; what else `want` names).

    The model shifts the labels itself, which families do differently (mBART begins with the language, which ends its
    labels), and is stopped before it makes logits or a loss of them. T5's scale for tied heads is in what is read.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    if not (inputs["labels"] != IGNORED).any():  # a stand-in batch, in which mBART finds no language
        inputs["decoder_input_ids"] = torch.zeros_like(inputs.pop("labels"))
    if want.attention:
        inputs["output_attentions"] = True  # T5 of older transformers returns no maps otherwise
    return read_before(model, model.get_output_embeddings(), {**inputs, "use_cache": False}, want)
