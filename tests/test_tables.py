"""Tables as people have them: saved indices, semicolons, commas in names and numbers, days before months, no rows."""

import numpy as np
import pandas as pd
import pytest
from test_cli_series import CUT, ROWS, SHAPE, table
from test_forecast_facade import tuner

from llm_finetuner.cli.app import main
from llm_finetuner.cli.settings import settings
from llm_finetuner.data import series, windows
from llm_finetuner.errors import DataError
from llm_finetuner.recipe_series import Series

PLAN = Series(lookback=16, horizon=4)
HOURS = pd.date_range("2021", periods=ROWS, freq="h")


def refused(source, plan: Series = PLAN) -> str:
    """What is said of a table that cannot be read."""
    with pytest.raises(DataError) as caught:
        series.load(source, plan)
    return f"{caught.value.what}\n{caught.value.hint}"


# ---- columns without a name


@pytest.mark.parametrize("numbers", [range(ROWS), range(ROWS - 1, -1, -1), range(0, 3 * ROWS, 3)])
def test_a_saved_index_is_left_out_and_told(tmp_path, numbers):
    frame = table().set_index(pd.Index(numbers))
    frame.to_csv(tmp_path / "rows.csv")
    (group,), layout = series.load(tmp_path / "rows.csv", PLAN)
    assert group.names == layout.targets == ["c0", "c1"]
    assert len(layout.doubts) == 1 and "'Unnamed: 0' numbers the rows, and is left out" in layout.doubts[0]
    named = series.load(tmp_path / "rows.csv", Series(targets=["Unnamed: 0", "c1"]))
    assert named[1].targets == ["Unnamed: 0", "c1"] and not named[1].doubts
    (group,), layout = series.load(frame.reset_index(names=""), PLAN)
    assert group.names == ["c0", "c1"] and "'' numbers the rows" in layout.doubts[0]


def test_a_channel_without_a_name_stays_and_is_told():
    frame = table().rename(columns={"c1": "Unnamed: 2"})
    (group,), layout = series.load(frame, PLAN)
    assert group.names == ["c0", "Unnamed: 2"] and "has no name, and is read as a channel" in layout.doubts[0]
    times = table().rename(columns={"date": "Unnamed: 0"})
    assert not series.load(times, Series(time_column="Unnamed: 0"))[1].doubts
    assert windows.read(table(), PLAN).doubts == ()


def test_every_door_tells_of_a_column_that_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table().to_csv("rows.csv")
    said = "warning: column 'Unnamed: 0' numbers the rows"
    train = ["finetune", "--task", "forecasting", "--student", "patch", "--steps", "1", "--quiet"]
    for words in (
        ["preview", "--task", "forecasting"],
        [*train, *SHAPE, "--output", "out"],
        ["evaluate", "--model", "repeat-last", "--json"],
        ["forecast", "--model", "repeat-last", "--json", "--quiet"],
    ):
        assert main([*words, "--data", "rows.csv", *CUT]) == 0
        told = capsys.readouterr()
        assert said in " ".join((told.out + told.err).split()), words
    run = tuner(tmp_path / "run")
    run.load_model()
    with pytest.warns(UserWarning, match="column 'Unnamed: 0' numbers the rows"):
        run.fit("rows.csv", epochs=1, batch_size=64)
    with pytest.warns(UserWarning, match="column 'Unnamed: 0' numbers the rows"):
        run.forecast("rows.csv", level=[])
    with pytest.warns(UserWarning, match="column 'Unnamed: 0' numbers the rows"):
        run.evaluate("rows.csv")


def test_times_in_the_index_are_told():
    frame = table().set_index("date")
    for plan in (PLAN, Series(time_column="date")):
        assert 'give table.reset_index(names="date")' in refused(frame, plan)
    (group,), _ = series.load(frame.reset_index(names="date"), PLAN)
    assert group.names == ["c0", "c1"]
    assert "reset_index" not in refused(table().drop(columns="date"))


# ---- files


def test_semicolons_and_decimal_commas(tmp_path):
    frame = table().round({"c0": 3, "c1": 3})
    for decimal in (".", ","):
        frame.to_csv(tmp_path / "rows.csv", sep=";", decimal=decimal, index=False)
        (group,), layout = series.load(tmp_path / "rows.csv", PLAN)
        assert np.array_equal(group.values, frame[["c0", "c1"]].to_numpy())
        assert len(layout.doubts) == (decimal == ",")
        assert all("commas in numbers are read as points" in doubt for doubt in layout.doubts)
    text = (tmp_path / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([*text[:5], text[5].rsplit(";", 1)[0] + ";much", *text[6:]]))
    assert "line 6, column 'c1': 'much' is not a number" in refused(tmp_path / "rows.csv")


def test_files_without_rows(tmp_path):
    (tmp_path / "head.csv").write_text("date,a,b\n")
    assert "head.csv: the table has no rows" in refused(tmp_path / "head.csv")
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv is empty" in refused(tmp_path / "empty.csv")


def test_infinite_numbers_are_not_called_missing():
    frame = table()
    frame.loc[7, "c1"] = np.inf
    assert "1 numbers are infinite, the first in 'c1' at 2021-01-01 07:00:00" in refused(frame)
    frame.loc[3, "c0"] = np.nan
    assert "2 numbers are missing or infinite, the first in 'c0'" in refused(frame)
    frame.loc[7, "c1"] = 0.0
    assert "1 numbers are missing, the first" in refused(frame)


# ---- names with commas


def test_quotes_keep_a_comma_in_a_name(tmp_path, monkeypatch, capsys):
    targets = next(s for s in settings(False) if s.path == "data.series.targets")
    for value in (["a", "b"], ["load, total", "b"], ['say "so"', "it's"]):
        assert targets.parse(targets.words(value)) == value == targets.parse(targets.spell(value))
    assert targets.parse(['"load, total"', "b"]) == ["load, total", "b"] and targets.parse("a,b") == [
        "a",
        "b",
    ]
    monkeypatch.chdir(tmp_path)
    table().rename(columns={"c0": "load, total"}).to_csv("rows.csv", index=False)
    words = ["evaluate", "--model", "repeat-last", "--data", "rows.csv", *CUT, "--targets"]
    assert main([*words, '"load, total"', "c1", "--json"]) == 0 and '"load, total"' in capsys.readouterr().out
    assert main([*words, "load, total"]) == 1
    assert "quotes keep a comma in a name" in " ".join(capsys.readouterr().err.split())


# ---- dates with the year last


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M", "%d-%m-%Y %H:%M"])
def test_days_and_months_are_told_apart_by_all_rows(form):
    frame = table()
    frame["date"] = HOURS.strftime(form)  # 17 days: the first of them could be read either way
    (group,), _ = series.load(frame, PLAN)
    assert list(group.times) == list(HOURS) and group.frequency == "h"


def test_dates_that_can_be_read_two_ways_are_refused():
    days = pd.date_range("2020-02-01", periods=12).strftime("%d/%m/%Y")
    frame = pd.DataFrame({"date": days, "a": range(12)})
    assert "line 2, column 'date': nobody can tell the day from the month in '01/02/2020'" in refused(frame)
    frame["date"] = ["13/02/2020", "02/13/2020", *frame["date"][2:]]
    assert "either comes first in some of them" in refused(frame)
    frame["date"] = pd.date_range("2020-02-20", periods=12).strftime("%d/%m/%y")  # or is 20 the year?
    assert "nobody can tell the day from the month in '20/02/20'" in refused(frame)
    frame["date"] = [f"03/03/2020 {hour:02}:00" for hour in range(12)]
    (group,), _ = series.load(frame, PLAN)
    assert str(group.times[0]) == "2020-03-03 00:00:00"
