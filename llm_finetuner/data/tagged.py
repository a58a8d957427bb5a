"""Words with a tag each -> token ids, and the tag of a word as the label of its first token.

The other tokens of a word, the special tokens and words without a tag (null, -1, -100) are labelled -100: each word
counts once, however many tokens it has (Devlin et al. 2018, arXiv 1810.04805, section 5.3).
Weakness: byte-level tokenizers (RoBERTa) must be loaded with add_prefix_space=True, or each word is read as the start
of a text.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_finetuner.data import rows
from llm_finetuner.data.examples import IGNORED, check_options
from llm_finetuner.data.label_names import by_number, check_among
from llm_finetuner.data.shapes import Shape
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import NAME_NUMBERS, DataError

if TYPE_CHECKING:
    import datasets

WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "pos_tags", "pos")
OUTSIDE = "O"  # the tag of words that belong to nothing, in every scheme (IOB, BIO, BILOU)
UNTAGGED = (None, -1, IGNORED)
SHOWN = 12  # labels listed in a message
EXPECTED = (
    f"expected are a list of words ({' | '.join(WORDS)}) and a list of their tags ({' | '.join(TAGS)}); "
    "or name the two: text_columns=['words', 'tags'] / --text-columns words,tags"
)


def recognise(dataset: "datasets.Dataset", text_columns: Sequence[str] | str | None = None) -> Shape:
    """The column of words and the column of tags; `text_columns` names them in this order. Raises DataError."""
    if text_columns:
        chosen = rows.named(dataset, text_columns)
        if len(chosen) != 2:
            raise DataError(f"{len(chosen)} column(s) named: {', '.join(chosen)}", EXPECTED)
        words, tags = chosen
        head = rows.sample(dataset)
        for name, fits, what in ((words, _are_words, "words"), (tags, _are_tags, "tags")):
            if not any(fits(row[name]) for row in head):
                raise DataError(f"column {name!r} holds no list of {what}", EXPECTED)
    else:
        words, tags = rows.find(dataset, WORDS, _are_words), rows.find(dataset, TAGS, _are_tags)
        if not words or not tags:
            listed = ", ".join(dataset.column_names) or "none"
            raise DataError(f"no words with their tags among the columns found: {listed}", EXPECTED)
    return Shape("tagged", (words, tags))


def describe(shape: Shape) -> str:
    """One plain sentence for the user on how rows are read."""
    words, tags = shape.columns
    return f"tagged words: each word of '{words}' is given, its tag in '{tags}' is learned"


def names(dataset: "datasets.Dataset", shape: Shape, label_names: Sequence[str] | None = None) -> list[str]:
    """The labels: what the user calls its numbers; or the names of the dataset's ClassLabel; or the tags found, 'O'
    first; or "0" to the largest number. Raises DataError where there is no tag.
    """
    if label_names:
        return list(label_names)
    tags = shape.columns[1]
    known = _class_names(dataset, tags)
    if known:
        return known
    found = {
        tag
        for batch in dataset.select_columns([tags]).with_format(None).iter(1000)
        for row in batch[tags]
        for tag in row or ()
        if tag not in UNTAGGED
    }
    if not found:
        raise DataError(f"column {tags!r} holds no tag", EXPECTED)
    if all(isinstance(tag, int) for tag in found):
        return [str(number) for number in range(max(found) + 1)]
    return sorted(map(str, found), key=lambda tag: (tag != OUTSIDE, tag))


def prepare(
    dataset: "datasets.Dataset",
    tokenizer: Any,
    *,
    labels: Sequence[str],
    text_columns: Sequence[str] | str | None = None,
    max_length: int = 512,
    on_bad_row: str = "stop",
    label_names: Sequence[str] | None = None,
) -> Prepared:
    """Tokenise words and place their tags, as numbers in `labels`; what is longer than `max_length` is cut off.

    `label_names` says what numbers among the tags are called. Rows that have input_ids and labels are taken as they
    are. Raises DataError for a tokenizer that cannot say which word a token belongs to, for bad rows
    (on_bad_row="skip" leaves them out) and if nothing is left.
    """
    check_options(dataset, max_length, on_bad_row)
    builder = rows.Unshifted()
    if "input_ids" in dataset.column_names:
        rows.take_ready(dataset, builder, aligned=True)
        return Prepared(builder.dataset(), None, ["input_ids"], builder.stats())
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which word a token belongs to",
            "tags need a fast tokenizer: load the model's with AutoTokenizer.from_pretrained(..., use_fast=True)",
        )
    shape = recognise(dataset, text_columns)
    number_of = numbers(dataset, shape, labels, label_names)
    around = rows.frame(tokenizer)
    room = around.room(max_length)
    for batch in rows.good_batches(
        dataset, shape.columns, lambda row: _read(row, shape, number_of, labels), on_bad_row, builder
    ):
        texts = [words for _, (words, _) in batch]
        # A batch without any row is nothing that a tokenizer takes.
        coded = texts and tokenizer(texts, is_split_into_words=True, add_special_tokens=False, verbose=False)
        for i, (_, (_, tags)) in enumerate(batch):
            ids, placed = coded["input_ids"][i], _place(tags, coded.word_ids(i))
            builder.truncated += len(ids) > room
            ids = around.around(ids[:room])
            placed = [IGNORED] * len(around.front) + placed[:room] + [IGNORED] * len(around.back)
            builder.add_labels(ids, [1] * len(ids), placed)
        builder.flush()
    return Prepared(builder.dataset(), shape, list(shape.columns), builder.stats())


def _place(tags: list[int], words: list[int | None]) -> list[int]:
    """The tag at the first token of each word, -100 at the others; `words` says whose token each one is."""
    steps = itertools.pairwise([None, *words])
    return [IGNORED if word in (None, before) else tags[word] for before, word in steps]


def numbers(
    dataset: "datasets.Dataset", shape: Shape, labels: Sequence[str], label_names: Sequence[str] | None
) -> Callable[[str | int], int | None]:
    """Tag -> its number in `labels`, or None. Raises DataError for a number that the user gave no name."""
    if not labels:
        raise DataError("there are no labels to learn", "give their names: labels=[...]")
    place = {name: number for number, name in enumerate(labels)}
    if label_names:
        check_among(label_names, labels)
        return lambda tag: place[by_number(str(tag), label_names)]
    known = _class_names(dataset, shape.columns[1])
    own = [place.get(name) for name in known] or [
        place.get(f"LABEL_{i}", place.get(str(i))) for i in range(len(labels))
    ]

    def number_of(tag: str | int) -> int | None:
        if isinstance(tag, str):
            return place.get(tag)
        return own[tag] if 0 <= tag < len(own) else None

    return number_of


def _read(
    row: dict, shape: Shape, number_of: Callable[[str | int], int | None], labels: Sequence[str]
) -> tuple[list[str], list[int]]:
    """(words, numbers of their tags). Raises DataError."""
    hint = "mend the row, or leave such rows out: on_bad_row='skip'"
    for name in shape.columns:
        if not isinstance(row[name], list):
            kind = "is null" if row[name] is None else f"holds {type(row[name]).__name__}, not a list"
            raise DataError(f"column '{name}' {kind}", hint)
    words, tags = (row[name] for name in shape.columns)
    if len(words) != len(tags):
        raise DataError(f"{len(words)} words in '{shape.columns[0]}', {len(tags)} tags", hint)
    placed = []
    for place, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
        if not isinstance(word, str):
            raise DataError(f"word {place} is {word!r}, not text", hint)
        number = IGNORED if tag in UNTAGGED else number_of(tag)
        if number is None:
            listed = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
            raise DataError(
                f"the tag {tag!r} of word {place} ({word!r}) is not among the {len(labels)} labels: {listed}",
                NAME_NUMBERS if str(tag).isdigit() else hint,
            )
        placed.append(number)
    return words, placed


def _class_names(dataset: "datasets.Dataset", tags: str) -> list[str]:
    """The names behind the numbers of a Sequence(ClassLabel) column; none for others."""
    import datasets

    feature = dataset.features[tags]
    inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else []


def _are_words(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def _are_tags(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(tag is None or _is_tag(tag) for tag in value)


def _is_tag(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
