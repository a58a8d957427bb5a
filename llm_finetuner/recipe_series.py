"""The part of a recipe that says how a file of numbers over time is read, and what is forecast from what."""

import re
from dataclasses import dataclass, field
from typing import Literal

from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import check_count, check_levels, check_number

FORECASTING = "forecasting"  # the task
REGRESSION = "sequence_regression"  # another task of numbers, which reads sequences as they are
OF_NUMBERS = (FORECASTING, REGRESSION)
OF_SEQUENCES = ("s4d",)  # models that are built here for it
SEQUENCES = 16  # of a step of it
STEPS, WINDOWS = (
    1000,
    32,
)  # of a run: windows overlap, so that an epoch says little of how much there is to learn
ETT_SPLITS = {"ett-hour": 24, "ett-minute": 96}  # steps a day; months of 30 days: 12 to train, 4 and 4
OF_MODELS = (
    "lookback",
    "horizon",
    "quantiles",
    "description",
    "season",
)  # what a model built here takes from it
_SHARES = re.compile(r"(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True)
class Series:
    """How series are read (columns, gaps) and cut into windows."""

    lookback: int = 96  # steps that a forecast is made from
    horizon: int = 96  # steps that are forecast
    quantiles: list[float] = field(default_factory=list)  # levels that are forecast; none: one number a step
    split: str = "70-10-20"  # percent of the rows to train, select and test on; or ett-hour, ett-minute
    train_percent: float = 100.0  # only the first so many percent of the training rows
    window_step: int = 1  # steps from one training window to the next
    description: str = ""  # what the data are, in a sentence: Time-LLM's prompt says it
    season: int | None = None  # steps of a season; None: by the frequency (hourly 24, daily 7, monthly 12)
    time_column: str | None = (
        None  # None: date, ds, timestamp, time or datetime; "none": rows follow in order
    )
    id_column: str | None = None  # None: unique_id or item_id, where there is one: a long table
    targets: list[str] | None = (
        None  # columns of numbers; None: all of a wide table, y or target of a long one
    )
    missing: Literal["error", "interpolate", "forward"] = "error"
    duplicates: Literal["error", "first", "last", "mean"] = "error"  # of one time
    irregular: Literal["error", "fill"] = "error"  # fill: times that are not there become missing numbers
    constant: Literal["error", "keep"] = "error"  # a channel that never changes in the training rows
    short: Literal["error", "drop"] = "error"  # a series with fewer rows than one window of each part needs

    def __post_init__(self):
        check_count("series.lookback", self.lookback, 2)
        check_count("series.horizon", self.horizon, 1)
        check_count("series.window_step", self.window_step, 1)
        if self.season is not None:
            check_count("series.season", self.season, 1)
        check_levels(self.quantiles)
        check_number("series.train_percent", self.train_percent, 0)
        if self.train_percent > 100:
            raise RecipeError(f"series.train_percent must be at most 100, got {self.train_percent}")
        shares_of(self.split)


def shares_of(split: str) -> tuple[float, float, float] | None:
    """Shares of train, validation and test rows; None for the splits of ETT. Raises RecipeError."""
    if split in ETT_SPLITS:
        return None
    found = _SHARES.fullmatch(str(split))
    shares = [int(part) / 100 for part in found.groups()] if found else []
    if not shares or not 0 < shares[0] or abs(sum(shares) - 1) > 1e-9 or not shares[2]:
        raise RecipeError(
            f"series.split must be {', '.join(ETT_SPLITS)} or three percentages that sum to 100, got {split!r}",
            "such as 70-10-20: train, validation, test",
        )
    return tuple(shares)
