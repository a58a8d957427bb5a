"""The answers that stand at the bottom of the terminal, nothing below them: only those can be taken off it again."""

_widths: list[int] = []  # of each, in columns


def answered(width: int) -> None:
    """An answer was written below what there was."""
    _widths.append(width)


def written() -> None:
    """Something else was written, so the answers above it stay."""
    _widths.clear()


def take_last() -> int | None:
    """The width of the last answer, which is to be erased now; None where something stands below it."""
    return _widths.pop() if _widths else None
