"""Intervals around any forecast from the errors that were seen before it: rolling and adaptive conformal prediction.

A forecast made at time t may be judged by errors up to t alone: of step h those of windows that began h steps earlier
or more. Static intervals from the validation rows are no substitute: where those rows are harder than what follows,
they cover too much (on ETTh1 89 % where 80 % was wanted; docs/forecasting.md).

Shapes: n windows one step apart, W of them kept, H steps, C channels. Scores are how far the truth lies outside the
interval of the model itself: |truth - forecast| for one number a step, max(low - truth, truth - high) for two
quantiles (Romano et al. 2019, arXiv 1905.03222).
"""

from dataclasses import dataclass, field

import numpy as np

from llm_finetuner.errors import DataError
from llm_finetuner.ranges import check_count, check_number

LEAST = 20  # scores of a step that an interval may rest on
RENEWED = 6  # windows between two renewals, or a quarter of the horizon where that is more


@dataclass
class Conformal:
    """What is to be added on both sides of an interval, learned as time goes by.

    level: the share to be covered. window: W. gamma: how far the share that is aimed at moves in one renewal by what
    was covered (Gibbs and Candes 2021, arXiv 2106.00170); 0 takes the scores as they come (rolling). What was covered
    is known a horizon late: moved at every window, the share would swing ever wider.
    """

    level: float
    window: int = 1000
    gamma: float = 0.05
    scores: np.ndarray | None = field(default=None, repr=False)  # [at most W + H, H, C], oldest first
    added: np.ndarray | None = field(
        default=None, repr=False
    )  # what was added to those, NaN where nothing was
    missed: np.ndarray | None = field(default=None, repr=False)  # [H, C] the share aimed at outside

    def __post_init__(self):
        check_number("level", self.level, 0, 1)
        check_count("window", self.window, LEAST)
        check_number("gamma", self.gamma, 0, closed=True)

    def see(self, scores_nHC: np.ndarray, added_HC: np.ndarray | None = None) -> None:
        """Take in the next n windows, each a step after the one before, and what had been added to their intervals."""
        count, horizon, channels = scores_nHC.shape
        if self.scores is None:
            self.scores = self.added = np.empty((0, horizon, channels))
            self.missed = np.full((horizon, channels), 1 - self.level)
        added_nHC = np.broadcast_to(np.nan if added_HC is None else added_HC, scores_nHC.shape)
        before = len(self.scores)
        self.scores = np.concatenate([self.scores, scores_nHC])
        self.added = np.concatenate([self.added, added_nHC])
        over = slice(
            max(0, before - horizon), max(0, before + count - horizon)
        )  # their last step has come by now
        had_n = ~np.isnan(self.added[over]).any((1, 2))
        if had_n.any():
            outside_HC = (self.scores[over] > self.added[over])[had_n].mean(0)
            step = self.gamma * min(1.0, had_n.sum() / renewal(horizon))
            self.missed = np.clip(self.missed + step * (1 - self.level - outside_HC), 0.0, 1.0)
        keep = self.window + horizon
        self.scores, self.added = self.scores[-keep:], self.added[-keep:]

    def margin(self) -> np.ndarray:
        """To be added to a forecast that is made right after the last window seen: [H, C]. Raises DataError."""
        had = 0 if self.scores is None else len(self.scores)
        if not had or not enough(had, self.scores.shape[1]):
            raise too_few(had)
        found_HC = np.empty(self.scores.shape[1:])
        for step in range(len(found_HC)):  # step h of a window is known h steps after the window began
            known_WC = np.sort(self.scores[: had - step - 1][-self.window :, step], axis=0)
            size = len(known_WC)
            rank_C = np.ceil((1 - self.missed[step]) * (size + 1)).astype(int) - 1
            found_HC[step] = known_WC[rank_C.clip(0, size - 1), np.arange(known_WC.shape[1])]
        return found_HC


def renewal(horizon: int) -> int:
    """Windows between two renewals of intervals."""
    return max(RENEWED, -(-horizon // 4))


def enough(windows: int, horizon: int) -> bool:
    """Whether an interval may rest on so many windows."""
    return windows >= LEAST + horizon


def too_few(windows: int) -> DataError:
    """What is raised where it may not."""
    return DataError(
        f"{windows} earlier windows are too few for intervals: {LEAST} and one for each step of the horizon",
        "give a longer history, or a longer validation part (--split)",
    )


def margins(scores_nHC: np.ndarray, conformal: Conformal) -> np.ndarray:
    """What is added to the interval of each window, in their order: [n, H, C]."""
    found_nHC, every = np.empty(scores_nHC.shape), renewal(scores_nHC.shape[1])
    for start in range(0, len(scores_nHC), every):
        part = slice(start, start + every)
        margin_HC = conformal.margin()
        found_nHC[part] = margin_HC
        conformal.see(scores_nHC[part], margin_HC)
    return found_nHC


def scores(low_nHC: np.ndarray, high_nHC: np.ndarray, truth_nHC: np.ndarray) -> np.ndarray:
    """How far the truth lies outside; below 0 inside."""
    return np.maximum(low_nHC - truth_nHC, truth_nHC - high_nHC)


def interval_score(low: np.ndarray, high: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """Width, and 2 / (1 - level) times how far the truth lies outside (Winkler 1972; Gneiting and Raftery 2007)."""
    outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return high - low + 2 / (1 - level) * outside
