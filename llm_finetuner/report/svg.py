"""The little that our charts need of SVG: scales with ticks, and a frame. Colours are the page's, by class name.

Inline SVG follows the page into dark mode and needs no font and no file; a picture drawn by matplotlib does not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 290  # of a chart, in its own units: near pixels where it stands
SHADES = 12  # of a picture
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44  # margins


@dataclass(frozen=True)
class Scale:
    """Values low..high onto start..end, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        share = (_of(value, self.log) - _of(self.low, self.log)) / (
            _of(self.high, self.log) - _of(self.low, self.log)
        )
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the scale, about `count` of them."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = range(first, last + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**power for power in decades for d in digits]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / (count + 2))]
        step = nice_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _of(value: float, log: bool) -> float:
    return math.log(value) if log else value


def nice_step(rough: float) -> float:
    """The least of 1, 2, 2.5, 5, 10 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * (1 - 1e-9))


def scale(
    values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.06
) -> Scale:
    """A scale that holds all values, with a little room at both ends."""
    low, high = min(values), max(values)
    if log:
        ratio = max(high / low, 1.2) ** room
        low, high = (low / ratio, high * ratio) if high > low else (low / 1.5, high * 1.5)
    else:
        gap = (high - low) * room or abs(high) * 0.1 or 1.0
        low, high = low - gap, high + gap
    return Scale(low, high, start, end, log)


def spread(values: Sequence[float], factor: float) -> bool:
    """Whether a logarithmic scale is called for: all values above 0, the largest `factor` times the smallest."""
    return min(values) > 0 and max(values) / min(values) > factor


def label(value: float) -> str:
    """A tick's number, short: 1200000 -> 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def frame(
    x: Scale, y: Scale, x_title: str, y_title: str, y_ticks: Callable[[float], str] = label
) -> list[str]:
    """Grid lines, numbers and titles of both axes. y_ticks: what numbers of the upright axis are written as."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        parts.append(line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(text(LEFT - 6, y(value) + 4, y_ticks(value), "tick", "end"))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="title" text-anchor="middle" transform="translate(9 {middle}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    return parts + floor(x, bottom, x_title)


def floor(
    x: Scale, bottom: float, title: str, ticks: Callable[[float], str] = label, left: float = LEFT
) -> list[str]:
    """The level axis at the height `bottom`, with its numbers and title."""
    parts, room = [line("axis", left, bottom, WIDTH - RIGHT, bottom)], -math.inf
    for value in x.ticks():
        if x(value) < room:
            continue  # its number would run into the one before
        room = x(value) + 36
        parts.append(line("axis", x(value), bottom, x(value), bottom + 4))
        parts.append(text(x(value), bottom + 17, ticks(value), "tick", "middle"))
    parts.append(text((left + WIDTH - RIGHT) / 2, bottom + BOTTOM - 6, title, "title", "middle"))
    return parts


def drawing(parts: list[str], says: str, height: float = HEIGHT) -> str:
    """The whole picture; `says` describes it to those who cannot see it."""
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(says)}">\n{body}\n</svg>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def path(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<path class="{kind}" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>'


def area(kind: str, above: Sequence[tuple[float, float]], below: Sequence[tuple[float, float]]) -> str:
    """What lies between two lines of the same x."""
    points = " ".join(f"{x},{y}" for x, y in [*above, *reversed(below)])
    return f'<polygon class="{kind}" points="{points}"/>'


def pixels(rows: Sequence[bytes], x: Scale, y: Scale) -> str:
    """A picture [rows, columns] over both scales: the larger a byte, the more ink. Runs of one shade are one line.

    Not a bitmap: it follows the page into dark mode, and a page that shows none of these needs to allow none.
    """
    runs: list[list[str]] = [[] for _ in range(SHADES)]
    for number, row in enumerate(rows):
        begin, shades = 0, [value * SHADES // 256 for value in row]
        for end in range(1, len(shades) + 1):
            if end == len(shades) or shades[end] != shades[begin]:
                runs[shades[begin]].append(f"M{begin} {number}.5h{end - begin}")
                begin = end
    wide, high = (x(len(rows[0])) - x(0)) / len(rows[0]), (y(len(rows)) - y(0)) / len(rows)
    lines = [
        f'<path class="pixels" stroke-opacity="{shade / (SHADES - 1):.2f}" d="{"".join(found)}"/>'
        for shade, found in enumerate(runs)
        if shade and found
    ]
    return f'<g transform="translate({x(0):g} {y(0):g}) scale({wide:.6g} {high:.6g})">\n{chr(10).join(lines)}\n</g>'


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def marker(shape: str, kind: str, x: float, y: float, size: float = 5, title: str = "") -> str:
    """A circle, ring, square, diamond or triangle around (x, y), with a tooltip."""
    said = f"<title>{escape(title)}</title>" if title else ""
    if shape in ("circle", "ring"):
        return f'<circle class="{kind} {shape}" cx="{x}" cy="{y}" r="{size}">{said}</circle>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    }[shape]
    points = " ".join(f"{x + size * dx:g},{y + size * dy:g}" for dx, dy in corners)
    return f'<polygon class="{kind} {shape}" points="{points}">{said}</polygon>'
