"""Sequences of numbers with an answer at every sample, as they lie in files -> rows, read when they are asked for.

    a folder    inputs.npy [N, L, I], targets.npy [N, L, O], meta.json; or train/, validation/, test/ with such files
    .npz        arrays inputs, targets
    .zarr       a group of these, or of groups train, validation, test; attributes as meta.json (the extra zarr)
    .npy        x_inputs.npy, beside which x_targets.npy stands
    .csv        columns x, x1, x_name, ..., y, y1, ..., and series where there are several

Complex or real. A row whose targets are all NaN, or a folder without targets, has no targets: a teacher may answer it.
meta.json may name the samples that count, "rows": [first, behind the last]. Files of .npy are mapped into memory, those
of zarr read by slices.

Shapes: N rows, L samples, I inputs, O outputs.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llm_finetuner.data.signal_files import ARRAYS, EXPECTED, META, PARTS, open_arrays
from llm_finetuner.data.stored import Stored
from llm_finetuner.errors import DataError

PARTLY = "a row without targets is NaN throughout; samples that need not count are named by rows in meta.json"
SCANNED = 2**22  # numbers looked at together when files are checked


@dataclass(frozen=True, eq=False)
class Signals:
    """Rows of one part: {inputs [L, I], targets [L, O], counted [L], scale [O]} by number, in the units of the data.

    A sequence as the loop wants it: len, a number or a list of them, select. Of a row without targets these are NaN;
    where no row has any they are [L, 0].
    """

    inputs: np.ndarray
    targets: np.ndarray
    counted: slice  # samples that are learned and scored
    numbers: np.ndarray  # which rows of the arrays
    recording: "Recording" = field(repr=False)
    part: str = ""

    column_names = (*ARRAYS, "counted", "scale")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int | slice | Sequence[int]) -> dict[str, Any]:
        if isinstance(number, int | np.integer):
            own = self.numbers[number]
            counted = np.zeros(self.inputs.shape[1], bool)
            counted[self.counted] = True
            channels, scale = self.targets.shape[2], self.recording.scales[1]
            return {
                "inputs": np.array(self.inputs[own]), "targets": np.array(self.targets[own]), "counted": counted,
                "scale": scale[:channels] if len(scale) else np.ones(channels),
            }  # fmt: skip
        rows = [self[int(n)] for n in (range(len(self))[number] if isinstance(number, slice) else number)]
        return {name: [row[name] for row in rows] for name in self.column_names}

    def select(self, numbers: Sequence[int]) -> "Signals":
        return replace(self, numbers=self.numbers[list(numbers)])

    @property
    def length(self) -> int:
        return self.inputs.shape[1]

    @property
    def labelled(self) -> np.ndarray:
        """Which rows have targets: [N] bool."""
        if not self.targets.shape[2]:
            return np.zeros(len(self), bool)
        return ~np.isnan(self.targets[self.numbers, 0, 0])


class Joined(Sequence):
    """Rows of several parts, perhaps of other lengths, one part behind the other: to go through, not to train on."""

    def __init__(self, parts: Sequence[Signals]):
        self.places = [(part, number) for part in parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        part, own = self.places[number]
        return part[own]


@dataclass(frozen=True, eq=False)
class Recording:
    """The parts of a source; a part that it does not have holds no rows.

    scales: RMS of the samples to train on that count, of each channel of inputs and of targets: [I] and [O].
    """

    parts: dict[str, Signals]
    name: str
    about: dict[str, Any]  # meta.json

    def part(self, name: str) -> Signals:
        return self.parts[name]

    @functools.cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        train = self.parts["train"]
        return tuple(_rms(array, train.counted) for array in (train.inputs, train.targets))

    def describe(self) -> str:
        """One plain sentence on what was read."""
        train = self.parts["train"]
        counts = ", ".join(f"{len(part):,} {name}" for name, part in self.parts.items())
        without = int((~train.labelled).sum())
        told = f", {without:,} of the former without targets" if without else ""
        told_of = f"{train.targets.dtype} targets" if train.targets.shape[2] else "no targets"
        return (
            f"{counts} rows{told}; {train.length:,} samples, of which {len(range(train.length)[train.counted]):,} "
            f"count; {train.inputs.dtype} inputs, {told_of}"
        )


def read(source: Any, share: float) -> Recording:
    """The parts of a source: a path, a mapping of arrays, or a pair of them; a Recording as it is. Raises DataError.

    share: of the rows that are validation, and as many again test, where the data do not part themselves: the last
    ones, for neighbours are alike. Of a single row it is the last samples.
    """
    if isinstance(source, Recording):
        return source
    if isinstance(source, Signals):
        return source.recording
    parts, about, name = open_arrays(source)
    checked = {part: _checked(arrays, f"{name}{part and ', ' + part}") for part, arrays in parts.items()}
    _check_alike(checked, name)
    counted = _counted(about, {part: arrays[0].shape[1] for part, arrays in checked.items()}, name)
    if set(checked) == {""}:
        checked, counted = _cut(*checked[""], share, counted[""])
    made: dict[str, Signals] = {}
    found = Recording(made, name, about)
    for part in PARTS:
        inputs, targets = checked[part] if part in checked else (x[:0] for x in checked["train"])
        where = counted.get(part, counted["train"])
        made[part] = Signals(inputs, targets, where, np.arange(len(inputs)), found, part)
    return found


# ---- checks


def _checked(arrays: tuple[Any, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as [N, L, channels], looked through once. Raises DataError."""
    inputs = shaped(arrays[0], f"{name}: inputs")
    if arrays[1] is None:
        targets = np.empty((*inputs.shape[:2], 0), inputs.dtype)
    else:
        targets = shaped(arrays[1], f"{name}: targets")
    if inputs.shape[:2] != targets.shape[:2]:
        raise DataError(
            f"{name}: inputs are {inputs.shape[0]} rows of {inputs.shape[1]} samples, targets {targets.shape[0]} of "
            f"{targets.shape[1]}",
            "give each sample its target; of rows without targets all are NaN",
        )
    if not inputs.size:
        raise DataError(f"{name}: inputs are empty, {list(inputs.shape)}", EXPECTED)
    step = max(1, SCANNED // (inputs.shape[1] * inputs.shape[2]))
    for start in range(0, len(inputs), step):
        block = slice(start, start + step)
        _check_finite(inputs[block], start, f"{name}: inputs", "put zeros for lost samples")
        if targets.shape[2]:
            told = np.array(targets[block])
            told[np.isnan(told).all((1, 2))] = 0  # rows without targets
            _check_finite(told, start, f"{name}: targets", PARTLY)
    return inputs, targets


def _check_alike(checked: dict[str, tuple[np.ndarray, np.ndarray]], name: str) -> None:
    """Raise DataError for parts of unlike channels; a part may have no targets at all."""
    for place, what in enumerate(ARRAYS):
        found = {part: arrays[place].shape[2] for part, arrays in checked.items() if arrays[place].shape[2]}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{count} in {part}" for part, count in found.items())
            raise DataError(f"{name}: channels of {what}: {told}", "the same channels in every part")


def _rms(array: np.ndarray, counted: slice) -> np.ndarray:
    """Of each channel, rows without targets left out; 1 for a channel that is 0 throughout, or not known."""
    power, count, step = np.zeros(array.shape[2]), 0, max(1, SCANNED // max(1, array[0].size))
    for start in range(0, len(array), step):
        block = np.abs(array[start : start + step, counted]).astype(float) ** 2
        known = ~np.isnan(block).any((1, 2))
        power += block[known].sum((0, 1), dtype=float)
        count += int(known.sum()) * block.shape[1]
    rms = np.sqrt(power / max(1, count))
    return np.where(rms > 0, rms, 1.0)


def shaped(array: Any, name: str) -> np.ndarray:
    """Numbers as [N, L, channels]. Raises DataError."""
    array = array_of(array, name)
    if array.dtype.kind not in "fciu":
        raise DataError(
            f"{name} are {array.dtype}, not numbers", "real or complex numbers of one length a row"
        )
    if not np.can_cast(array.dtype, complex):
        raise DataError(f"{name} are {array.dtype}, wider than what is computed in", "array.astype(complex)")
    if array.ndim not in (2, 3):
        raise DataError(f"{name} are {list(array.shape)}", "[rows, samples, channels], or [rows, samples]")
    return np.asarray(array)[..., None] if array.ndim == 2 else array


def array_of(numbers: Any, name: str) -> np.ndarray | Stored:
    """What was given, as an array. Raises DataError."""
    if isinstance(numbers, np.ndarray | Stored):
        return numbers
    try:
        return np.asarray(numbers)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on another device
        raise DataError(
            f"{name} are no array: {str(error).splitlines()[0]}",
            "numbers, of one length a row, as numpy reads them",
        ) from error


def _check_finite(block: np.ndarray, start: int, name: str, hint: str) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        row, sample, channel = np.argwhere(~finite)[0].tolist()
        raise DataError(
            f"{name} hold {block[row, sample, channel]} in row {start + row}, sample {sample}, channel {channel}",
            hint,
        )


def _counted(about: dict[str, Any], lengths: dict[str, int], name: str) -> dict[str, slice]:
    """The samples that count in each part. Raises DataError."""
    given = about.get("rows")
    if given is None:
        return {part: slice(0, length) for part, length in lengths.items()}
    whole = isinstance(given, list) and len(given) == 2 and all(type(end) is int for end in given)
    if not whole or not 0 <= given[0] < given[1] <= min(lengths.values()):
        raise DataError(
            f"{name}: {META} names rows {given!r} of {min(lengths.values())} samples",
            "[first, behind the last] of the samples that count",
        )
    return dict.fromkeys(lengths, slice(*given))


def _cut(
    inputs: np.ndarray, targets: np.ndarray, share: float, counted: slice
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, slice]]:
    """Training, validation and test part one behind the other: rows, or of a single row its samples."""
    alone = len(inputs) == 1
    total = len(range(inputs.shape[1])[counted]) if alone else len(inputs)
    held = round(share * total)
    if 2 * held >= total:
        raise DataError(
            f"of {total} {'samples' if alone else 'rows'} nothing is left to train on beside {held} for validation "
            f"and {held} to test",
            "a smaller --eval-fraction (data.eval_fraction), or parts of their own: train/, validation/, test/",
        )
    ends = [0, total - 2 * held, total - held, total]
    found, where = {}, {}
    for part, low, high in zip(PARTS, ends, ends[1:], strict=False):
        if high == low:
            continue
        if alone:
            low, high = low + counted.start, high + counted.start
            found[part], where[part] = (inputs[:, low:high], targets[:, low:high]), slice(0, high - low)
        else:
            found[part], where[part] = (inputs[low:high], targets[low:high]), counted
    return found, where
