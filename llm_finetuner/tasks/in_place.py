"""Encoders whose answers stand at the tokens that they are of: tags of words, and tokens that were hidden.

Shapes: B texts, T tokens, N positions that count (labels that are not -100, where they stand), D width of what the head
reads, V labels or tokens; M tokens of all texts of the batch, to which belongs what is read of the blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.benchmark.classes import Confusion
from llm_finetuner.benchmark.measure import accuracy, perplexity
from llm_finetuner.benchmark.pseudo import pseudo_perplexity
from llm_finetuner.benchmark.quality import Tally, eval_mode
from llm_finetuner.checks import check_numbers
from llm_finetuner.data import label_names, masked, tagged
from llm_finetuner.data.columns import evenly
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models import labels
from llm_finetuner.models.anatomy import read_before, sort_out
from llm_finetuner.models.loading import check_logits
from llm_finetuner.output import Head, Output, Want, moved
from llm_finetuner.recipe import Data
from llm_finetuner.task import Task

ROWS_IN_TURN = 32  # whose tokens are hidden in turn, for an evaluation


class InPlace(Task):
    """What both tasks have in common."""

    all_tokens = True

    def vocabulary(self, model: nn.Module) -> int:
        """Width of the logits: V."""
        return self.head(model).out_features

    def check_packing(self, model: nn.Module) -> None:
        """Raises RecipeError: each token looks at all others of its row."""
        raise RecipeError(
            "train.packing is for language models that write, not for encoders",
            "train.max_tokens fills batches to an equal number of tokens",
        )

    @torch.no_grad()
    def check_model(self, model: nn.Module, name: str) -> None:
        """Hold that the head is all that follows what it reads. Raises ModelError."""
        ids_1T = torch.arange(1, 5, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        batch = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T), "labels": ids_1T * 0}
        with eval_mode(model):
            wanted, output = model(input_ids=ids_1T).logits[0], self.run(model, batch, Want())
            check_logits(output.head(output.rows), wanted, model, name)

    def _best(self, model: nn.Module, coded: Any, asked: list[bool]) -> list[tuple[int, float]]:
        """(number, probability) of the best answer at each place that is asked about."""
        wanted = [0 if ask else IGNORED for ask in asked]
        batch = self.collate([{**coded, "labels": wanted}])
        output = self.run(model, moved(batch, model.device), Want())
        found = output.head(output.rows).float().softmax(-1).max(-1)
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass, which ends before the head: the caller runs it, position by position."""
        layer = self.head(model)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        read, kept = read_before(model, layer, inputs, want)
        counted_BT, inside_BT = batch["labels"] != IGNORED, batch["attention_mask"].bool()
        found = self.positions(batch)
        return Output(
            rows=found["targets"].new_empty(len(found["targets"]), 0) if read is None else read[counted_BT],
            head=Head(layer),
            **sort_out(kept, lambda x: x[inside_BT], lambda maps: maps.transpose(1, 2)[inside_BT]),
            **found,
        )


class TokenClassification(InPlace):
    """A tag for every word: models that transformers loads with AutoModelForTokenClassification."""

    auto = "AutoModelForTokenClassification"
    measure = accuracy("a tagged word", "tagged words")
    labels = True
    task_type = "TOKEN_CLS"

    def head(self, model: nn.Module) -> nn.Linear:
        """The layer whose output is the logits. Raises ModelError."""
        return labels.scorer_of(model)

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """Tokenise; labels that the model has no names for are named as the data name them. Raises DataError."""
        known = label_names.known(rows, data.label_names, [] if model is None else labels.names_of(model))
        if labels.generic(known) and "input_ids" not in rows.column_names:
            known = tagged.names(rows, tagged.recognise(rows, data.text_columns), data.label_names)
        done = tagged.prepare(
            rows, tokenizer, labels=known, text_columns=data.text_columns, max_length=data.max_length,
            on_bad_row=data.on_bad_row, label_names=data.label_names,
        )  # fmt: skip
        return Prepared(label_names.put(done.dataset, known), done.shape, done.columns, done.stats)

    @torch.no_grad()
    def predict(
        self, model: nn.Module, tokenizer: Any, texts: Sequence[str | Sequence[str]], data: Data
    ) -> list[list[dict[str, Any]]]:
        """[{"word", "label", "score"}] of the words of each text, cut at blanks where it is not a list of words."""
        said = []
        for text in texts:
            words = text.split() if isinstance(text, str) else list(text)
            coded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=data.max_length)
            numbers = coded.word_ids()
            first = [n is not None and n not in numbers[:i] for i, n in enumerate(numbers)]
            best = self._best(model, coded, first)
            told = [n for n, starts in zip(numbers, first, strict=True) if starts]
            named = labels.names_of(model)
            said.append(
                [
                    {"word": words[n], "label": named[i], "score": p}
                    for n, (i, p) in zip(told, best, strict=True)
                ]
            )
        return said

    def fit(self, model: nn.Module, rows: Any, seed: int) -> None:
        """Give a model the labels that the rows are numbered by. Raises DataError where it has other ones."""
        labels.fit(model, label_names.of(rows), seed)
        check_numbers(rows, model.config.num_labels)

    def check_names(self, model: nn.Module, rows: Any) -> None:
        """Raise DataError where rows are numbered by other labels than the model's."""
        labels.check(model, label_names.of(rows))

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> Tally:
        """What sums up an evaluation."""
        return Tally(examples, Confusion(self.vocabulary(model)))


class MaskedLM(InPlace):
    """Hidden tokens to be filled in: models that transformers loads with AutoModelForMaskedLM."""

    auto = "AutoModelForMaskedLM"
    measure = perplexity("a hidden token", "hidden tokens", "hidden-token perplexity")

    def head(self, model: nn.Module) -> nn.Module:
        """The layer whose output is the logits."""
        return model.get_output_embeddings()

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """Tokenise and hide tokens, the same ones each time. Raises DataError."""
        return masked.prepare(
            rows, tokenizer, text_columns=data.text_columns, max_length=data.max_length, on_bad_row=data.on_bad_row,
        )  # fmt: skip

    def redraw(self, data: Data, tokenizer: Any, seed: int) -> masked.Redraw | None:
        """What hides other tokens in each epoch, where data.mask asks for it. Raises ModelError, DataError."""
        if data.mask == "fixed":
            return None
        if tokenizer is None:
            raise ModelError(
                "data.mask=fresh hides tokens anew and needs the tokenizer", "give tokenizer=..."
            )
        return masked.Redraw(tokenizer, seed)

    def sampled_figures(
        self, model: nn.Module, tokenizer: Any, rows: Any, data: Data, count: int | None, batch_size: int
    ) -> dict[str, Any]:
        """pseudo_perplexity, and pseudo_perplexity_rows, of how many rows it is."""
        few = evenly(rows, ROWS_IN_TURN if count is None else count).to_list()
        found = pseudo_perplexity(self, model, tokenizer, few, batch_size=batch_size)
        return {"pseudo_perplexity": found, "pseudo_perplexity_rows": len(few)}

    @torch.no_grad()
    def predict(
        self, model: nn.Module, tokenizer: Any, texts: Sequence[str], data: Data
    ) -> list[list[dict[str, Any]]]:
        """[{"token", "score"}] of what fills each mask of each text best."""
        said = []
        for text in texts:
            coded = tokenizer(text, truncation=True, max_length=data.max_length)
            best = self._best(model, coded, [i == tokenizer.mask_token_id for i in coded["input_ids"]])
            said.append([{"token": tokenizer.decode([i]).strip(), "score": p} for i, p in best])
        return said
