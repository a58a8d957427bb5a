"""Azimuth of a synthetic-aperture radar: the echo of a point from the geometry of the flight, and its matched filter.

All is in SI units, and numpy alone. Notation of Cumming and Wong, Digital Processing of Synthetic Aperture Radar Data
(2005), chapters 4 to 6: a platform flies by at velocity V and sees a point at closest range R0 at time t = 0.

Shapes: N columns, each of its own closest range; L pulses.
"""

from dataclasses import dataclass, replace

import numpy as np

from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.ranges import check_number

BEAMS = ("sinc2", "rect")
TAPERS = ("hamming", "none")


@dataclass(frozen=True)
class Radar:
    """Geometry of a stripmap radar, in metres and seconds. Raises RecipeError.

    antenna_length: along the flight. pulse_rate: pulses a second, which must exceed the Doppler bandwidth. beam: sinc2,
    the two-way pattern of a uniform antenna, seen as far as its Doppler bandwidth goes (beyond it would only alias), or
    rect, a test signal. taper: of the matched filter, over the same band. range_cell: slant-range resolution where
    echoes move through range cells uncorrected; None: that migration has been corrected.
    """

    wavelength: float
    velocity: float
    slant_range: float
    antenna_length: float
    pulse_rate: float
    beam: str = "sinc2"
    taper: str = "hamming"
    range_cell: float | None = None

    def __post_init__(self):
        for name in ("wavelength", "velocity", "slant_range", "antenna_length", "pulse_rate"):
            check_number(name, getattr(self, name), 0)
        if self.range_cell is not None:
            check_number("range_cell", self.range_cell, 0)
        for name, value, known in (("beam", self.beam, BEAMS), ("taper", self.taper, TAPERS)):
            if value not in known:
                raise RecipeError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if self.pulse_rate <= self.doppler_bandwidth:
            raise RecipeError(
                f"pulse_rate={self.pulse_rate:g} Hz is below the Doppler bandwidth of {self.doppler_bandwidth:g} Hz",
                "azimuth would alias: raise it, or take a longer antenna",
            )
        if self.antenna_length <= self.wavelength / 2:
            raise RecipeError(
                f"antenna_length={self.antenna_length:g} m is half a wavelength or less",
                "such an antenna sees all round, and has no aperture to speak of",
            )

    @property
    def chirp_rate(self) -> float:
        """Ka = 2 V^2 / (lambda R0), Hz a second: of the linear FM that the echo nearly is."""
        return 2 * self.velocity**2 / (self.wavelength * self.slant_range)

    @property
    def aperture_time(self) -> float:
        """T = lambda R0 / (La V), seconds that a point is in the beam."""
        return self.wavelength * self.slant_range / (self.antenna_length * self.velocity)

    @property
    def doppler_bandwidth(self) -> float:
        """Ba = 2 V / La = Ka T, Hz."""
        return 2 * self.velocity / self.antenna_length

    @property
    def time_bandwidth(self) -> float:
        """Ba T = 2 lambda R0 / La^2."""
        return self.doppler_bandwidth * self.aperture_time

    @property
    def aperture(self) -> float:
        """Pulses that a point is in the beam."""
        return self.aperture_time * self.pulse_rate

    @property
    def oversampling(self) -> float:
        """Pulse rate over Doppler bandwidth; .886 times it is the 3 dB width in pulses without beam and taper."""
        return self.pulse_rate / self.doppler_bandwidth

    @property
    def migration(self) -> float:
        """(V T / 2)^2 / (2 R0), metres that the range of a point grows from the middle of the aperture to its ends."""
        return (self.velocity * self.aperture_time / 2) ** 2 / (2 * self.slant_range)


AIRBORNE = Radar(
    wavelength=0.03, velocity=100, slant_range=5e3, antenna_length=2.45, pulse_rate=1.25 * 200 / 2.45
)
"""X-band at 5 km: a time-bandwidth product of 50 and an aperture of 62 pulses. Small enough to learn in minutes."""

SENTINEL_1 = Radar(wavelength=0.0555, velocity=7100, slant_range=850e3, antenna_length=12.3, pulse_rate=1500)
"""Like the stripmap mode of Sentinel-1: a product of 624, an aperture of 810 pulses, a migration of 2.2 m."""

RADARS = {"airborne": AIRBORNE, "sentinel-1": SENTINEL_1}


def echo(radar: Radar, slant_range: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Echo of a unit point: w(t) exp(-j 4 pi (R(t) - R0) / lambda), R(t) = sqrt(R0^2 + V^2 t^2). Shapes broadcast.

    slant_range: R0, metres. time: seconds from closest approach. The constant phase of R0 belongs to the reflectivity.
    """
    squared = (radar.velocity * time) ** 2
    grown = squared / (np.sqrt(slant_range**2 + squared) + slant_range)  # R - R0 without cancellation
    seen = time / (radar.wavelength * slant_range / (radar.antenna_length * radar.velocity))
    weight = np.where(np.abs(seen) <= 0.5, np.sinc(seen) ** 2 if radar.beam == "sinc2" else 1.0, 0.0)
    if radar.range_cell is not None:
        weight = weight * np.sinc(grown / radar.range_cell)  # what is left in the cell of R0
    return weight * np.exp(-4j * np.pi / radar.wavelength * grown)


def point_target(radar: Radar, length: int, position: float) -> np.ndarray:
    """The column [L] of one unit point at this pulse, which may lie between two."""
    return echo(radar, np.float64(radar.slant_range), (np.arange(length) - position) / radar.pulse_rate)


def response(radar: Radar, slant_range: np.ndarray, size: int) -> np.ndarray:
    """Spectra [N, size] of unit points at pulse 0 of a circle of `size` pulses, at these ranges [N]."""
    pulses = np.arange(size)
    time = ((pulses + size // 2) % size - size // 2) / radar.pulse_rate
    return np.fft.fft(echo(radar, slant_range[:, None], time))


def matched_filter(radar: Radar, slant_range: np.ndarray, size: int) -> np.ndarray:
    """Spectra [N, size] of the filters that focus points at these ranges to one, at their own pulse and phase.

    H(f) = exp(j 4 pi R0 (D(f) - 1) / lambda), D(f) = sqrt(1 - (lambda f / 2 V)^2), |f| <= Ba / 2: exact for the
    hyperbola R(t). Cumming and Wong (2005), azimuth compression of the range-Doppler algorithm.
    """
    frequency = np.fft.fftfreq(size, 1 / radar.pulse_rate)
    band = np.abs(frequency) <= radar.doppler_bandwidth / 2
    cosine = np.sqrt(1 - (radar.wavelength * np.where(band, frequency, 0) / (2 * radar.velocity)) ** 2)
    phase = 4 * np.pi / radar.wavelength * slant_range[:, None] * (cosine - 1)
    taper = (
        0.54 + 0.46 * np.cos(2 * np.pi * frequency / radar.doppler_bandwidth)
        if radar.taper == "hamming"
        else 1
    )
    bare = band * taper * np.exp(1j * phase)
    corrected = replace(radar, range_cell=None)
    return bare / (bare * response(corrected, slant_range, size)).mean(1, keepdims=True)


def focus(radar: Radar, columns: np.ndarray, slant_range: np.ndarray) -> np.ndarray:
    """Azimuth compression of columns [N, L], each at its own range [N] in metres. Raises DataError."""
    columns = np.asarray(columns)
    if columns.ndim != 2 or not columns.size or len(slant_range) != len(columns):
        raise DataError(
            f"columns must be [columns, pulses] with a range each, got {columns.shape} and {len(slant_range)} ranges"
        )
    length = columns.shape[1]
    size = circle(radar, length, slant_range.max())
    spectra = np.fft.fft(columns, size) * matched_filter(radar, slant_range, size)
    return np.fft.ifft(spectra)[:, :length]


def circle(radar: Radar, length: int, farthest: float) -> int:
    """An FFT's length at which no echo of a column runs into its other end."""
    aperture = replace(radar, slant_range=farthest).aperture
    return 1 << (length + int(np.ceil(aperture))).bit_length()
