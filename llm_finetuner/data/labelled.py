"""Rows of text with classes -> token ids and labels for a classifier.

A prepared row has input_ids, attention_mask, token_type_ids where the tokenizer gives them, texts (the text or the two,
for a teacher that has another tokenizer) and labels:

    single   [class number]                      one class a text; [-100] where there is none
    multi    C floats, 0 or 1 or between         each of C classes on or off; -100.0 throughout where unknown

`label_columns` says which columns are read, `class_names` what their values mean.
Weakness: a tokenizer without a template for pairs (GPT-2) puts nothing between the two texts. One that gives no
segments (DistilBERT) gives none to a teacher of the same tokens either that has some (BERT), and so hears pairs worse.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llm_finetuner.data.class_names import MEND, column_of, names, reader, to_floats
from llm_finetuner.data.examples import IGNORED, Builder
from llm_finetuner.data.label_columns import Labelled, describe, is_list, is_string, recognise
from llm_finetuner.data.text import BATCH, Prepared
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["Labelled", "describe", "names", "prepare", "recognise"]

TOKEN_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = "texts"


def prepare(
    dataset: "datasets.Dataset",
    tokenizer: Any,
    *,
    labels: Sequence[str],
    text_columns: Sequence[str] | str | None = None,
    max_length: int = 512,
    on_bad_row: str = "stop",
    kind: str | None = None,
    label_names: Sequence[str] | None = None,
) -> Prepared:
    """Tokenise with the tokenizer's own special tokens and number the classes in the order of `labels`.

    A class is found by its name, and by its number too where all names are generic (LABEL_0, LABEL_1, ...);
    `label_names` says what numbers in the data are called. Of a pair that is longer than `max_length` the longer text
    is cut. `kind` ("single" | "multi") is the model's, where it may differ from what the rows show: unlabelled text for
    a multi-label model. Rows that have input_ids are checked and taken as they are. In stats counted_tokens is the
    number of labelled rows, dropped that of rows without a token. Raises DataError for bad rows (on_bad_row="skip"
    leaves them out) and if nothing is left.
    """
    if on_bad_row not in ("stop", "skip"):
        raise DataError(f"on_bad_row is {on_bad_row!r}", "it is 'stop' or 'skip'")
    if kind not in (None, "single", "multi"):
        raise DataError(f"the kind of labels is {kind!r}", "it is 'single' or 'multi'")
    if not len(dataset):
        raise DataError("the dataset has no rows", "check the source of the data")
    if "input_ids" in dataset.column_names:
        return _take_ready(dataset, labels, on_bad_row, kind)
    layout = recognise(dataset, text_columns)
    kind = kind or layout.kind
    special = tokenizer.num_special_tokens_to_add(pair=len(layout.text) == 2)
    if max_length < max(4, special + len(layout.text)):
        least = max(4, special + len(layout.text))
        raise DataError(f"max_length is {max_length}", f"it is {least} tokens or more")
    builder = _Rows([*_columns_of(tokenizer), TEXTS], kind)
    target = reader(dataset, layout, list(labels), kind, label_names)
    for rows in _good_batches(dataset, layout, target, on_bad_row, builder):
        texts = [text for text, _ in rows]
        for number, tokens in enumerate(_encode(texts, tokenizer, max_length, builder)):
            builder.put([*tokens, texts[number]], rows[number][1])
        builder.flush()
    columns = [*layout.text, *([layout.label] if layout.label else [])]
    return Prepared(builder.finish(), layout, columns, builder.stats())


class _Rows(Builder):
    """A Builder whose labels are one list a text, not one number a token."""

    def __init__(self, columns: Sequence[str], kind: str) -> None:
        super().__init__()
        self.columns, self.kind = columns, kind

    def put(self, values: Sequence[list | None], labels: list) -> None:
        """One row: its columns, token ids first, and its labels; a text without any token is dropped."""
        count = len(values[0])
        if not count:
            self.dropped += 1
            return
        self.waiting.append((*values, labels))
        self.examples += 1
        self.tokens += count
        self.counted += labels[0] != IGNORED
        self.longest = max(self.longest, count)

    def flush(self) -> None:
        """Turn what is waiting into Arrow."""
        import pyarrow as pa

        label = pa.int64() if self.kind == "single" else pa.float32()
        wide = {"input_ids": pa.int32(), TEXTS: pa.string()}
        kinds = {**{name: wide.get(name, pa.int8()) for name in self.columns}, "labels": label}
        columns = zip(*self.waiting, strict=True) if self.waiting else [[]] * len(kinds)
        arrays = [pa.array(c, pa.list_(k)) for c, k in zip(columns, kinds.values(), strict=True)]
        self.batches.append(pa.record_batch(arrays, names=list(kinds)))
        self.waiting = []

    def finish(self) -> "datasets.Dataset":
        """What was put and flushed. Raises DataError if that is nothing."""
        if not self.examples:
            what = f"no rows to classify: {self.dropped} without a token, {self.skipped} bad rows left out"
            raise DataError(what, "check the columns of text and label")
        return self.dataset()


def tokens_of(
    texts: Sequence[Sequence[str]], tokenizer: Any, limit: int | None
) -> dict[str, list[list[int]]]:
    """The token columns of texts, or of pairs of them, cut to `limit`: of a pair the longer text."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    cut = {} if limit is None else {"truncation": "longest_first", "max_length": limit}
    coded = tokenizer(*columns, return_attention_mask=True, verbose=False, **cut)
    return {name: coded[name] for name in _columns_of(tokenizer)}


def _columns_of(tokenizer: Any) -> Sequence[str]:
    return TOKEN_COLUMNS if "token_type_ids" in tokenizer.model_input_names else TOKEN_COLUMNS[:2]


def _encode(
    texts: list[list[str]], tokenizer: Any, limit: int, builder: Builder
) -> Iterator[list[list[int]]]:
    """The token columns of each text (or pair), cut to `limit` and counted where cut."""
    if not texts:
        return
    coded = tokens_of(texts, tokenizer, limit)
    at_limit = [texts[row] for row, ids in enumerate(coded["input_ids"]) if len(ids) >= limit]
    if at_limit:  # only these can have been cut
        whole = tokens_of(at_limit, tokenizer, None)["input_ids"]
        builder.truncated += sum(len(ids) > limit for ids in whole)
    for values in zip(*coded.values(), strict=True):
        yield list(values)


def _good_batches(
    dataset: "datasets.Dataset", layout: Labelled, target: Callable, on_bad_row: str, builder: Builder
) -> Iterator[list[tuple[list[str], list]]]:
    """Batches of (texts, labels) without the bad rows."""
    number = 0
    wanted = list(dict.fromkeys([*layout.text, *([layout.label] if layout.label else [])]))
    for batch in dataset.select_columns(wanted).with_format(None).iter(BATCH):
        good = []
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            try:
                texts = [_text_of(row, column) for column in layout.text]
                good.append((texts, target(row.get(layout.label))))
            except DataError as error:
                builder.refuse(number, error, on_bad_row)
        yield good


def _text_of(row: dict, column: str) -> str:
    if row[column] is None or not row[column].strip():
        raise DataError(f"column '{column}' is {'null' if row[column] is None else 'blank'}", MEND)
    return row[column]


# ---- rows that came with input_ids


def _take_ready(
    dataset: "datasets.Dataset", labels: Sequence[str], on_bad_row: str, kind: str | None
) -> Prepared:
    """Rows with input_ids and labels: fill in what is missing and check that lengths and labels fit."""
    tokens = [name for name in TOKEN_COLUMNS if name in dataset.column_names]
    label = next((name for name in ("labels", "label") if name in dataset.column_names), None)
    given = TOKEN_COLUMNS if "token_type_ids" in tokens else TOKEN_COLUMNS[:2]
    texts = [TEXTS] if _holds_texts(dataset) else []
    builder = _Rows([*given, *texts], kind or _ready_kind(dataset, label))
    names_read = [*tokens, *texts, *([label] if label else [])]
    for number, row in enumerate(dataset.select_columns(names_read).with_format(None), 1):
        try:
            checked = _ready_labels(row.get(label), builder.kind, len(labels))
            builder.put([*_ready_tokens(row, given), *(row[name] for name in texts)], checked)
        except DataError as error:
            builder.refuse(number, error, on_bad_row)
        if number % BATCH == 0:
            builder.flush()
    builder.flush()
    return Prepared(builder.finish(), None, ["input_ids"], builder.stats())


def _holds_texts(dataset: "datasets.Dataset") -> bool:
    """Whether the rows have kept their texts, and no column of that name holds something else."""
    kind = dataset.features.arrow_schema.field(TEXTS).type if TEXTS in dataset.column_names else None
    return kind is not None and is_list(kind) and is_string(kind.value_type)


def _ready_kind(dataset: "datasets.Dataset", label: str | None) -> str:
    import pyarrow.compute as compute
    import pyarrow.types as types

    column = column_of(dataset, label) if label else None
    if column is None or not is_list(column.type):
        return "single"
    wide = (compute.max(compute.list_value_length(column)).as_py() or 0) > 1
    return "multi" if wide or types.is_floating(column.type.value_type) else "single"


def _ready_tokens(row: dict, columns: Sequence[str]) -> list[list[int]]:
    ids = row["input_ids"]
    if not isinstance(ids, list) or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise DataError("input_ids is no list of token ids", "prepare the dataset again")
    missing = {name: [int(name == "attention_mask")] * len(ids) for name in columns}
    found = [missing[name] if row.get(name) is None else row[name] for name in columns]
    if any(len(values) != len(ids) for values in found):
        listed = ", ".join(f"{len(v)} {name}" for name, v in zip(columns, found, strict=True))
        raise DataError(f"lengths differ: {listed}", "prepare the dataset again")
    return found


def _ready_labels(value: Any, kind: str, classes: int) -> list:
    given = value if isinstance(value, list) else [value]
    if kind == "multi":
        return to_floats(None if value is None else given, True, int, classes)
    number = IGNORED if given in ([None], [-1]) else given[0] if len(given) == 1 else None
    if number != IGNORED and not (isinstance(number, int) and 0 <= number < classes):
        raise DataError(f"labels {value!r} are no class number below {classes}", "prepare the dataset again")
    return [number]
