"""The names of the labels of prepared rows, which travel with the rows."""

import json
from collections.abc import Sequence
from typing import Any

from llm_finetuner.errors import DataError


def put(rows: Any, names: Sequence[str]) -> Any:
    """The same rows with the names in the order of the class numbers."""
    named = rows.select(range(len(rows)))
    named.info.description = json.dumps({"labels": list(names)})
    return named


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
