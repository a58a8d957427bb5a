"""Whole columns of prepared rows as numpy arrays, without a Python object for every token."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_finetuner.data.label_columns import is_list

BATCH = 1000  # rows at a time


def flat(rows: Any, name: str) -> Iterator[np.ndarray]:
    """The values of a list column, one array for each batch of rows."""
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        yield batch[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def lengths(rows: Any, name: str = "input_ids") -> np.ndarray:
    """Tokens of each row, or of another list column."""
    import pyarrow.compute as compute

    parts = rows.with_format("arrow").iter(batch_size=BATCH)
    return np.concatenate([compute.list_value_length(part[name]).to_numpy() for part in parts])


def examples(dataset: Any, numbers: list[int]) -> list[dict[str, Any]]:
    """Some rows, each as a mapping of its columns."""
    picked = dataset[numbers]
    return [dict(zip(picked, values, strict=True)) for values in zip(*picked.values(), strict=True)]


def evenly(rows: Any, count: int | None) -> Any:
    """`count` rows, evenly spaced over all; None takes all."""
    if count is None or count >= len(rows):
        return rows
    return rows.select([i * len(rows) // count for i in range(count)])


def by_row(rows: Any) -> Iterator[dict[str, Any]]:
    """Each row with its list columns: of numbers as numpy arrays, of texts as lists."""
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        columns = ((name, batch[name].combine_chunks()) for name in batch.column_names)
        parts = {name: _lists(column) for name, column in columns if is_list(column.type)}
        for values in zip(*parts.values(), strict=True):
            yield dict(zip(parts, values, strict=True))


def _lists(column: Any) -> list:
    import pyarrow.compute as compute
    import pyarrow.types as types

    if not types.is_primitive(column.type.value_type):
        return column.to_pylist()
    ends = compute.list_value_length(column).to_numpy(zero_copy_only=False).cumsum()[:-1]
    return np.split(column.flatten().to_numpy(zero_copy_only=False), ends)
