"""Rows whose labels are compared where they stand, without a shift: checks, counts, bad rows, special tokens."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llm_finetuner.data import shapes
from llm_finetuner.data.examples import Builder
from llm_finetuner.data.text import BATCH
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets


T = TypeVar("T")


class Unshifted(Builder):
    """A builder that counts every label, the first one too; labels may be longer or shorter than input_ids."""

    first = 0
    uncounted = "rows without a counted label"
    hint = "check the columns that were read, and that max_length is not too small"


class Frame(NamedTuple):
    """The ids that a tokenizer puts before a text and behind it."""

    front: list[int]
    back: list[int]

    def room(self, max_length: int) -> int:
        """Tokens of text that fit into `max_length`. Raises DataError where none does."""
        left = max_length - len(self.front) - len(self.back)
        if left < 1:
            raise DataError(
                f"max_length is {max_length}, and the tokenizer adds {len(self.front) + len(self.back)} special tokens",
                "give a larger max_length",
            )
        return left

    def around(self, ids: list[int]) -> list[int]:
        return [*self.front, *ids, *self.back]


def frame(tokenizer: Any, target: bool = False) -> Frame:
    """What stands around a text, or around one that a decoder writes (`target`).

    Measured on one letter: fast tokenizers of transformers 5 have no build_inputs_with_special_tokens.
    """
    side = "text_target" if target else "text"
    inner = list(tokenizer(**{side: "x"}, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(**{side: "x"})["input_ids"])
    for start in range(len(whole) - len(inner) + 1):
        end = start + len(inner)
        if inner and whole[start:end] == inner:
            return Frame(whole[:start], whole[end:])
    raise DataError(
        f"the tokenizer makes {inner} of 'x', and {whole} with its special tokens",
        "take a tokenizer that has an unknown token and puts special tokens around a text, not into it",
    )


def sample(dataset: "datasets.Dataset") -> list[dict]:
    """The first rows, from which columns are recognised."""
    return dataset.select(range(min(shapes.SAMPLE, len(dataset)))).to_list()


def find(dataset: "datasets.Dataset", names: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    """The first of these columns with a sampled value that fits; case does not count."""
    actual = {column.lower().strip(): column for column in reversed(dataset.column_names)}
    head = sample(dataset)
    found = (actual[name] for name in names if name in actual)
    return next((column for column in found if any(fits(row[column]) for row in head)), None)


def named(dataset: "datasets.Dataset", wanted: Sequence[str] | str) -> list[str]:
    """The columns that a user named: a list, or names with commas between. Raises DataError."""
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    return [column(dataset, name) for name in wanted]


def column(dataset: "datasets.Dataset", name: str) -> str:
    """The column of this name; case does not count. Raises DataError."""
    actual = {column.lower().strip(): column for column in reversed(dataset.column_names)}
    key = name.strip().lower()
    if key not in actual:
        near = difflib.get_close_matches(key, actual, 1)
        guess = f"; did you mean {actual[near[0]]!r}?" if near else ""
        listed = ", ".join(dataset.column_names)
        raise DataError(f"there is no column {name!r}{guess}", f"columns found: {listed}")
    return actual[key]


def good_batches(
    dataset: "datasets.Dataset",
    columns: Sequence[str],
    read: Callable[[dict], T],
    on_bad_row: str,
    builder: Builder,
) -> Iterator[list[tuple[int, T]]]:
    """Batches of (1-based number, what `read` made of the row); rows that it refuses (DataError) are bad rows."""
    number = 0
    for batch in dataset.select_columns(list(dict.fromkeys(columns))).with_format(None).iter(BATCH):
        good = []
        for values in zip(*batch.values(), strict=True):
            number += 1
            try:
                good.append((number, read(dict(zip(batch, values, strict=True)))))
            except DataError as error:
                builder.refuse(number, error, on_bad_row)
        yield good


def take_ready(dataset: "datasets.Dataset", builder: Builder, aligned: bool) -> None:
    """Rows that came with input_ids and labels, of one length where `aligned`. Raises DataError."""
    if "labels" not in dataset.column_names:
        raise DataError(
            f"rows with input_ids and no labels: {', '.join(dataset.column_names)}",
            "give rows of text, which are tokenised here, or prepared rows with their labels",
        )
    names = [name for name in ("input_ids", "attention_mask", "labels") if name in dataset.column_names]
    for number, row in enumerate(dataset.select_columns(names).with_format(None), 1):
        ids, labels = row["input_ids"], row["labels"]
        if not all(
            isinstance(part, list) and all(isinstance(i, int) for i in part) for part in (ids, labels)
        ):
            raise DataError(
                f"row {number}: input_ids and labels are no lists of numbers", "prepare the dataset again"
            )
        mask = row.get("attention_mask") or [1] * len(ids)
        if len(mask) != len(ids) or (aligned and len(labels) != len(ids)):
            lengths = f"{len(ids)} input_ids, {len(mask)} attention_mask, {len(labels)} labels"
            raise DataError(f"row {number}: lengths differ: {lengths}", "prepare the dataset again")
        builder.add_labels(ids, mask, labels)
        if number % BATCH == 0:
            builder.flush()
    builder.flush()
