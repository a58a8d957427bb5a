"""What each label weighs in cross-entropy: as the user says, or by how rare it is among the rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_finetuner.data import columns
from llm_finetuner.errors import DataError, RecipeError

BALANCED = "balanced"
Setting = str | Mapping[str, float]  # BALANCED, or weights by name; a label that is not named weighs 1


def of_rows(rows: Any, names: list[str], setting: Setting, exclusive: bool) -> dict[str, float]:
    """The weight of each label of prepared rows, by what has a label. Raises DataError."""
    if exclusive:
        parts = [labels[labels >= 0].astype(np.int64) for labels in columns.flat(rows, "labels")]
        counts_C = sum(np.bincount(part, minlength=len(names)) for part in parts)
        return weigh(setting, dict(zip(names, counts_C.tolist(), strict=True)), int(counts_C.sum()), True)
    parts = [labels.reshape(-1, len(names)) for labels in columns.flat(rows, "labels")]
    known = [part[(part >= 0).any(1)] for part in parts]
    on_C = sum(part.sum(0, dtype=np.float64) for part in known)
    return weigh(setting, dict(zip(names, on_C.tolist(), strict=True)), sum(map(len, known)), False)


def weigh(setting: Setting, counts: Mapping[str, float], total: float, exclusive: bool) -> dict[str, float]:
    """The weight of each label: counts says how often each is given in `total` texts (or words) that have a label.

    balanced: n / (C n_c), so that the rows of each label weigh the same together, and all rows as much as before (after
    King and Zeng 2001, doi 10.1093/oxfordjournals.pan.a004868). Of labels that do not exclude each other n_neg / n_pos,
    the weight of where a label is on. Raises DataError for a label that no row has, or that all have, RecipeError for
    the name of no label.
    """
    if setting != BALANCED:
        strange = [name for name in setting if name not in counts]
        if strange:
            raise RecipeError(
                f"data.class_weights names {strange[0]!r}, and the labels are {', '.join(counts)}",
                "spell the names as the model or the data have them",
            )
        return {name: float(setting.get(name, 1.0)) for name in counts}
    for name, count in counts.items():
        if not count or (not exclusive and count == total):
            whose = "all rows have" if count else "no row has"
            raise DataError(
                f"{whose} the label {name!r}, so nothing balances it",
                f"give weights by name, such as data.class_weights: {{{name}: 1.0}}, or other rows",
            )
    if exclusive:
        return {name: total / (len(counts) * count) for name, count in counts.items()}
    return {name: (total - count) / count for name, count in counts.items()}
