"""Arrays of zarr, read by slices as memory maps are: signals.py sees [N, L, channels] and reads what it asks for."""

from typing import Any

import numpy as np


class Stored:
    """Some rows of an array on disk. A slice of rows is another of these; what else is asked for is read: an array."""

    def __init__(self, held: Any, rows: range | None = None):
        self.held, self.rows = held, range(held.shape[0]) if rows is None else rows
        self.shape, self.dtype = (len(self.rows), *held.shape[1:]), np.dtype(held.dtype)
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            picked = self.rows[first]
            if not rest:
                return Stored(self.held, picked)
            rows = slice(picked.start, picked.stop, picked.step)
        elif isinstance(first, int | np.integer):
            rows = self.rows[first]
        else:
            rows = np.asarray(self.rows)[first]
        return self.held.oindex[(rows, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.held[self.rows.start : self.rows.stop], dtype)
