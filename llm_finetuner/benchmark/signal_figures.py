"""What is told of sequences beside their error: images and profiles of the test part, SSIM, responses to single points.

Plain data, for programs and for the report. Complex numbers are shown by their amplitudes.

Shapes: N rows, L samples that count, O outputs, P points.
"""

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from llm_finetuner.benchmark import focus
from llm_finetuner.benchmark.quality import eval_mode
from llm_finetuner.data import sar, sar_files
from llm_finetuner.data.columns import evenly
from llm_finetuner.data.signals import Signals
from llm_finetuner.errors import DataError

AT_ONCE = 16  # rows answered together
EXAMPLES, IMAGE = 2, 64  # rows drawn one by one, and rows of an image
LONGEST = 400  # samples that are drawn: those in the middle
FLOOR = -50.0  # dB below the brightest sample of the truth: what is darker is drawn as dark
POINTS, REACH = 16, 20.0  # single points, and samples on both sides of one that are drawn
EACH = 4  # drawn points a sample
Answer = Callable[[np.ndarray], np.ndarray]  # inputs [N, L, I] -> [N, L, O], complex where the targets are


def details(
    models: dict[str, tuple[nn.Module, Answer]], rows: Signals, shown: Sequence[str]
) -> dict[str, Any]:
    """The key `signals` of a verdict (benchmark/verdict.py). models: each with what it answers.

    shown: the models whose answers are drawn. Rows without targets are left out.
    """
    known = rows.select(np.flatnonzero(rows.labelled))
    span = _span(known)
    with eval_mode(*(model for model, _ in models.values())):
        answers = {name: answer for name, (_, answer) in models.items()}
        return {
            "rows": len(known),
            "first": rows.counted.start + _middle(known).start,
            "channels": known.targets.shape[2],
            "peak": span,
            "ssim": {name: _ssim(answer, known, span) for name, answer in answers.items()},
            **_drawn({name: answers[name] for name in shown}, known, span),
            "points": _points(answers, rows, shown),
        }


def _blocks(rows: Signals) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs [n, L of the row, I], targets [n, L, O]) of a few rows after the other."""
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        yield np.stack(some["inputs"]), np.stack(some["targets"])[:, rows.counted]


def _span(rows: Signals) -> float:
    """The truth's largest amplitude; of real numbers from the least to the largest."""
    ends = [(y.min(), y.max()) if y.dtype.kind != "c" else (0.0, np.abs(y).max()) for _, y in _blocks(rows)]
    return float(max(high for _, high in ends) - min(low for low, _ in ends))


def _ssim(answer: Answer, rows: Signals, span: float) -> float | None:
    """Over all rows and channels; None for fewer samples than its window."""
    total = 0.0
    if len(range(rows.length)[rows.counted]) < focus.WINDOW or not span:
        return None
    for inputs, targets in _blocks(rows):
        said, told = (
            np.moveaxis(_size(y), 2, 1).reshape(-1, targets.shape[1])
            for y in (answer(inputs)[:, rows.counted], targets)
        )
        total += len(inputs) * focus.ssim(said, told, span)
    return total / len(rows)


def _size(y: np.ndarray) -> np.ndarray:
    """What is compared and drawn of a number, in float64."""
    return np.abs(y).astype(float) if np.iscomplexobj(y) else y.astype(float)


def _middle(rows: Signals) -> slice:
    """The samples that are drawn, among those that count."""
    count = len(range(rows.length)[rows.counted])
    first = max(0, (count - LONGEST) // 2)
    return slice(first, min(count, first + LONGEST))


def _drawn(answers: dict[str, Answer], rows: Signals, span: float) -> dict[str, Any]:
    """images: rows, samples, floor, and grey {"truth" or model: bytes in base64}; examples: row, truth, answers."""
    some = evenly(rows, IMAGE)
    truth, *said = [], *([] for _ in answers)
    for inputs, targets in _blocks(some):
        truth += list(_size(targets[:, _middle(rows), 0]))
        for found, answer in zip(said, answers.values(), strict=True):
            found += list(_size(answer(inputs)[:, rows.counted][:, _middle(rows), 0]))
    of = {name: np.stack(found) for name, found in zip(("truth", *answers), (truth, *said), strict=True)}
    bright = np.iscomplexobj(rows.targets)
    if bright:
        of = {name: decibels(size, span) for name, size in of.items()}
    picked = sorted({number * len(some) // EXAMPLES for number in range(EXAMPLES)})
    examples = [
        {
            "row": int(some.numbers[number]),
            "truth": of["truth"][number].round(4).tolist(),
            "answers": {name: of[name][number].round(4).tolist() for name in answers},
        }
        for number in picked
    ]
    grey = {name: base64.b64encode(_grey(lines)).decode() for name, lines in of.items()}
    image = {"rows": len(some), "samples": of["truth"].shape[1], "floor": FLOOR, "grey": grey}
    return {"images": image if bright else None, "examples": examples}


def decibels(size: np.ndarray, top: float) -> np.ndarray:
    """Amplitudes in dB of power, of `top`; FLOOR for what is darker."""
    return 20 * np.log10(np.maximum(size / top, 10 ** (FLOOR / 20)))


def _grey(lines_NL: np.ndarray) -> bytes:
    """0 for FLOOR, 255 for 0 dB and more, row by row."""
    return np.round(255 * (1 - np.minimum(lines_NL, 0) / FLOOR)).astype(np.uint8).tobytes()


# ---- single points


def _points(answers: dict[str, Answer], rows: Signals, shown: Sequence[str]) -> dict[str, Any] | None:
    """Of simulated radar columns the responses to single points without noise: count, ideal, of {model}, profiles.

    Of each: width of the main lobe at half its power over that of the exact matched filter, samples (that width), pslr
    and islr (dB), phase (degrees) and location (samples) away from the point; medians over the points. None for what
    has no peak. profiles: offsets (samples), of {"ideal", those shown: dB}, of the point in the middle.
    """
    about = rows.recording.about
    if about.get("kind") != sar_files.KIND:
        return None
    radar, scene = sar_files.read_geometry(about, rows.recording.name)
    inputs, ranges, places = single_points(radar, scene.length, scene.range_spread)
    ideal = sar.focus(replace(radar, range_cell=None), inputs[..., 0], ranges)
    best = [focus.impulse(one, place) for one, place in zip(ideal, places, strict=True)]
    said = {name: answer(inputs.astype(rows.inputs.dtype))[..., 0] for name, answer in answers.items()}
    found = {name: measured(profiles, places, best) for name, profiles in said.items()}
    middle = POINTS // 2
    drawn = {"ideal": ideal, **{name: said[name] for name in shown if found[name]}}
    reach = np.arange(-REACH, REACH + 0.5 / EACH, 1 / EACH)
    lines = {name: focus.around(y[middle], places[middle], reach) for name, y in drawn.items()}
    return {
        "count": POINTS,
        "ideal": measured(ideal, places, best),
        "of": found,
        "profiles": {
            "offsets": reach.tolist(),
            "of": {name: decibels(line, line.max()).round(2).tolist() for name, line in lines.items()},
        },
    }


def single_points(radar: sar.Radar, length: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns [P, L, 2] of one unit point each, as models read them; their ranges [P] and their places, between pulses.

    spread: share of the radar's range that ranges are within.
    """
    shares = (np.arange(POINTS) + 0.5) / POINTS
    ranges = radar.slant_range * (1 + spread * (2 * shares - 1))
    places = length / 2 + min(8.0, length / 8) * np.cos(np.arange(POINTS))
    echoes = [
        sar.point_target(replace(radar, slant_range=one), length, place)
        for one, place in zip(ranges, places, strict=True)
    ]
    position = shares[:, None] + 1j * np.linspace(0, 1, length)
    return np.stack([np.stack(echoes), position], -1), ranges, places


def measured(
    profiles: np.ndarray, places: np.ndarray, best: Sequence[focus.Impulse]
) -> dict[str, float] | None:
    """Medians over responses [P, L]; None where one of them has no peak."""
    try:
        found = [focus.impulse(one, place) for one, place in zip(profiles, places, strict=True)]
    except DataError:
        return None
    ratio = [one.width / other.width for one, other in zip(found, best, strict=True)]
    return {
        "width": float(np.median(ratio)),
        "samples": float(np.median([one.width for one in found])),
        **{name: float(np.median([getattr(one, name) for one in found])) for name in ("pslr", "islr")},
        **{
            name: float(np.median([math.fabs(getattr(one, name)) for one in found]))
            for name in ("phase", "location")
        },
    }
