"""How many examples an answer takes: independent ones, or windows that overlap and so tell less than their number.

A span is the steps of such windows (quality.Quality); 0 stands for independent examples.
"""

ENOUGH = 30  # examples; a bootstrap interval over fewer is too narrow
CRITICAL = {
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
}  # runs -> 97.5 % of Student's t, one fewer degrees
RUN = 3  # spans: the least length of a run of examples that depend on their neighbours
SEPARATE = RUN * min(CRITICAL)  # spans: fewer examples that overlap tell nothing


def least(span: int) -> int:
    """Examples below which nothing can be told."""
    return max(ENOUGH, SEPARATE * span)


def counted(examples: int, span: int, which: str = "") -> str:
    """170 examples | 170 windows (as much as 7 that do not overlap). which: words before what is counted."""
    what = f"{examples:,} {which}{'windows' if span else 'examples'}"
    return f"{what} (as much as {examples // span:,} that do not overlap)" if span else what


def told_apart(span: int) -> str:
    """What tells two models apart on examples of this span."""
    if span:
        return (
            f"Student's t over runs of neighbouring windows (they overlap; at least {SEPARATE} that do not are needed) "
            "leaves out 0"
        )
    return f"a paired bootstrap over {ENOUGH} examples or more leaves out 0"
