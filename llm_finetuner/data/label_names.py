"""The names of labels: those of prepared rows, which travel with the rows, and those that a user gives to numbers."""

import json
import re
from collections.abc import Sequence
from typing import Any

from llm_finetuner.errors import DataError


def put(rows: Any, names: Sequence[str]) -> Any:
    """The same rows with the names in the order of the class numbers."""
    named = rows.select(range(len(rows)))
    named.info.description = json.dumps({"labels": list(names)})
    return named


def by_number(label: str, names: Sequence[str]) -> str:
    """What the user calls a label that is a number: "1" -> names[1]. Raises DataError for one without a name."""
    if not re.fullmatch(r"\d+(\.0+)?", label):
        raise DataError(
            f"label {label!r} is no number, and label_names names numbers", "leave label_names out"
        )
    number = int(float(label))
    if number >= len(names):
        raise DataError(
            f"label {number} has no name: label_names names 0 to {len(names) - 1}", "name that number too"
        )
    return names[number]


def check_among(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise DataError where the user gave a number a name that is none of the labels."""
    strange = [name for name in names if name not in known]
    if strange:
        raise DataError(
            f"label_names has {strange[0]!r}, and the labels of the model are {', '.join(known)}",
            "spell the names as the model has them",
        )


def known(rows: Any, given: Sequence[str] | None, of_model: list[str]) -> list[str]:
    """The labels that rows are about, as far as is known before they are read: in the order of their numbers.

    Prepared rows say it, or the user says it for them (`given`); else the model does.
    """
    ready = "input_ids" in rows.column_names
    return of(rows) or (list(given or ()) if ready else []) or of_model


def of(rows: Any) -> list[str] | None:
    """The names that `put` left; None for rows that came from elsewhere."""
    said = rows.info.description
    if not said.startswith('{"labels"'):
        return None
    try:
        return json.loads(said)["labels"]
    except json.JSONDecodeError as error:  # datasets puts the descriptions of joined rows one after the other
        raise DataError(
            "rows that were prepared for different labels were joined",
            "join their texts, and prepare them together",
        ) from error
