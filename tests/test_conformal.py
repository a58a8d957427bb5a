"""Conformal intervals: what they may know, that they cover what they promise, and how they follow a change."""

import numpy as np
import pytest

from llm_finetuner.benchmark.conformal import LEAST, RENEWED, Conformal, interval_score, margins, scores
from llm_finetuner.errors import DataError, RecipeError


def walk(count: int, spread, horizon: int = 4, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Scores |error| of windows a step apart: the error of step h of window i is that of time i + h."""
    noise = np.random.default_rng(seed).normal(size=(count + horizon, channels))
    times = np.arange(count + horizon)
    noise *= np.array([spread(t) for t in times])[:, None]
    return np.abs(np.stack([noise[i : i + horizon] for i in range(count)]))


def test_a_margin_knows_no_error_that_had_not_been_seen():
    past = walk(300, lambda t: 1.0)
    conformal = Conformal(0.8)
    conformal.see(past)
    before = conformal.margin()
    # steps of the last windows that lie in the future, at any size, change nothing
    changed = past.copy()
    for h in range(past.shape[1]):
        changed[len(past) - 1 - h :, h] = 1e9
    other = Conformal(0.8)
    other.see(changed)
    assert np.array_equal(before, other.margin())
    changed[len(past) - 2 - 3, 3] = 1e9  # the newest error of step 3 that is known
    other = Conformal(0.999)
    other.see(changed)
    assert other.margin()[3].min() == 1e9


def test_a_margin_is_the_quantile_of_split_conformal():
    past = walk(60, lambda t: 1.0, horizon=1, channels=1)
    conformal = Conformal(0.8, gamma=0.0)
    conformal.see(past)
    known = np.sort(past[:-1, 0, 0])
    assert conformal.margin()[0, 0] == known[int(np.ceil(0.8 * 60)) - 1]


@pytest.mark.parametrize("gamma", [0.0, 0.05])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_what_is_promised_is_covered(level, gamma):
    found = walk(3500, lambda t: 1.0)
    conformal = Conformal(level, gamma=gamma)
    conformal.see(found[:500])
    added = margins(found[500:], conformal)
    covered = (found[500:] <= added).mean((0, 1))
    assert np.abs(covered - level).max() < 0.02


def test_it_follows_a_spread_that_grows():
    found = walk(2600, lambda t: 1.0 if t < 600 else 3.0)
    static = np.quantile(found[:600], 0.8)
    assert (found[1600:] <= static).mean() < 0.4
    conformal = Conformal(0.8, window=500)
    conformal.see(found[:600])
    added = margins(found[600:], conformal)
    assert abs((found[1600:] <= added[1000:]).mean() - 0.8) < 0.02


def test_margins_in_one_go_are_those_of_a_stream():
    found = walk(400, lambda t: 1 + t / 400)
    whole = Conformal(0.9)
    whole.see(found[:100])
    added = margins(found[100:], whole)
    stream = Conformal(0.9)
    stream.see(found[:100])
    for start in range(100, 400, RENEWED):
        margin = stream.margin()
        assert np.array_equal(added[start - 100], margin)
        stream.see(found[start : start + RENEWED], margin)


def test_quantiles_that_are_too_narrow_are_widened_and_too_wide_ones_drawn_in():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(2000, 3, 1))
    for half in (0.2, 4.0):
        low, high = np.full_like(truth, -half), np.full_like(truth, half)
        found = scores(low, high, truth)
        conformal = Conformal(0.8, gamma=0.0)
        conformal.see(found[:1000])
        added = margins(found[1000:], conformal)
        covered = (truth[1000:] >= low[1000:] - added) & (truth[1000:] <= high[1000:] + added)
        assert abs(covered.mean() - 0.8) < 0.03
        assert (added > 0).all() if half < 1 else (added < 0).all()


def test_the_interval_score_is_least_for_the_true_quantiles():
    truth = np.random.default_rng(0).normal(size=100_000)
    by_half = {half: interval_score(-half, half, truth, 0.8).mean() for half in (1.0, 1.15, 1.2816, 1.4, 1.6)}
    assert min(by_half, key=by_half.get) == 1.2816
    assert interval_score(np.float64(0), np.float64(2), np.float64(5), 0.8) == pytest.approx(2 + 10 * 3)


def test_few_windows_are_refused():
    conformal = Conformal(0.8)
    with pytest.raises(DataError, match="0 earlier windows"):
        conformal.margin()
    conformal.see(walk(LEAST + 3, lambda t: 1.0))
    with pytest.raises(DataError, match=f"{LEAST + 3} earlier windows"):
        conformal.margin()
    conformal.see(walk(1, lambda t: 1.0))
    assert conformal.margin().shape == (4, 2)


@pytest.mark.parametrize("settings", [{"level": 0}, {"level": 1}, {"window": 5}, {"gamma": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        Conformal(**{"level": 0.8, **settings})


def test_a_long_horizon_of_a_walk_is_covered():
    """What was covered is known a horizon late: a share that moved at every window would swing, and cover .62."""
    path = np.random.default_rng(3).normal(size=(4096, 4)).cumsum(0)
    windows = np.lib.stride_tricks.sliding_window_view(path, 97, axis=0).transpose(0, 2, 1)
    found = np.abs(windows[:, 1:] - windows[:, :1])
    conformal = Conformal(0.8)
    conformal.see(found[:800])
    covered = (found[800:] <= margins(found[800:], conformal)).mean((0, 1))
    assert np.abs(covered - 0.8).max() < 0.03


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_share_aimed_at_moves_alike_however_the_windows_come(size):
    conformal = Conformal(0.8)
    conformal.see(walk(100, lambda t: 1.0))
    for _ in range(16 // size):  # none is ever covered
        conformal.see(np.full((size, 4, 2), 9.0), np.zeros((4, 2)))
    moved = 0.2 - conformal.missed
    assert moved == pytest.approx(0.05 * 0.8 * (16 - 4) / RENEWED, rel=1e-6)
