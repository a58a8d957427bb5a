"""Range-compressed columns drawn from a seed, as a radar would record them, and what focusing should give.

A column holds points, extended clutter (speckle), thermal noise, bursts of interference and lost pulses. The truth is
the exact matched filter of the same column without the last three.

Shapes: N columns, L pulses. Levels are in dB of the echo of the brightest point, whose amplitude is 1.
"""

from dataclasses import dataclass, replace

import numpy as np

from llm_finetuner.data.sar import Radar, circle, echo, focus, response
from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import check_count, check_number

LEVELS = (-1000, 300)  # dB that complex64 can hold, with room for squares


@dataclass(frozen=True)
class Scene:
    """What a column may hold. Raises RecipeError.

    length: pulses. points: mean of their number (Poisson), anywhere between pulses, of amplitudes log-uniform within
    dynamic_range_db and any phase. clutter_db: variance of the complex Gaussian reflectivity of every pulse.
    noise_db: power of the receiver's noise. bursts: chance of one burst of interference, a tone of burst_db over
    burst_pulses. losses: chance that lost_pulses in a row are missing (0). range_spread: closest ranges are uniform
    within that share of the radar's, so that the chirp rate varies from column to column.
    """

    length: int = 256
    points: float = 4.0
    dynamic_range_db: float = 20.0
    clutter_db: float = -35.0
    noise_db: float = -20.0
    bursts: float = 0.5
    burst_db: float = 15.0
    burst_pulses: tuple[int, int] = (3, 11)
    losses: float = 0.3
    lost_pulses: tuple[int, int] = (2, 7)
    range_spread: float = 0.1

    def __post_init__(self):
        check_count("length", self.length, 2)
        check_number("points", self.points, 0, closed=True)
        check_number("dynamic_range_db", self.dynamic_range_db, 0, closed=True)
        for name in ("clutter_db", "noise_db", "burst_db"):
            check_number(name, getattr(self, name), *LEVELS)
        check_number("range_spread", self.range_spread, 0, 1, closed=True)
        for name in ("bursts", "losses"):
            check_number(name, getattr(self, name), 0, 1 + 1e-9, closed=True)
        for name in ("burst_pulses", "lost_pulses"):
            low, high = getattr(self, name)
            check_count(name, low, 1)
            check_count(name, high, low)
            if high > self.length:
                raise RecipeError(f"{name}={[low, high]} is longer than length={self.length}")


@dataclass(frozen=True)
class Columns:
    """inputs [N, L, 2] complex64: the echo, and the position x + j y: share of the range spread, and of the column.

    truth [N, L, 1] complex64. slant_range [N]: metres. rows: those whose whole aperture is in the column; no other row
    can be scored honestly. Their margin is a delay that a model which looks back can do with.
    """

    inputs: np.ndarray
    truth: np.ndarray
    slant_range: np.ndarray
    rows: slice

    @property
    def echo(self) -> np.ndarray:
        """[N, L]."""
        return self.inputs[..., 0]


def margin(radar: Radar, scene: Scene) -> int:
    """Pulses at each end of a column without a whole aperture: .6 of it, more where ranges spread further."""
    farthest = replace(radar, slant_range=radar.slant_range * (1 + scene.range_spread))
    return int(np.ceil(max(0.6 * radar.aperture, farthest.aperture / 2)))


def simulate(radar: Radar, scene: Scene, count: int, seed: int, first: int = 0) -> Columns:
    """Draw columns first, first + 1, ... Column i hangs on the seed and i alone. Raises RecipeError."""
    check_count("count", count, 1)
    check_count("seed", seed, 0)
    edge = margin(radar, scene)
    if scene.length <= 2 * edge:
        raise RecipeError(
            f"length={scene.length} holds no row with a whole aperture of {radar.aperture:.0f} pulses",
            f"a length above {2 * edge}",
        )
    draws = [np.random.default_rng([seed, first + i]) for i in range(count)]
    spread = scene.range_spread
    share = np.array([draw.random() for draw in draws])
    slant_range = radar.slant_range * (1 + spread * (2 * share - 1))
    corrected = replace(radar, range_cell=None)
    received, clean = np.empty((2, count, scene.length), dtype=complex)
    for i, draw in enumerate(draws):
        ground = _ground(radar, scene, draw)
        clean[i] = _echoes(corrected, scene, slant_range[i], *ground)
        seen = clean[i] if radar.range_cell is None else _echoes(radar, scene, slant_range[i], *ground)
        received[i] = _receive(scene, seen, draw)
    place = share[:, None] + 1j * np.linspace(0, 1, scene.length)
    return Columns(
        np.stack([received, place], -1).astype(np.complex64),
        focus(corrected, clean, slant_range)[..., None].astype(np.complex64),
        slant_range,
        slice(edge, scene.length - edge),
    )


def _ground(
    radar: Radar, scene: Scene, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places of points in pulses, their reflectivities, reflectivity of the clutter), as far as the beam sees."""
    reach = 2 * margin(radar, scene)
    count = draw.poisson(scene.points * (scene.length + reach) / scene.length)
    places = draw.uniform(-reach / 2, scene.length + reach / 2, count)
    level = _amplitude(-draw.uniform(0, scene.dynamic_range_db, count)) if count else np.empty(0)
    points = level * np.exp(2j * np.pi * draw.random(count))
    return places, points, _amplitude(scene.clutter_db) * _gaussian(draw, scene.length + reach)


def _echoes(
    radar: Radar,
    scene: Scene,
    slant_range: float,
    places: np.ndarray,
    points: np.ndarray,
    clutter: np.ndarray,
) -> np.ndarray:
    """What the ground sends back: [L]."""
    pulses = np.arange(scene.length)
    column = points @ echo(radar, np.float64(slant_range), (pulses - places[:, None]) / radar.pulse_rate)
    size = circle(radar, len(clutter), slant_range)
    spread = np.fft.ifft(np.fft.fft(clutter, size) * response(radar, np.array([slant_range]), size)[0])
    begin = (len(clutter) - scene.length) // 2
    return column + spread[begin : begin + scene.length]


def _receive(scene: Scene, column: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """With noise, perhaps a burst of interference, perhaps pulses lost: [L]."""
    received = column + _amplitude(scene.noise_db) * _gaussian(draw, scene.length)
    if draw.random() < scene.bursts:
        where = _stretch(scene.burst_pulses, scene.length, draw)
        turns = draw.uniform(-0.5, 0.5) * np.arange(where.stop - where.start) + draw.random()
        received[where] += _amplitude(scene.burst_db) * np.exp(2j * np.pi * turns)
    if draw.random() < scene.losses:
        received[_stretch(scene.lost_pulses, scene.length, draw)] = 0
    return received


def _stretch(pulses: tuple[int, int], length: int, draw: np.random.Generator) -> slice:
    count = draw.integers(*pulses, endpoint=True)
    start = draw.integers(0, length - count, endpoint=True)
    return slice(start, start + count)


def _gaussian(draw: np.random.Generator, count: int) -> np.ndarray:
    """Complex numbers of variance 1."""
    return (draw.standard_normal(count) + 1j * draw.standard_normal(count)) / np.sqrt(2)


def _amplitude(db: float | np.ndarray) -> float | np.ndarray:
    return 10 ** (db / 20)
