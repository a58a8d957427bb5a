"""Text -> token ids with some of them hidden, and what stood there as labels (BERT, arXiv 1810.04805, section 3.1).

What is hidden depends on the seed and the number of the row alone: neither on the batch nor on the process. So a row
looks the same in each epoch, and what a teacher said of it can be kept. `Redraw` hides other tokens in each epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_finetuner.data import rows, shapes
from llm_finetuner.data.examples import IGNORED, check_options
from llm_finetuner.data.shapes import Shape
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

SHARE = 0.15  # of a block's tokens is chosen
HIDDEN, SWAPPED = 0.8, 0.1  # of those: become the mask token; another token; the rest stays


def recognise(dataset: "datasets.Dataset", text_columns: Sequence[str] | str | None = None) -> Shape:
    """The columns whose text is read; `text_columns` names them. Raises DataError."""
    return shapes.recognise(dataset.column_names, rows.sample(dataset), text_columns)


def describe(shape: Shape) -> str:
    """One plain sentence for the user on how rows are read."""
    listed = " and ".join(f"'{column}'" for column in shape.columns)
    return f"text to fill in: tokens of {listed} are hidden, and learned from what stands around them"


def prepare(
    dataset: "datasets.Dataset",
    tokenizer: Any,
    *,
    text_columns: Sequence[str] | str | None = None,
    max_length: int = 512,
    seed: int = 0,
    share: float = SHARE,
    on_bad_row: str = "stop",
) -> Prepared:
    """Tokenise each row, cut it into blocks of at most `max_length`, and hide `share` of each block's tokens.

    Of the tokens chosen, at least one a block, 80 % become the mask token, 10 % a random one, 10 % stay. Special tokens
    are neither chosen nor drawn. Rows that have input_ids and labels are taken as they are. Raises DataError for a
    tokenizer without a mask token, for bad rows (on_bad_row="skip" leaves them out) and if nothing is left.
    """
    check_options(dataset, max_length, on_bad_row)
    if not 0 < share <= 1:
        raise DataError(
            f"share is {share}", "the share of the tokens that are hidden is above 0 and at most 1"
        )
    builder = rows.Unshifted()
    if "input_ids" in dataset.column_names:
        rows.take_ready(dataset, builder, aligned=True)
        return Prepared(builder.dataset(), None, ["input_ids"], builder.stats())
    hide = _Mask(tokenizer, share)
    shape = recognise(dataset, text_columns)
    around = rows.frame(tokenizer)
    room = around.room(max_length)
    front, back = ([IGNORED] * len(part) for part in around)
    for batch in rows.good_batches(
        dataset, shape.columns, lambda row: _read(row, shape), on_bad_row, builder
    ):
        for number, ids in _encode(batch, tokenizer):
            draw = np.random.default_rng([seed, number])
            for start in range(
                0, max(1, len(ids)), room
            ):  # a row without a token is one empty block: dropped
                shown, labels = hide(ids[start : start + room], draw)
                shown = around.around(shown)
                builder.add_labels(shown, [1] * len(shown), [*front, *labels, *back])
        builder.flush()
    return Prepared(builder.dataset(), shape, list(shape.columns), builder.stats())


def plain_tokens(tokenizer: Any) -> np.ndarray:
    """[V] true for tokens that can be hidden, all but the special ones. Raises DataError where nothing hides them."""
    if tokenizer.mask_token_id is None:
        raise DataError(
            "masked_lm hides tokens behind a mask token, and this tokenizer has none",
            "take a model that was trained to fill in (BERT, DistilBERT, RoBERTa), or another task: "
            "causal_lm for models that write on (GPT, Llama), seq2seq_lm for T5 and BART",
        )
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    vocabulary = set(tokenizer.get_vocab().values())
    plain = np.zeros(max(vocabulary) + 1, bool)
    plain[sorted(vocabulary - special - set(tokenizer.all_special_ids))] = True
    return plain


def uncovered(row: Mapping[str, Any]) -> list[int]:
    """The tokens of a prepared row as they were before some were hidden."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [shown if label == IGNORED else label for shown, label in pairs]


class Redraw:
    """Hides other tokens of a prepared row in each epoch: dynamic masking (RoBERTa, arXiv 1907.11692, section 4.1).

    Which ones depends on the seed, the epoch and the row's number alone, so neither on the batch, the process nor on
    where a run was interrupted.
    """

    def __init__(self, tokenizer: Any, seed: int):
        self.hide, self.seed = _Mask(tokenizer, SHARE), seed

    def __call__(self, row: Mapping[str, Any], epoch: int, number: int) -> dict[str, Any]:
        draw = np.random.default_rng([self.seed, epoch, number])
        shown, labels = self.hide(uncovered(row), draw)
        return {**row, "input_ids": shown, "labels": labels}


class _Mask:
    """Hides tokens of a block; the vocabulary without its special tokens is looked up once."""

    def __init__(self, tokenizer: Any, share: float):
        self.plain = plain_tokens(tokenizer)
        self.pool = np.flatnonzero(self.plain)
        self.mask, self.share = tokenizer.mask_token_id, share

    def __call__(self, block: list[int], draw: np.random.Generator) -> tuple[list[int], list[int]]:
        """(ids to show, labels), both [T]."""
        ids = np.array(block, int)
        labels = np.full_like(ids, IGNORED)
        places = np.flatnonzero(self.plain[ids])
        if not len(places):
            return block, labels.tolist()
        # The fraction of a token is drawn, not rounded: the share is right over short rows too.
        count = max(1, int(self.share * len(places) + draw.random()))
        chosen = draw.choice(places, count, replace=False)
        fate = draw.random(count)
        labels[chosen] = ids[chosen]
        ids[chosen[fate < HIDDEN]] = self.mask
        swapped = chosen[(fate >= HIDDEN) & (fate < HIDDEN + SWAPPED)]
        ids[swapped] = draw.choice(self.pool, len(swapped))
        return ids.tolist(), labels.tolist()


def _read(row: dict, shape: Shape) -> str:
    """All text of the row. Raises DataError."""
    if reason := shapes.problem(row, shape):
        raise DataError(reason, "leave such rows out: on_bad_row='skip'")
    if shape.kind == "chat":
        return "\n".join(turn["content"] for turn in shapes.messages(row, shape))
    return "".join(part for part, _ in shapes.to_parts(row, shape))


def _encode(batch: list[tuple[int, str]], tokenizer: Any) -> Iterator[tuple[int, list[int]]]:
    """(number, ids without special tokens) of each row."""
    texts = [text for _, text in batch]
    coded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return ((number, ids) for (number, _), ids in zip(batch, coded, strict=True))
