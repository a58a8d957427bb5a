"""Tables of numbers over time: how they are read, what is refused and where, and the windows of a split."""

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED

from llm_finetuner.data import series, windows
from llm_finetuner.data.windows import frame
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.recipe_series import Series

HOURS = pd.date_range("2020-01-01", periods=400, freq="h")


def wide(rows: int = 400, channels: int = 2) -> pd.DataFrame:
    steps = np.arange(rows)
    made = {f"c{i}": 10 * i + np.sin(steps / (3 + i)) + steps / 100 for i in range(channels)}
    return pd.DataFrame({"date": HOURS[:rows], **made})


def long(table: pd.DataFrame, names=("unique_id", "ds", "y")) -> pd.DataFrame:
    melted = table.melt("date", var_name=names[0], value_name=names[2]).rename(columns={"date": names[1]})
    return melted.sample(frac=1, random_state=0)  # rows in any order


def of_days(rows: int, name: str, every: str = "D") -> pd.DataFrame:
    times = pd.date_range("2020-01-01", periods=rows, freq=every)
    return pd.DataFrame({"unique_id": name, "ds": times, "y": np.sin(np.arange(rows) / 3)})


def read(table, **settings) -> series.Group:
    (group,), _ = series.load(table, Series(**settings))
    return group


def refused(table, **settings) -> DataError:
    with pytest.raises(DataError) as caught:
        series.load(table, Series(**settings))
    return caught.value


@pytest.mark.parametrize("names", [("unique_id", "ds", "y"), ("item_id", "timestamp", "target")])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_wide_and_long_tables_hold_the_same_series(tmp_path, names, suffix):
    found = []
    for number, table in enumerate((wide(), long(wide(), names))):
        path = tmp_path / f"{number}{suffix}"
        table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
        found.append(read(path))
    assert found[0].names == found[1].names == ["c0", "c1"]
    assert np.array_equal(found[0].values, found[1].values) and found[0].times.equals(found[1].times)
    assert found[0].frequency == "h"


def test_series_of_other_lengths_are_groups_of_their_own():
    table = long(wide())
    table = table[(table.unique_id == "c0") | (table.ds < HOURS[300])]
    groups, layout = series.load(table, Series())
    assert [(group.names, len(group.values)) for group in groups] == [(["c0"], 400), (["c1"], 300)]
    assert "long table" in layout.describe()


def test_columns_are_named_where_they_are_not_known():
    table = wide().rename(columns={"date": "When"})
    assert "no column of times" in refused(table).what
    assert read(table, time_column="when", targets=["C1"]).names == ["c1"]
    assert "there is no column 'wen'" in refused(table, time_column="wen").what
    ordered = read(table.drop(columns="When"), time_column="none")
    assert ordered.frequency is None and list(ordered.later(2)) == [400, 401]


def test_what_is_no_number_or_time_is_named_by_its_line():
    table = wide().astype({"c1": object})
    table.loc[7, "c1"] = "n/a"
    assert refused(table).what.endswith("line 9, column 'c1': 'n/a' is not a number")
    table = wide().astype({"date": str})
    table.loc[3, "date"] = "soon"
    assert "line 5, column 'date': 'soon' is not a time" in refused(table).what


def test_missing_numbers():
    table = wide()
    table.loc[[5, 6], "c0"] = np.nan
    error = refused(table)
    assert (
        "2 numbers are missing, the first in 'c0' at 2020-01-01 05:00:00" in error.what
        and "--missing" in error.hint
    )
    kept = wide().c0.to_numpy()
    assert read(table, missing="forward").values[4:7, 0] == pytest.approx([kept[4]] * 3)
    third = (kept[7] - kept[4]) / 3
    assert read(table, missing="interpolate").values[4:8, 0] == pytest.approx(kept[4] + third * np.arange(4))
    table.loc[0, "c1"] = np.nan
    assert "'c1' begins without a number" in refused(table, missing="forward").what


def test_times_that_come_twice():
    again = wide().iloc[[10]]
    again[["c0", "c1"]] += 1
    table = pd.concat([wide(), again])
    assert "1 times come more than once, the first is 2020-01-01 10:00:00" in refused(table).what
    first, last, mean = (read(table, duplicates=how).values[10, 0] for how in ("first", "last", "mean"))
    assert (last - first, mean - first) == pytest.approx((1, 0.5))


def test_times_that_are_left_out():
    table = wide().drop(index=[50, 51])
    error = refused(table)
    assert "2 times are left out (frequency h), the first is 2020-01-03 02:00:00" in error.what
    assert "2 numbers" not in error.what and "numbers are missing" in refused(table, irregular="fill").what
    filled = read(table, irregular="fill", missing="forward")
    assert len(filled.values) == 400 and filled.values[51, 0] == filled.values[49, 0]
    table = wide()
    table.loc[60, "date"] += pd.Timedelta("7min")
    assert "is not on the clock of h" in refused(table, irregular="fill").what


def test_months_are_a_regular_clock():
    table = wide(60)
    table["date"] = pd.date_range("2015-01-31", periods=60, freq="ME")
    group = read(table)
    assert [str(time.date()) for time in group.later(2)] == ["2020-01-31", "2020-02-29"]
    assert series.season_of(group.frequency) == 12


@pytest.mark.parametrize(
    ("frequency", "season"),
    [("h", 24), ("15min", 96), ("D", 7), ("W-SUN", 52), ("MS", 12), ("QE-DEC", 4), ("YE", 1), (None, 1), (2, 1),
     ("BME", 12), ("BMS", 12), ("BQE-DEC", 4), ("BQS-OCT", 4), ("WOM-3FRI", 12), ("YS-JAN", 1), ("2W-MON", 26),
     ("B", 5), ("30min", 48), ("5h", 4), ("s", 60), ("ms", 1), ("us", 1), ("ns", 1)],
)  # fmt: skip
def test_seasons_by_frequency(frequency, season):
    assert series.season_of(frequency) == season


def test_whole_numbers_stay_whole_numbers():
    table = pd.DataFrame({"unique_id": "a", "ds": range(1, 301), "y": np.arange(300.0)})
    group = read(table.sample(frac=1, random_state=0))
    assert (group.frequency, group.times[0], group.times[-1]) == (1, 1, 300)
    assert group.later(2).tolist() == [301, 302] and np.array_equal(group.values[:, 0], np.arange(300))
    years = read(pd.DataFrame({"ds": np.arange(1900.0, 2020, 2), "y": np.sin(np.arange(60))}))
    assert years.later(1).tolist() == [2020] and years.times.dtype == np.int64
    assert windows.read(table, Series(lookback=16, horizon=4)).season == 1
    assert "1 times of series 'a' are left out (frequency 1), the first is 51" in refused(table.drop(50)).what
    filled = read(table.drop(50), irregular="fill", missing="forward")
    assert len(filled.values) == 300 and filled.values[50, 0] == 49
    table["ds"] = table["ds"] + 0.5
    assert "line 2, column 'ds': " in refused(table).what and "nor a whole number" in refused(table).what


def test_hours_across_a_clock_change(tmp_path):
    table = wide(200)
    table["date"] = pd.date_range("2024-03-29", periods=200, freq="h", tz="Europe/Berlin")
    table.to_csv(tmp_path / "rows.csv", index=False)
    group = read(tmp_path / "rows.csv")
    assert group.frequency == "h" and group.times.equals(pd.DatetimeIndex(table["date"]).tz_convert("UTC"))
    assert group.later(1)[0] == table["date"].iloc[-1] + pd.Timedelta("1h")
    assert read(table).frequency == "h"


def test_one_season_of_all_series_or_one_that_is_named():
    table = pd.concat([of_days(60, "a", "MS"), of_days(400, "b", "h")])
    with pytest.raises(DataError, match="'a' every MS, 'b' every h") as caught:
        windows.read(table, Series(lookback=16, horizon=4))
    assert "--season" in caught.value.hint
    assert windows.read(table, Series(lookback=16, horizon=4, season=12)).season == 12


# ---- windows


def test_every_step_of_a_part_is_forecast_and_no_window_is_left_out():
    made = frame([read(wide())], Series(lookback=24, horizon=8), 24)
    assert made.borders == [
        {"train": (0, 280), "validation": (280, 320), "test": (320, 400), "scale": (0, 280)}
    ]
    train, validation, test = (made.part(name) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (280 - 31, 40 - 7, 80 - 7)
    values = made.scales[0].down(made.groups[0].values)
    assert np.allclose(test[0]["context"], values[296:320], atol=1e-6)
    assert np.allclose(test[72]["target"], values[392:400], atol=1e-6)
    blocks = list(test.blocks())
    assert [x.shape for x, _ in blocks] == [(73, 24), (73, 24)]
    assert np.array_equal(blocks[1][0][5], test[5]["context"][:, 1])


def test_scales_are_those_of_the_training_rows():
    table = wide()
    before = frame([read(table)], Series(lookback=24, horizon=8), 24)
    table.loc[280:, ["c0", "c1"]] = 1e9
    after = frame([read(table)], Series(lookback=24, horizon=8), 24)
    assert np.array_equal(before.scales[0].mean, after.scales[0].mean)
    assert np.array_equal(before.scales[0].spread, after.scales[0].spread)
    train = before.part("train")
    assert all(
        np.array_equal(train[i]["target"], after.part("train")[i]["target"]) for i in (0, 100, len(train) - 1)
    )
    values = table[["c0", "c1"]].to_numpy()[:280]
    assert np.allclose(before.scales[0].spread, values.std(0)) and np.allclose(
        before.scales[0].mean, values.mean(0)
    )
    assert np.allclose(before.scales[0].up(before.scales[0].down(values)), values)


def test_few_training_rows_and_wider_steps():
    plan = Series(lookback=24, horizon=8, train_percent=10)
    few = frame([read(wide())], plan, 24)
    assert few.borders[0]["train"] == (0, 25 + 24) and few.borders[0]["scale"] == (0, 280)
    spaced = frame([read(wide())], Series(lookback=24, horizon=8, window_step=4), 24)
    assert spaced.part("train").starts[:3, 1].tolist() == [0, 4, 8]
    assert spaced.part("test").starts[:3, 1].tolist() == [296, 297, 298]


def test_what_cannot_be_cut_into_windows_is_told():
    group = read(wide())
    with pytest.raises(DataError, match="too few for split 70-10-20"):
        frame([group], Series(lookback=300, horizon=8), 24)
    with pytest.raises(DataError, match="takes 14400"):
        frame([group], Series(split="ett-hour"), 24)
    with pytest.raises(DataError, match="validation part holds no window"):
        frame([group], Series(lookback=24, horizon=8, split="90-0-10"), 24).part("validation")
    table = wide()
    table["c1"] = 4.0
    with pytest.raises(DataError, match="'c1' never changes in the 280 training rows"):
        frame([read(table)], Series(lookback=24, horizon=8), 24)
    kept = frame([read(table)], Series(lookback=24, horizon=8, constant="keep"), 24)
    assert kept.part("train")[0]["context"][:, 1].tolist() == [0.0] * 24


def test_short_series_may_be_left_out():
    table = long(wide())
    groups, _ = series.load(table[(table.unique_id == "c0") | (table.ds < HOURS[30])], Series())
    plan = {"lookback": 24, "horizon": 8}
    with pytest.raises(DataError, match="c1: 30 rows are too few.*"):
        frame(groups, Series(**plan), 24)
    assert frame(groups, Series(short="drop", **plan), 24).names == ["c0"]


def test_series_without_a_clock_or_a_split_are_left_out_too():
    table = pd.concat([of_days(300, "a"), of_days(2, "b")])
    error = refused(table)
    assert (
        "2 rows of series 'b' are too few to tell the frequency" in error.what
        and "--short drop" in error.hint
    )
    assert windows.read(table, Series(lookback=16, horizon=4, short="drop")).names == ["a"]
    with pytest.raises(DataError, match="all series are too short"):
        series.load(of_days(2, "b"), Series(short="drop"))
    table = pd.concat([of_days(15_000, "a", "h"), of_days(14_000, "b", "h")])
    with pytest.raises(
        DataError, match="14000 rows are too few for split ett-hour, which takes 14400"
    ) as caught:
        windows.read(table, Series(split="ett-hour"))
    assert "--short drop" in caught.value.hint
    assert windows.read(table, Series(split="ett-hour", short="drop")).names == ["a"]


@pytest.mark.parametrize(
    "settings",
    [{"split": "70-20"}, {"split": "80-20-0"}, {"split": "60-30-20"}, {"lookback": 1}, {"train_percent": 0}],
)
def test_plans_that_cannot_be_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        Series(**settings)


@pytest.mark.skipif(not (SHARED / "data" / "ett").exists(), reason="ETTh1.csv is not here")
def test_the_public_protocol_on_etth1():
    group = read(SHARED / "data" / "ett" / "ETTh1.csv")
    made = frame([group], Series(split="ett-hour"), 24)
    train, validation, test = (made.part(name) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (8449, 2785, 2785)
    assert len(frame([group], Series(split="ett-hour", train_percent=10), 24).part("train")) == 759
    errors = [(y - x[:, -1:]) for x, y in test.blocks()]
    assert np.mean([(e**2).mean() for e in errors]) == pytest.approx(1.2944, abs=2e-4)
    assert np.mean([np.abs(e).mean() for e in errors]) == pytest.approx(0.7132, abs=2e-4)
