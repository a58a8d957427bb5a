"""The names of the labels of prepared rows, which travel with the rows."""

import json
from collections.abc import Sequence
from typing import Any


def put(rows: Any, names: Sequence[str]) -> Any:
    """The same rows with the names in the order of the class numbers."""
    named = rows.select(range(len(rows)))
    named.info.description = json.dumps({"labels": list(names)})
    return named


def of(rows: Any) -> list[str] | None:
    """The names that `put` left; None for rows that came from elsewhere."""
    said = rows.info.description
    return json.loads(said)["labels"] if said.startswith('{"labels"') else None
