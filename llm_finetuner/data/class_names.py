"""What the values of a label column mean: the names of the classes, and numbers or floats for a model.

A row without a label (null, "", NaN, -1, -100) is kept, for it can still learn from a teacher; -1 is a class where
the model has a class of that name. A list column is `multi`: lists of floats or bools, and lists of whole numbers
that are all 0 or 1 and as long as there are classes, give each class its value; any other list names the classes.
Weakness: of two classes, [0, 1] could name both, and is read as off, on.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_finetuner.data.examples import IGNORED
from llm_finetuner.data.label_columns import Labelled, is_list
from llm_finetuner.data.label_names import by_number, check_among
from llm_finetuner.errors import NAME_NUMBERS, DataError

if TYPE_CHECKING:
    import datasets

UNLABELLED = ("", "-1", str(IGNORED))
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MEND = "mend the row, or leave such rows out: on_bad_row='skip'"


def names(
    dataset: "datasets.Dataset", layout: Labelled, label_names: Sequence[str] | None = None
) -> list[str]:
    """The names of the classes in order: the user's for its numbers, those of a ClassLabel, else the distinct values.

    Numbers are sorted as numbers, other names alphabetically; lists with a value for each class give "0", "1", ...
    What cannot be a label is passed over, for `prepare` tells its row; no label at all gives []. Raises DataError
    if the numbers are measurements rather than classes.
    """
    if label_names:
        return list(label_names)
    if layout.label is None:
        return []
    if own := _own_names(dataset, layout.label):
        return own
    width = _full_width(dataset, layout.label) if layout.kind == "multi" else None
    if width is not None:
        return [str(number) for number in range(width)]
    values = _members(column_of(dataset, layout.label)).unique().to_pylist()
    found = {_name_of(value, None) for value in values if not _is_broken(value)} - set(UNLABELLED)
    if not found and any(_is_broken(value) for value in values):
        what = f"column '{layout.label}' holds numbers that are not whole: measurements, not classes"
        raise DataError(what, "give each row a class, or name another column as the last one")
    return sorted(found, key=float) if all(map(NUMBER.fullmatch, found)) else sorted(found)


def _own_names(dataset: "datasets.Dataset", label: str) -> list[str]:
    """Names that come with the column, whose values are then their numbers; [] if there are none."""
    import datasets
    import pyarrow.types as types

    feature = dataset.features[label]
    if is_list(dataset.features.arrow_schema.field(label).type):
        feature = feature.feature
    elif types.is_boolean(dataset.features.arrow_schema.field(label).type):
        return ["False", "True"]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else []


def _full_width(dataset: "datasets.Dataset", label: str, classes: int | None = None) -> int | None:
    """Length of lists that give each class its value; None where lists name classes (rule: top of the file)."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    column = column_of(dataset, label)
    member = column.type.value_type
    if _own_names(dataset, label) or not types.is_primitive(member):
        return None
    lengths = [n for n in compute.unique(compute.list_value_length(column)).to_pylist() if n]
    if types.is_floating(member) or types.is_boolean(member):
        return max(lengths, default=0)
    values = set(_members(column).unique().to_pylist()) - {-1, IGNORED}
    fits = len(lengths) == 1 and lengths[0] > 1 and lengths[0] == (classes or lengths[0])
    return lengths[0] if fits and values <= {0, 1} else None


def column_of(dataset: "datasets.Dataset", name: str) -> Any:
    """A whole column as Arrow."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def _members(column: Any) -> Any:
    import pyarrow.compute as compute

    return compute.list_flatten(column) if is_list(column.type) else column


def _is_broken(value: object) -> bool:
    return isinstance(value, float) and not math.isnan(value) and not value.is_integer()


def _name_of(value: object, own: list[str] | None) -> str:
    """The name that a value stands for; "" for none. Raises DataError for a number that is not whole."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if _is_broken(value):
        raise DataError(f"label {value} is not a whole number", "a class is a name or a whole number")
    if isinstance(value, str):
        return value.strip()
    number = int(value)
    return own[number] if own and 0 <= number < len(own) else str(number)


def reader(
    dataset: "datasets.Dataset",
    layout: Labelled,
    labels: list[str],
    kind: str,
    label_names: Sequence[str] | None = None,
) -> Callable[[Any], list]:
    """value of the label column -> the row's `labels`; raises DataError for a label that is not known.

    label_names: what the user calls the numbers 0, 1, ... of the column.
    """
    known = {name: number for number, name in enumerate(labels)}
    if not labels or len(known) < len(labels):
        raise DataError(f"the names of the classes are {labels}", "there is at least one, each once")
    if all(name == f"LABEL_{number}" for number, name in enumerate(labels)):
        known |= {str(number): number for number in range(len(labels))}
    if layout.kind == "multi" and kind == "single":
        what = f"column '{layout.label}' holds lists of labels, and this model gives each text one class"
        raise DataError(what, "make the task multi-label, or name a column with one label a row")
    own = _own_names(dataset, layout.label) if layout.label else []
    own = own if any(name in known for name in own) else []  # else the numbers themselves are the classes
    label_names = list(label_names or ())
    check_among(label_names, labels)
    listed = ", ".join(repr(name) for name in labels[:20]) + (", ..." if len(labels) > 20 else "")

    def find(value: object) -> int | None:
        name = _name_of(value, [] if label_names else own)
        if label_names and name not in UNLABELLED:
            name = by_number(name, label_names)
        if name not in known and name not in UNLABELLED:
            raise DataError(
                f"label {name!r} in column '{layout.label}' is not known; known are {listed}",
                NAME_NUMBERS if NUMBER.fullmatch(name) else MEND,
            )
        return known.get(name)

    if kind == "single":
        return lambda value: [IGNORED if (number := find(value)) is None else number]
    width = len(label_names or labels)
    full = layout.kind == "multi" and _full_width(dataset, layout.label, width) is not None
    if full and label_names:
        return _reordered(label_names, labels)
    return lambda value: to_floats(value if layout.kind == "multi" else [value], full, find, len(labels))


def _reordered(names: list[str], labels: list[str]) -> Callable[[list | None], list[float]]:
    """A value for each of `names` -> one for each of `labels`. Raises DataError where some have none."""
    if len(names) < len(labels):
        raise DataError(
            f"lists give values to {', '.join(names)}, and the labels of the model are {', '.join(labels)}",
            "give every label a value, and a name in label_names",
        )
    order = [names.index(label) for label in labels]

    def read(value: list | None) -> list[float]:
        given = to_floats(value, True, int, len(names))
        return [given[place] for place in order]

    return read


def to_floats(value: list | None, full: bool, find: Callable, classes: int) -> list[float]:
    """The floats of a row for each class; `full` says that the list already gives each class its value."""
    unknown = [float(IGNORED)] * classes
    if value is None or (full and value and all(member in (-1, IGNORED) for member in value)):
        return unknown
    if full:
        return _checked_floats(value, classes)
    numbers = [find(member) for member in value]
    if numbers == [None]:
        return unknown
    if None in numbers:
        raise DataError("a list of labels has an empty member", MEND)
    if len(set(numbers)) < len(numbers):
        what = f"a list of labels names a class twice: {value}"
        raise DataError(what, f"a list of 0 and 1 for each class would have {classes} values in every row")
    return [float(number in numbers) for number in range(classes)]


def _checked_floats(value: list, classes: int) -> list[float]:
    if len(value) != classes:
        raise DataError(f"{len(value)} values where there are {classes} classes", MEND)
    if not all(member is not None and 0 <= member <= 1 for member in value):
        raise DataError(f"{value} are no values between 0 and 1", MEND)
    return [float(member) for member in value]
