"""Rows without times: where training ended is told by their number; tables without a season to repeat."""

import numpy as np
import pandas as pd
import pytest
from test_forecast_facade import QUICK, tuner
from test_forecasting import table

from llm_finetuner.cli.app import main
from llm_finetuner.data import windows
from llm_finetuner.recipe_series import Series
from llm_finetuner.tasks.forecasting import Forecasting


def test_rows_without_times_tell_where_training_ended(tmp_path, recwarn, capsys):
    """By their number, as long as they are the same rows; intervals are those of the same rows with times."""
    series, history = {"time_column": "none", "season": 24}, table().drop(columns="date")
    run = tuner(tmp_path / "run", **series)
    run.load_model()
    run.fit(history, **QUICK)
    again = tuner(run.recipe.output, run.recipe.output, **series)
    again.load_model()  # as it was stored
    recwarn.clear()  # of torch
    ends, timed = (
        again.forecast(history, level=[80]),
        tuner(run.recipe.output, run.recipe.output, time_column="date"),
    )
    assert again.forecast(history[["c1"]], level=[80])["c1-lo-80"].equals(ends["c1-lo-80"])
    timed.load_model()
    timed.model.config.trained_until = str(table()["date"][209])
    assert np.allclose(ends["c1-lo-80"], timed.forecast(table(), level=[80])["c1-lo-80"], rtol=1e-6)
    assert ends["c1-lo-80"].notna().all() and not recwarn.list
    for other in (history.tail(250), history.rename(columns={"c1": "d1"})):
        with pytest.warns(UserWarning, match="it is not known up to when patch was trained"):
            again.forecast(other, level=[80])
    early = tuner(run.recipe.output, run.recipe.output, split="40-10-50", **series)
    early.load_model()
    with pytest.warns(UserWarning, match="trained on rows up to 209, and the test part begins at 150"):
        early.evaluate(history)
    history.to_csv(tmp_path / "rows.csv", index=False)
    words = [
        "--data",
        str(tmp_path / "rows.csv"),
        "--time-column",
        "none",
        "--lookback",
        "16",
        "--horizon",
        "4",
    ]
    for model in ("linear", run.recipe.output):
        given = words if model == "linear" else words[:4]
        assert main(["forecast", "--model", model, *given, "--level", "80,90"]) == 0
        assert "not known up to when" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "frequency, series, said",
    [
        ("h", {"lookback": 24}, "Look-back 24, horizon 4."),
        ("h", {"lookback": 16}, "The last season is not compared: its 24 steps are more than the look-back."),
        ("W", {"lookback": 16}, "The last season is not compared: its 52 steps are more than the look-back."),
        ("YS", {"lookback": 16}, "The last season is not compared: none is known (series.season)."),
        ("h", {"lookback": 16, "time_column": "none", "targets": ["c0"]}, "none is known (series.season)."),
    ],
)
def test_a_season_that_is_not_compared_is_told(frequency, series, said):
    history = table().assign(date=pd.date_range("1900", periods=300, freq=frequency))
    train = windows.read(history, Series(horizon=4, **series)).part("train")
    task = Forecasting()
    names = [name for name, _ in task.simple_models(train)]
    told = task.stated(train)
    assert told.endswith(said) and ("not compared" in told) == (len(names) == 2)
