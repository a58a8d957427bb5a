"""Simulated radar columns as files that signals.py reads: train/, validation/ and test/ of .npy, and meta.json.

Each part holds inputs.npy [N, L, 2] and targets.npy [N, L, 1], complex64, and slant_range.npy [N], metres.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetuner.data.sar import Radar
from llm_finetuner.data.sar_scenes import Columns, Scene, margin, simulate
from llm_finetuner.data.signal_files import META, PARTS
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.ranges import check_count

AT_ONCE = 256  # columns drawn together
APART = (
    10**9
)  # numbers between the columns of two parts, so that one does not change with the size of another
KIND = "sar"


def write(
    folder: str | Path,
    radar: Radar,
    scene: Scene,
    counts: dict[str, int],
    seed: int,
    labelled: int | None = None,
) -> dict[str, Any]:
    """Draw columns and write them down. Returns what meta.json holds. Raises RecipeError, DataError.

    counts: columns of each part. labelled: only the first so many of training keep their truth; those of the others
    are NaN.
    """
    if labelled is not None:
        check_count("labelled", labelled, 0)
        if labelled > counts["train"]:
            raise RecipeError(f"labelled={labelled} is more than the {counts['train']} columns to train on")
    folder, edge = Path(folder), margin(radar, scene)
    about = {
        "kind": KIND, "rows": [edge, scene.length - edge], "seed": seed, "columns": counts, "labelled": labelled,
        "radar": dataclasses.asdict(radar), "scene": dataclasses.asdict(scene),
    }  # fmt: skip
    for part in PARTS:
        check_count(f"columns of {part}", counts[part], 1)
    simulate(radar, scene, 1, seed)  # refuses before anything is written what cannot be
    for number, part in enumerate(PARTS):
        (folder / part).mkdir(parents=True, exist_ok=True)
        _write_part(
            folder / part, radar, scene, counts[part], seed, number * APART, labelled if not number else None
        )
    (folder / META).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return about


def _write_part(
    folder: Path, radar: Radar, scene: Scene, count: int, seed: int, first: int, labelled: int | None
) -> None:
    shapes = {
        "inputs": (count, scene.length, 2),
        "targets": (count, scene.length, 1),
        "slant_range": (count,),
    }
    kinds = {"slant_range": np.float64}
    to = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kinds.get(name, np.complex64), shape)
        for name, shape in shapes.items()
    }
    for start in range(0, count, AT_ONCE):
        drawn = simulate(radar, scene, min(AT_ONCE, count - start), seed, first + start)
        block = slice(start, start + len(drawn.inputs))
        to["inputs"][block], to["slant_range"][block] = drawn.inputs, drawn.slant_range
        to["targets"][block] = drawn.truth
    if labelled is not None:
        to["targets"][labelled:] = np.nan
    for array in to.values():
        array.flush()


def read_geometry(about: dict[str, Any], name: str) -> tuple[Radar, Scene]:
    """The radar and the scene that meta.json holds. Raises DataError."""
    try:
        scene = {k: tuple(v) if isinstance(v, list) else v for k, v in about["scene"].items()}
        return Radar(**about["radar"]), Scene(**scene)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: {META} does not hold the radar and the scene: {error}") from error


def read_columns(folder: str | Path, part: str) -> tuple[Radar, Columns]:
    """A simulated part as it was drawn. Raises DataError."""
    folder = Path(folder)
    try:
        about = json.loads((folder / META).read_text(encoding="utf-8"))
        inputs, truth, ranges = (
            np.load(folder / part / f"{name}.npy", mmap_mode="r")
            for name in ("inputs", "targets", "slant_range")
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} does not hold simulated columns: {error}") from error
    radar, _ = read_geometry(about, str(folder))
    return radar, Columns(inputs, truth, np.asarray(ranges), slice(*about["rows"]))
