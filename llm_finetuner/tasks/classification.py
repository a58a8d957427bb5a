"""Text classification: one label for a text or a pair of texts.

Shapes: B texts, T tokens, D width of what the scoring layer reads, C labels; M tokens of all texts of the batch.
The positions that count (N) are the texts: N = B. What is read of the blocks belongs to the M tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.benchmark.classes import Confusion
from llm_finetuner.benchmark.label_tally import LabelTally
from llm_finetuner.benchmark.measure import accuracy
from llm_finetuner.benchmark.quality import Tally, eval_mode
from llm_finetuner.checks import check_numbers
from llm_finetuner.data import columns, label_names, labelled
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.layer_maps import POOLED
from llm_finetuner.models import labels
from llm_finetuner.models.anatomy import read_before, reads_segments, sort_out
from llm_finetuner.models.loading import check_logits
from llm_finetuner.objectives.several_labels import binary_cross_entropy, binary_kl
from llm_finetuner.output import Head, Output, Want, moved
from llm_finetuner.recipe import Data
from llm_finetuner.task import OF_NUMBERS, Asked, Task, padded

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Classification(Task):
    """Models that transformers loads with AutoModelForSequenceClassification."""

    auto = "AutoModelForSequenceClassification"
    measure = accuracy("a text", "texts")
    labels = True
    task_type = "SEQ_CLS"
    pooled = all_tokens = keeps_texts = True
    kind = "single"  # or "multi"

    def vocabulary(self, model: nn.Module) -> int:
        """Number of labels: C."""
        return model.config.num_labels

    # ---- rows

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """Tokenise; labels that the model has no names for are named as the data name them. Raises DataError."""
        known = label_names.known(rows, data.label_names, [] if model is None else labels.names_of(model))
        if labels.generic(known) and "input_ids" not in rows.column_names:
            layout = labelled.recognise(rows, data.text_columns)
            known = labelled.names(rows, layout, data.label_names) or known
        done = labelled.prepare(
            rows, tokenizer, labels=known, text_columns=data.text_columns, max_length=data.max_length,
            on_bad_row=data.on_bad_row, kind=self.kind, label_names=data.label_names,
        )  # fmt: skip
        if model is not None and model.config.pad_token_id is None:  # or transformers takes no batches
            model.config.pad_token_id = tokenizer and tokenizer.pad_token_id
        return Prepared(label_names.put(done.dataset, known), done.shape, done.columns, done.stats)

    def fit(self, model: nn.Module, rows: Any, seed: int) -> None:
        """Give a model the labels that the rows are numbered by. Raises DataError where it has other ones."""
        labels.fit(model, label_names.of(rows), seed)
        model.config.problem_type = f"{self.kind}_label_classification"
        if self.kind == "single":
            check_numbers(rows, model.config.num_labels)

    def check_rows(self, rows: Any) -> None:
        """Texts without a label are no mistake: a teacher can label them."""

    def check_names(self, model: nn.Module, rows: Any) -> None:
        """Raise DataError where rows are numbered by other labels than the model's."""
        labels.check(model, label_names.of(rows))

    def check_labelled(self, rows: Any) -> None:
        """Raise DataError where no text has a label: nothing can be learned without a teacher, or judged, by them."""
        if not any((found >= 0).any() for found in columns.flat(rows, "labels")):
            raise DataError(
                "no text has a label, so there is nothing to learn without a teacher and nothing to judge by",
                "give labelled rows; for evaluations name some (eval_source, eval_dataset), or eval_fraction: 0",
            )

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """Pad on the right to the longest: {input_ids, attention_mask, ...} [B, T], labels [B]; texts as they are.

        counted=False marks the stand-in batch of a process that has no example left in a step: no text of it counts.
        """
        batch: dict[str, Any] = {name: padded(examples, name) for name in INPUTS if name in examples[0]}
        batch["labels"] = self.targets(examples)
        batch["counts"] = torch.full((len(examples),), counted)
        if labelled.TEXTS in examples[0]:
            batch[labelled.TEXTS] = [example[labelled.TEXTS] for example in examples]
        return batch

    def read_anew(self, batch: dict[str, Any], tokenizer: Any, limit: int | None) -> dict[str, Any]:
        """The same texts in another tokenizer's tokens, which stand on the CPU, at most `limit` of each."""
        coded = labelled.tokens_of(batch[labelled.TEXTS], tokenizer, limit)
        rows = [dict(zip(coded, row, strict=True)) for row in zip(*coded.values(), strict=True)]
        tokens = {name: padded(rows, name) for name in coded}
        return {**tokens, "labels": batch["labels"], "counts": batch["counts"]}

    def check_texts(self, rows: Any) -> None:
        """Raise DataError where rows do not hold their texts, each one text or each a pair."""
        there = labelled.TEXTS in rows.column_names
        held = columns.lengths(rows, labelled.TEXTS) if there else np.zeros(1)  # NaN where there is none
        if not held[0] or (held != held[0]).any():
            raise DataError(
                "the rows hold token ids and not all of the texts that they were made of, which a teacher with another "
                "tokenizer reads",
                f"give rows of text, which are tokenised here, or a list of the one or two texts in {labelled.TEXTS!r}",
            )

    def targets(self, examples: list[dict]) -> Tensor:
        """Class numbers: [B]."""
        return torch.tensor([example["labels"][0] for example in examples])

    def count(self, batch: dict[str, Any]) -> int:
        """Texts, with a label or without."""
        return int(batch["counts"].sum())

    def positions(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Where the texts stand: targets [N] or [N, C], examples [N] and tokens [M] of an Output."""
        counts_B, targets = batch["counts"], batch["labels"][batch["counts"]]
        text_M = _inside(batch).nonzero()[:, 0]
        return {
            "targets": targets,
            "examples": torch.arange(len(targets), device=targets.device),
            "tokens": (counts_B.cumsum(0) - 1)[text_M],
        }

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """What the answer to one row hangs on, padded or not. It is asked for with a label or without.

        The texts too: a teacher with another tokenizer may tell what the student's tokens do not, such as the case.
        """
        seen = np.asarray(row["attention_mask"]).astype(bool)
        segments, more = np.asarray(row.get("token_type_ids", 0), np.uint8), b""
        if segments.any():  # those of a single text are what they are where there are none
            more = b"segments" + segments[seen].tobytes()
        if row.get(labelled.TEXTS) is not None:
            more += json.dumps(list(row[labelled.TEXTS])).encode()
        counted = np.array([row.get("counts", True)], bool)
        return Asked(np.asarray(row["input_ids"])[seen], more, counted)

    @torch.no_grad()
    def predict(
        self, model: nn.Module, tokenizer: Any, texts: Sequence[str | Sequence[str]], data: Data
    ) -> list[list[dict[str, Any]]]:
        """[{"label", "score"}] of each text or pair of texts, the most probable label first."""
        parts = [[text] if isinstance(text, str) else text for text in texts]
        coded = [tokenizer(*part, truncation=True, max_length=data.max_length) for part in parts]
        unknown = [IGNORED] * self.vocabulary(model)
        batch = self.collate([{**one, "labels": unknown} for one in coded])
        output = self.run(model, moved(batch, model.device), Want())
        said = self.probabilities(output.head(output.rows).float()).tolist()
        named = [zip(labels.names_of(model), row, strict=True) for row in said]
        return [
            sorted(({"label": name, "score": score} for name, score in row), key=lambda one: -one["score"])
            for row in named
        ]

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Of one label for each text: [B, C]."""
        return logits_BC.softmax(-1)

    # ---- models

    def check_packing(self, model: nn.Module) -> None:
        """Raises RecipeError: a text's label is read off a place that a shared row has once."""
        raise RecipeError(
            "train.packing is for language models that write, not for classification",
            "train.max_tokens fills batches to an equal number of tokens",
        )

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> Tally:
        """What sums up an evaluation."""
        return Tally(examples, Confusion(self.vocabulary(model)))

    @torch.no_grad()
    def check_model(self, model: nn.Module, name: str) -> None:
        """Hold that the scoring layer is all that follows what it reads. Raises ModelError."""
        ids_1T = torch.arange(1, 5, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        one = torch.ones_like(ids_1T)
        batch = {"input_ids": ids_1T, "attention_mask": one, "labels": one[:, 0], "counts": one[:, 0].bool()}
        with eval_mode(model):
            output = self.run(model, batch, Want())
            check_logits(
                output.head(output.rows), model(input_ids=ids_1T, attention_mask=one).logits, model, name
            )

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass, which ends before the layer that scores the labels: the caller runs it."""
        counts_B, mask_BT, inside_BT = batch["counts"], batch["attention_mask"].bool(), _inside(batch)
        scorer = labels.scorer_of(model)
        read, kept = read_before(model, scorer, _inputs(model, batch), want)
        where = self.positions(batch)
        none = where["targets"].new_empty(len(where["targets"]), 0)
        rows_ND = none if read is None else _pooled(read, mask_BT)[counts_B]
        found = sort_out(kept, lambda x: x[inside_BT], lambda maps: maps.transpose(1, 2)[inside_BT])
        if POOLED in want.layers:
            found["features"][POOLED] = rows_ND
        return Output(rows=rows_ND, head=Head(scorer), **found, **where)


class SeveralLabels(Classification):
    """Any number of labels for a text, each true or false for itself; targets are [B, C] of 0 and 1."""

    measure = accuracy(
        "a text", "texts", ("macro_f1", "micro_f1"), "subset accuracy",
        accuracy="share of the texts of which all labels are right; its 95 % interval is Wilson's",
        agreement="share of the labels of all texts of which model and teacher say the same",
        calibration_error="expected calibration error of the probability that a label is true, 15 bins of equal width",
        loss="negative log-likelihood of a label being true or false, in nats: the mean over labels and texts",
    )  # fmt: skip
    kind = "multi"
    exclusive = False
    objectives = {"cross_entropy": binary_cross_entropy, "forward_kl": binary_kl}
    unfit = (
        *OF_NUMBERS, "reverse_kl", "adaptive_kl", "alpha_beta", "total_variation", "jsd", "skew_forward_kl",
        "skew_reverse_kl", "uld",
    )  # fmt: skip

    def targets(self, examples: list[dict]) -> Tensor:
        """Labels of 0 and 1, -100 where they are not known: [B, C]."""
        return torch.tensor([example["labels"] for example in examples])

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Of each label for itself: [B, C]."""
        return logits_BC.sigmoid()

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> LabelTally:
        """What sums up an evaluation."""
        return LabelTally(examples, self.vocabulary(model))


def _inputs(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What the model reads of a batch: segments only where it has an embedding for them."""
    left_out = () if reads_segments(model) else ("token_type_ids",)
    return {name: batch[name] for name in INPUTS if name in batch and name not in left_out}


def _inside(batch: Any) -> Tensor:
    """Which places hold a token of a text that counts: [B, T]."""
    return batch["attention_mask"].bool() & batch["counts"][:, None]


def _pooled(read: Tensor, mask_BT: Tensor) -> Tensor:
    """What the label of each text is read off: [B, D]. Decoders score every place, and the last one is asked."""
    if read.dim() == 2:
        return read
    last_B = (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).amax(1)
    return read[torch.arange(len(read), device=read.device), last_B]
