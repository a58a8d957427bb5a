"""Text for terminals, without rich: cleaning what others wrote, and spelling numbers."""

import re

CONTROL = (
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def clean(text: object) -> str:
    """The text without terminal control sequences; newlines and tabs stay."""
    return re.sub(CONTROL, "", str(text).replace("\r\n", "\n"))


def shorten(text: object, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= width else line[: max(width - 3, 0)] + "..."


def count(number: float | None) -> str:
    """124_439_808 -> 124.4M."""
    if number is None:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def listed(numbers: dict[str, float], most: int = 20) -> str:
    """{"bad": 12, "good": 1400} -> "bad 12, good 1,400"; the largest ones first where there are many."""
    names = list(numbers)
    if len(names) > most:
        names = sorted(names, key=lambda name: -numbers[name])[:most]
    more = f", {len(numbers) - most} more" if len(numbers) > most else ""
    spelled = (f"{numbers[n]:,}" if isinstance(numbers[n], int) else f"{numbers[n]:.3g}" for n in names)
    pairs = (f"{name} {number}" for name, number in zip(names, spelled, strict=True))
    return clean(f"{', '.join(pairs)}{more}")


def size(number_of_bytes: float | None) -> str:
    """1536 MiB -> 1.5 GiB."""
    if number_of_bytes is None:
        return "-"
    for step, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number_of_bytes >= step:
            return f"{number_of_bytes / step:.1f} {unit}"
    return f"{number_of_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """3700 -> 1 h 01 min."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def first_line(function: object) -> str:
    """The first line of a docstring, for users: without what it raises."""
    return (function.__doc__ or "").strip().split("\n")[0].split(" Raises ")[0]
