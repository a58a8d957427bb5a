"""Which columns of a dataset are texts to classify and which one is their label, by name or as the user says."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_finetuner.data import shapes
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

TEXT_COLUMNS = ("text", "sentence", "content", "document")
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text", "text_pair"),
)
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "stars", "rating")
TEXT_NAMES = {*TEXT_COLUMNS, *(name for pair in TEXT_PAIRS for name in pair)}
RECOGNISED = (
    f"recognised are: {' | '.join(TEXT_COLUMNS)}, or a pair such as premise + hypothesis, and a label: "
    f"{' | '.join(LABEL_COLUMNS)}; or name the columns, the label last: text_columns=[...] / --text-columns a,b"
)


@dataclass(frozen=True)
class Labelled:
    """Which columns are read: one or two of text, and the label (None: unlabelled text)."""

    kind: str  # "single": one class a text; "multi": any number of classes
    text: tuple[str, ...]
    label: str | None


def recognise(dataset: "datasets.Dataset", text_columns: Sequence[str] | str | None = None) -> Labelled:
    """The columns that hold text and label, by their names (case is not regarded), or as the user names them.

    Of `text_columns` the last one is the label if it has a label's name or holds no text. If all of them hold text
    and none has a label's name, another column with a label's name is the label; if there is none, the last one
    is, unless it stands alone or has the name of a text (then the rows are unlabelled). Unnamed text is looked for
    among known pairs, then known single columns, then it is the only column that holds text beside labels.
    Raises DataError if no text is found, a named column does not exist, or the columns named do not fit.
    """
    actual = {column.lower().strip(): column for column in reversed(dataset.column_names)}
    types = dataset.features.arrow_schema
    labels = [c for name in LABEL_COLUMNS if (c := actual.get(name)) and _fits_label(types.field(c).type)]
    if text_columns:
        text, label = _named(dataset, actual, labels, text_columns)
    else:
        text, label = _find_text(dataset, actual), (labels or [None])[0]
    if not text:
        listed = ", ".join(dataset.column_names) or "none"
        raise DataError(f"no column of text to classify among the columns found: {listed}", RECOGNISED)
    multi = label is not None and is_list(types.field(label).type)
    return Labelled("multi" if multi else "single", text, label)


def _find_text(dataset: "datasets.Dataset", actual: dict[str, str]) -> tuple[str, ...]:
    holds = _text_holders(dataset)
    for names in (*TEXT_PAIRS, *((name,) for name in TEXT_COLUMNS)):
        if all(actual.get(name) in holds for name in names):
            return tuple(actual[name] for name in names)
    left = [column for column in holds if column.lower().strip() not in LABEL_COLUMNS]
    return tuple(left) if len(left) == 1 else ()


def _named(
    dataset: "datasets.Dataset", actual: dict[str, str], labels: list[str], wanted: Sequence[str] | str
) -> tuple[tuple[str, ...], str | None]:
    """(columns of text, label) by the rule that `recognise` states."""
    chosen = []
    for name in wanted.split(",") if isinstance(wanted, str) else wanted:
        key = name.strip().lower()
        if key not in actual:
            near = difflib.get_close_matches(key, actual, 1)
            guess = f"; did you mean {actual[near[0]]!r}?" if near else ""
            raise DataError(
                f"there is no column {name!r}{guess}", f"columns found: {', '.join(dataset.column_names)}"
            )
        chosen.append(actual[key])
    holds, (*front, last) = _text_holders(dataset), chosen
    other = next((column for column in labels if column not in chosen), None)
    known = {column: column.lower().strip() for column in chosen}
    misplaced = [column for column in front if known[column] in LABEL_COLUMNS]
    if front and (known[last] in LABEL_COLUMNS or last not in holds):
        text, label = front, last
    elif misplaced:
        raise DataError(f"the label '{misplaced[0]}' is not named last", RECOGNISED)
    elif front and other is None and known[last] not in TEXT_NAMES:
        text, label = front, last
    else:
        text, label = chosen, other
    types = dataset.features.arrow_schema
    if label is not None and not _fits_label(types.field(label).type):
        raise DataError(f"column '{label}' holds {types.field(label).type}, not labels", RECOGNISED)
    if no_text := [column for column in text if column not in holds]:
        raise DataError(f"column '{no_text[0]}' holds {types.field(no_text[0]).type}, no text", RECOGNISED)
    if len(text) > 2:
        raise DataError(f"{len(text)} columns of text are named: {', '.join(text)}", "one or two are read")
    return tuple(text), label


def _text_holders(dataset: "datasets.Dataset") -> list[str]:
    """Columns that hold text in at least one of the first rows."""
    head = dataset.select(range(min(shapes.SAMPLE, len(dataset)))).with_format(None)
    columns = [field.name for field in dataset.features.arrow_schema if is_string(field.type)]
    return [column for column in columns if any(value and value.strip() for value in head[column])]


def is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind)


def is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _fits_label(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if is_list(kind) else kind
    plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_null, is_string)
    return any(fits(kind) for fits in plain)


def describe(layout: Labelled) -> str:
    """One plain sentence for the user on how rows are read."""
    text = " with ".join(f"'{column}'" for column in layout.text)
    if layout.label is None:
        return f"classification: {text} is read, and no column gives a label: a teacher has to"
    learned = "the class of each" if layout.kind == "single" else "the classes of each, none or several"
    return f"classification: {text} is read, '{layout.label}' is {learned}"
