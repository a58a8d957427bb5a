"""How well columns are focused: the response to one point, and the distance from the truth.

Shapes: N columns, L rows. Amplitudes are complex; dB are of power.
"""

from dataclasses import dataclass

import numpy as np

from llm_finetuner.errors import DataError

FINER = 32  # samples between two rows, where a response is measured
WINDOW, SPREAD = 11, 1.5  # of SSIM, rows


@dataclass(frozen=True)
class Impulse:
    """The response to a point. width: rows between the half-power points. location: rows from where the point is.

    pslr: highest side lobe over the peak, dB. islr: energy of all side lobes over that of the main lobe, dB.
    phase: degrees of the peak from the point's own, in (-180, 180]. peak: its amplitude.
    """

    width: float
    pslr: float
    islr: float
    phase: float
    location: float
    peak: float


def impulse(profile: np.ndarray, position: float, phase: float = 0.0, reach: float = 30.0) -> Impulse:
    """Measure a response [L] to a point at `position` (rows) of `phase` (degrees), side lobes up to `reach` rows away.

    Rows between are those of the band-limited signal (zeros put into its spectrum). The main lobe ends at the first
    minima. Raises DataError where there is no peak.
    """
    profile = _checked(profile)
    if profile.ndim != 1:
        raise DataError(f"a response is one column, got {list(profile.shape)}")
    fine = _finer(profile)
    size = np.abs(fine)
    top = int(size.argmax())
    left, right = _lobe(size, top)
    begin, end = max(0, top - int(reach * FINER)), min(len(size), top + int(reach * FINER) + 1)
    sides = np.concatenate([size[begin:left], size[right + 1 : end]])
    if not size[top] > 0 or not len(sides):
        raise DataError(
            "the response has no peak with side lobes around it", "its peak must lie inside the column"
        )
    half = size[top] / np.sqrt(2)
    before, behind = _crossing(size[: top + 1][::-1], half), _crossing(size[top:], half)
    turned = np.angle(fine[top] * np.exp(-1j * np.radians(phase)), deg=True)
    return Impulse(
        width=(before + behind) / FINER,
        pslr=20 * float(np.log10(sides.max() / size[top])),
        islr=10 * float(np.log10((sides**2).sum() / (size[left : right + 1] ** 2).sum())),
        phase=float(turned),
        location=(top + _vertex(size, top)) / FINER - position,
        peak=float(size[top]),
    )


def around(profile: np.ndarray, position: float, offsets: np.ndarray) -> np.ndarray:
    """Amplitudes of the band-limited signal [L] at these rows from `position`; 0 outside the column."""
    fine = np.abs(_finer(_checked(profile)))
    return np.interp(position + offsets, np.arange(len(fine)) / FINER, fine, 0.0, 0.0)


@dataclass(frozen=True)
class Focused:
    """nmse: energy of the error over that of the truth; 0 dB is what an image of zeros has. psnr: of complex numbers,
    over the truth's brightest. ssim: of amplitudes along columns. coherence: |<y, truth>|, 1 for the truth."""

    nmse: float
    psnr: float
    ssim: float
    coherence: float

    @property
    def nmse_db(self) -> float:
        return 10 * float(np.log10(self.nmse)) if self.nmse else -np.inf


def focused(image: np.ndarray, truth: np.ndarray) -> Focused:
    """Hold images [N, L] against the truth, rows without a whole aperture cut off before. Raises DataError."""
    image, truth = _checked(image), _checked(truth)
    if image.shape != truth.shape or image.ndim != 2:
        raise DataError(f"image and truth must both be [columns, rows], got {image.shape} and {truth.shape}")
    energy, bright = (np.abs(truth) ** 2).sum(), np.abs(truth).max()
    if not energy:
        raise DataError("the truth is zero everywhere: nothing can be held against it")
    error = (np.abs(image - truth) ** 2).sum()
    norm = np.sqrt((np.abs(image) ** 2).sum() * energy)
    return Focused(
        nmse=float(error / energy),
        psnr=10 * float(np.log10(bright**2 * truth.size / error)) if error else np.inf,
        ssim=ssim(np.abs(image), np.abs(truth), bright),
        coherence=float(np.abs(np.vdot(truth, image)) / norm) if norm else 0.0,
    )


def ssim(image: np.ndarray, truth: np.ndarray, span: float) -> float:
    """Structural similarity of amplitudes [N, L] (Wang et al. 2004, IEEE TIP 13), its window along columns alone.

    Neighbouring columns may be of other places, as simulated ones are. span: the range of values.
    """
    taps = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SPREAD**2)
    taps /= taps.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, WINDOW, 1) @ taps

    if image.shape[1] < WINDOW:
        raise DataError(f"SSIM needs columns of at least {WINDOW} rows, got {image.shape[1]}")
    a, b = mean(image), mean(truth)
    var_a, var_b, cov = mean(image**2) - a**2, mean(truth**2) - b**2, mean(image * truth) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float(((2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))).mean())


def _checked(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if not array.size or not np.isfinite(array).all():
        raise DataError(
            "there is nothing to measure" if not array.size else "NaN or infinity cannot be measured"
        )
    return array.astype(complex)


def _finer(profile: np.ndarray) -> np.ndarray:
    """The band-limited signal at FINER samples a row."""
    count = len(profile)
    spectrum = np.fft.fft(profile)
    positive = (count + 1) // 2
    padded = np.zeros(count * FINER, dtype=complex)
    padded[:positive], padded[positive - count :] = spectrum[:positive], spectrum[positive:]
    return np.fft.ifft(padded) * FINER


def _lobe(size: np.ndarray, top: int) -> tuple[int, int]:
    """The first minima left and right of the peak."""
    rises = np.diff(size) > 0
    before, behind = np.flatnonzero(~rises[:top]), np.flatnonzero(rises[top:])
    return (before[-1] + 1 if len(before) else 0), (top + behind[0] if len(behind) else len(size) - 1)


def _crossing(size: np.ndarray, level: float) -> float:
    """Samples from the first, a peak, to where `size` falls below `level`, between two by a line. Raises DataError."""
    below = np.flatnonzero(size < level)
    if not len(below):
        raise DataError("the response does not fall to half its power inside the column")
    i = below[0]
    return i - 1 + (size[i - 1] - level) / (size[i - 1] - size[i])


def _vertex(size: np.ndarray, top: int) -> float:
    """Samples from a peak to the top of the parabola through it and its neighbours."""
    if not 0 < top < len(size) - 1:
        return 0.0
    a, b, c = size[top - 1 : top + 2]
    return 0.5 * (a - c) / (a - 2 * b + c)
