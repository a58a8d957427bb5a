"""How a table of numbers over time will be read: its layout, times, windows of each part and first rows. No torch."""

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any

from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_series import Series

SHOWN, WIDTH = 3, 8  # rows and channels
CALLED = {"train": "to train", "validation": "to select on", "test": "to test"}


@dataclass(frozen=True)
class SeriesSight:
    """examples: training windows; channels: series of one window, on average. windows: of each part."""

    sentence: str
    rows: int
    channels: list[str]
    groups: int
    frequency: str | None
    first: str
    last: str
    season: int
    lookback: int
    horizon: int
    windows: dict[str, int]
    head: list[list[str]]  # the names of the columns, then rows
    examples: int
    each: float  # channels of a window, on average
    doubts: tuple[str, ...]  # what was read otherwise than it may be meant

    def show(self, screen: Any) -> None:
        """For people."""
        for doubt in self.doubts:
            screen.warn(doubt)
        screen.show(self.sentence)
        screen.show(self.times)
        screen.show(self.cut)
        screen.table(self.head[0], self.head[1:])

    @property
    def times(self) -> str:
        """Rows, times and frequency, in words."""
        of = f" in {self.groups} groups of other lengths" if self.groups > 1 else ""
        clock = f", every {self.frequency}" if self.frequency else ""
        season = f", season of {self.season}" if self.season > 1 else ""
        return f"{self.rows:,} rows{of} from {self.first} to {self.last}{clock}{season}"

    @property
    def cut(self) -> str:
        """The windows of each part, in words."""
        counts = ", ".join(f"{self.windows[name]:,} {told}" for name, told in CALLED.items())
        return f"windows of {self.lookback} + {self.horizon} steps: {counts}"

    def plain(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)


def look(recipe: Recipe, stamp: tuple) -> SeriesSight:
    """Read the data of a recipe; again only where they changed (stamp). Raises DataError."""
    return _look(recipe.data.source, json.dumps(asdict(recipe.data.series)), stamp)


@functools.lru_cache(maxsize=4)
def _look(source: str, spelled: str, _stamp: tuple) -> SeriesSight:
    from llm_finetuner.data import windows

    plan = Series(**json.loads(spelled))
    frame = windows.read(source, plan)
    parts = {name: frame.part(name) for name in windows.PARTS}
    group, train = frame.groups[0], parts["train"]
    of_group = [len(one.names) for one in frame.groups]
    names = [*group.names[:WIDTH], *(["..."] if len(group.names) > WIDTH else [])]
    rows = [
        [str(group.times[row]), *(f"{value:g}" for value in group.values[row, :WIDTH])]
        for row in range(SHOWN)
    ]
    pad = [""] * (len(names) - min(WIDTH, len(group.names)))
    return SeriesSight(
        sentence=frame.layout,
        rows=sum(len(one.values) for one in frame.groups),
        channels=frame.names,
        groups=len(frame.groups),
        frequency=group.frequency,
        first=str(min(one.times[0] for one in frame.groups)),
        last=str(max(one.times[-1] for one in frame.groups)),
        season=frame.season,
        lookback=plan.lookback,
        horizon=plan.horizon,
        windows={name: len(part) for name, part in parts.items()},
        head=[["time", *names], *([*row, *pad] for row in rows)],
        examples=len(train),
        each=sum(of_group[number] for number in train.starts[:, 0].tolist()) / len(train),
        doubts=frame.doubts,
    )
