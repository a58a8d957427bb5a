"""Figures of forecasts against numbers worked out one by one."""

import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from test_forecasting import table

from llm_finetuner.benchmark import forecast_figures, forecasts
from llm_finetuner.data import series
from llm_finetuner.data.windows import frame
from llm_finetuner.models import build
from llm_finetuner.models.forecaster import Forecast, Forecaster, ForecasterConfig
from llm_finetuner.models.naive import Naive, NaiveConfig
from llm_finetuner.recipe_series import Series

LEVELS = [0.1, 0.5, 0.9]


class Shifted(Forecaster):
    """The last value, and quantiles around it at fixed distances."""

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def forward(self, context):
        last_NH = context[:, -1:].expand(-1, self.config.horizon)
        if not self.config.quantiles:
            return Forecast(last_NH)
        return Forecast(torch.stack([last_NH - 1, last_NH, last_NH + 2], -1))


@pytest.fixture(scope="module")
def made():
    draw = np.random.default_rng(0)
    steps = np.arange(300)
    table = pd.DataFrame(
        {"date": pd.date_range("2020", periods=300, freq="h"), "a": np.sin(steps / 4) + draw.normal(size=300)}
    )
    table["b"] = 100 + 20 * draw.normal(size=300).cumsum()
    groups, _ = series.load(table, Series())
    return frame(groups, Series(lookback=12, horizon=4), 24)


def shifted(quantiles=()):
    return Shifted(ForecasterConfig(lookback=12, horizon=4, quantiles=quantiles))


def test_figures_on_scaled_data_are_means_over_all_windows(made):
    test = made.part("test")
    said = forecasts.forecast(shifted(), test)
    gaps = np.array([row["target"] - row["context"][-1] for row in (test[i] for i in range(len(test)))])
    figures = forecasts.scaled(said)
    assert figures["windows"] == len(test) == 60 - 3
    assert figures["mse"] == pytest.approx((gaps**2).mean(), rel=1e-6)
    assert figures["mae"] == pytest.approx(np.abs(gaps).mean(), rel=1e-6)
    assert forecasts.by_step(said) == pytest.approx((gaps**2).mean((0, 2)), rel=1e-6)
    assert forecasts.by_channel(said, made) == pytest.approx(
        dict(zip("ab", (gaps**2).mean((0, 1)), strict=True)), rel=1e-6
    )


@pytest.mark.parametrize("batch", [1, 7, 57, 1000])
def test_the_batch_changes_nothing(made, batch):
    test, model = made.part("test"), Naive(NaiveConfig(lookback=12, horizon=4, season=3))
    whole, parts = (forecasts.forecast(model, test, size)[0].values for size in (10**6, batch))
    assert np.array_equal(whole, parts)


def test_figures_in_the_units_of_the_data(made):
    test = made.part("test")
    found = forecasts.original(forecasts.forecast(shifted(), test), made)
    values = made.groups[0].values
    for channel, name in enumerate("ab"):
        pairs = [
            (values[i + 12 + h, channel], values[i + 11, channel])
            for i in range(228, 228 + 57)
            for h in range(4)
        ]
        gaps = [abs(y - f) for y, f in pairs]
        past = values[:210, channel]
        season = np.mean([abs(past[t] - past[t - 24]) for t in range(24, 210)])
        assert found[name] == pytest.approx(
            {
                "mae": np.mean(gaps), "rmse": np.sqrt(np.mean(np.square(gaps))),
                "smape": np.mean([200 * abs(y - f) / (abs(y) + abs(f)) for y, f in pairs]),
                "mase": np.mean(gaps) / season, "crps": np.mean(gaps),
            }, rel=1e-5,
        )  # fmt: skip


def test_crps_is_twice_the_mean_pinball_loss(made):
    test = made.part("test")
    found = forecasts.original(forecasts.forecast(shifted(LEVELS), test), made)
    spread, losses = made.scales[0].spread[1], []
    for row in (test[i] for i in range(len(test))):
        last = row["context"][-1, 1]
        for y in row["target"][:, 1]:
            for q, level in zip((last - 1, last, last + 2), LEVELS, strict=True):
                losses.append(max(level * (y - q), (level - 1) * (y - q)))
    assert found["b"]["crps"] == pytest.approx(2 * np.mean(losses) * spread, rel=1e-5)


def test_intervals_begin_with_a_model_s_own_quantiles(made):
    (one,) = forecasts.forecast(shifted(LEVELS), made.part("test"))
    low, high = one.between(0.8)
    assert np.allclose(one.point - low, 1) and np.allclose(high - one.point, 2)
    low, high = one.between(0.9)  # a level without quantiles: from the one number
    assert np.array_equal(low, one.point) and np.array_equal(high, one.point)


def test_intervals_of_forecasts(made):
    plain = shifted()
    before, said = (forecasts.forecast(plain, made.part(name)) for name in ("validation", "test"))
    found = forecasts.intervals(before, said, 0.8)
    figures, (truth,) = found.figures(), found.truth
    inside = (truth >= found.low[0]) & (truth <= found.high[0])
    assert figures["coverage"] == pytest.approx(inside.mean())
    assert found.by_channel() == pytest.approx(inside.mean((0, 1)).tolist())
    assert found.by_step() == pytest.approx(inside.mean((0, 2)))
    assert figures["width"] == pytest.approx((found.high[0] - found.low[0]).mean())
    assert (found.high[0] >= found.low[0]).all()


def test_a_report_keeps_no_intervals_but_those_it_draws(monkeypatch):
    """On a large table those of one level take as much memory as all forecasts."""
    plan = Series(lookback=16, horizon=4)
    (group,), _ = series.load(table(400), plan)
    whole, made, alive = frame([group], plan, 8), [], []
    real = forecasts.intervals

    def counted(*args, **options):
        alive.append(sum(one() is not None for one in made))
        found = real(*args, **options)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(forecasts, "intervals", counted)
    models = {
        name: build.seasonal_naive(lookback=16, horizon=4, season=season)
        for name, season in (("a", 1), ("b", 8))
    }
    told = forecast_figures.details(models, whole, ["a", "b"])
    assert len(alive) == 2 * len(forecast_figures.NOMINAL) and max(alive) <= 1
    assert set(told["intervals"]["a"]) == {"80", "90"} and list(told["reliability"]["b"]) == [
        "50",
        "65",
        "80",
        "90",
        "95",
    ]
    said, before = (forecasts.forecast(models["b"], whole.part(name)) for name in ("test", "validation"))
    (low,) = real(before, said, 0.9).low
    at = pd.Timestamp(told["examples"][0]["begins"])
    window = group.times.get_loc(at) - whole.borders[0]["test"][0]
    want = whole.scales[0].up(low[window])[:, 0]
    assert np.allclose(told["examples"][0]["forecasts"]["b"]["lo-90"], want)
