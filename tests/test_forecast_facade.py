"""LLMFineTuner with series: train, evaluate, forecast beyond the end, backtest, export, and what is refused."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_forecasters import SMALL, TIME
from test_forecasting import SIZES, table

from finetune_cli import LLMFineTuner
from llm_finetuner.cli.app import main
from llm_finetuner.errors import DataError, ModelError, OrderError, RecipeError
from llm_finetuner.run import SHARE

QUICK = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3}


def tuner(folder, model="patch", shape=SMALL, **series):
    shape = shape if model == "patch" else None
    return LLMFineTuner(
        model, folder, task="forecasting", series={**SIZES, **series}, shape=shape, device="cpu"
    )


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    found = tuner(tmp_path_factory.mktemp("taught"))
    found.load_model()
    found.fit(table(), **QUICK)
    return found


def by_hand(model, values_TC):
    """The forecast after the last row, a channel at a time: [H, C]."""
    look = torch.tensor(values_TC[-16:].T, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(look).values.T.double().numpy()


def test_errors_are_those_of_every_test_window(teacher):
    found, values = teacher.evaluate(table(), level=[80, 90]), table()[["c0", "c1", "c2"]].to_numpy()
    train, test = int(300 * 0.7), 300 - int(300 * 0.2)
    mean, spread = values[:train].mean(0), values[:train].std(0)
    gaps = np.stack(
        [by_hand(teacher.model, values[:t]) - values[t : t + 4] for t in range(test, 300 - 3)]
    )  # [n, H, C]
    assert found["windows"] == len(gaps) == 57 and (found["lookback"], found["horizon"]) == (16, 4)
    assert found["mse"] == pytest.approx(np.square(gaps / spread).mean(), rel=1e-4)
    assert found["mae"] == pytest.approx(np.abs(gaps / spread).mean(), rel=1e-4)
    assert found["by_step"] == pytest.approx(np.square(gaps / spread).mean((0, 2)), rel=1e-4)
    assert found["original"]["c1"]["rmse"] == pytest.approx(np.sqrt(np.square(gaps[..., 1]).mean()), rel=1e-4)
    assert found["original"]["c2"]["mae"] == pytest.approx(np.abs(gaps[..., 2]).mean(), rel=1e-4)
    last = np.stack([values[t - 1] - values[t : t + 4] for t in range(test, 297)]) / spread
    assert found["skill"]["overall"] == pytest.approx(1 - found["mse"] / np.square(last).mean(), rel=1e-4)
    eighty, ninety = found["intervals"]["80"], found["intervals"]["90"]
    assert 0.5 < eighty["coverage"] < ninety["coverage"] <= 1 and eighty["width"] < ninety["width"]
    assert len(eighty["by_step"]["interval_score"]) == 4 and set(eighty["by_channel"]) == {"c0", "c1", "c2"}
    assert not {"loss", "accuracy", "tokens"} & set(found) and mean.shape == (3,)


def test_a_wide_table_goes_on_as_it_was_given(teacher):
    history = table()
    found = teacher.forecast(history, level=[80, 90])
    ends = [f"{way}-{level}" for level in (80, 90) for way in ("lo", "hi")]
    assert list(found) == ["date", *(n for c in ("c0", "c1", "c2") for n in (c, *(f"{c}-{e}" for e in ends)))]
    assert list(found["date"]) == list(pd.date_range(history["date"].iloc[-1], periods=5, freq="h")[1:])
    want = by_hand(teacher.model, history[["c0", "c1", "c2"]].to_numpy())
    assert np.allclose(found[["c0", "c1", "c2"]], want, atol=1e-4)
    for c in ("c0", "c1", "c2"):
        order = [found[f"{c}-lo-90"], found[f"{c}-lo-80"], found[c], found[f"{c}-hi-80"], found[f"{c}-hi-90"]]
        assert all((low <= high).all() for low, high in zip(order, order[1:], strict=False))
    short = teacher.forecast(history.tail(16), horizon=2, level=[])  # a look-back is all that is needed
    assert np.allclose(short[["c0", "c1", "c2"]], want[:2], atol=1e-4) and len(short.columns) == 4


def test_a_long_table_too_and_each_series_for_itself(teacher):
    wide = table()
    long = wide.melt("date", var_name="item_id", value_name="target").rename(columns={"date": "timestamp"})
    long = long.drop(long[long["item_id"] == "c1"].index[:50])  # it begins later, so it is a group of its own
    found = teacher.forecast(long.sample(frac=1, random_state=0), level=[80])
    assert list(found) == ["item_id", "timestamp", "patch", "patch-lo-80", "patch-hi-80"] and len(found) == 12
    want = teacher.forecast(wide, level=[80])
    for name in ("c0", "c1", "c2"):
        rows = found[found["item_id"] == name]
        assert np.allclose(rows["patch"], want[name], atol=1e-4)
    same = found[found["item_id"] == "c2"]
    assert np.allclose(same["patch-hi-80"], want["c2-hi-80"], atol=1e-4)


def test_a_backtest_says_what_forecasts_said_at_the_time(teacher):
    history = table()
    found = teacher.cross_validation(history, n_windows=3, step_size=2, level=[80])
    assert list(found) == ["unique_id", "ds", "cutoff", "y", "patch", "patch-lo-80", "patch-hi-80"]
    assert len(found) == 3 * 3 * 4 and found["cutoff"].nunique() == 3
    for cutoff, rows in found.groupby("cutoff"):
        at_the_time = teacher.forecast(history[history["date"] <= cutoff], level=[80])
        for name, own in rows.groupby("unique_id"):
            for column, said in (("patch", name), ("patch-lo-80", f"{name}-lo-80")):
                assert np.allclose(own[column], at_the_time[said], atol=1e-4)
            came = history.set_index("date").loc[own["ds"], name]
            assert np.array_equal(own["y"], came)
    with pytest.warns(UserWarning, match="it knows what came after"):
        teacher.cross_validation(history, n_windows=30)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_beta_a_run_is_the_plain_one_bit_for_bit(tmp_path, teacher):
    runs = []
    for name, options in (("alone", None), ("none", {"alpha": 1.0, "beta": 0.0})):
        run = tuner(tmp_path / name, shape={**SMALL, "num_layers": 1, "dropout": 0.1})
        run.load_model("forecast_distillation")
        if options:
            run.load_teacher_model(teacher.recipe.output)
            run.setup_forecast_distillation(**options)
        run.fit(table(), method="standard" if not options else None, **QUICK)
        runs.append(weights(run.model))
    assert torch.equal(*runs)


def test_answers_on_disk_by_the_facade(tmp_path, teacher):
    runs = []
    for name, cache in (("live", None), ("cached", tmp_path / "cache")):
        run = tuner(tmp_path / name, shape={**SMALL, "num_layers": 1})
        run.load_model("forecast_distillation")
        run.load_teacher_model(teacher.recipe.output, cache=cache)
        run.setup_forecast_distillation(alpha=0.4, beta=0.6)
        run.fit(table(), **{**QUICK, "epochs": 2})
        runs.append(run)
    assert (weights(runs[0].model) - weights(runs[1].model)).abs().max() < 1e-6


def test_a_share_that_was_chosen_is_not_told_of_the_next_run(tmp_path):
    run = tuner(tmp_path / "run", "linear")
    run.load_model("forecast_distillation")
    run.load_teacher_model("linear")
    run.setup_forecast_distillation(beta="auto")
    run.fit(table(), **QUICK)
    assert (tmp_path / "run" / SHARE).exists()
    run.load_model("forecast_distillation")
    run.setup_forecast_distillation(alpha=0.5, beta=0.5)
    run.fit(table(), **QUICK)
    assert not (tmp_path / "run" / SHARE).exists()


# ---- series that end elsewhere, and tables that the model never saw


def lengths(rows: dict[str, int], start: str = "2020-01-01") -> pd.DataFrame:
    draw, parts = np.random.default_rng(0), []
    for name, count in rows.items():
        times = pd.date_range(start, periods=count, freq="D")
        values = np.sin(np.arange(count) / 3) + 0.1 * draw.normal(size=count)
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": values}))
    return pd.concat(parts)


@pytest.fixture(scope="module")
def of_lengths(tmp_path_factory):
    found = tuner(tmp_path_factory.mktemp("lengths"))
    found.load_model()
    found.fit(lengths({"a": 600, "b": 400, "c": 60}), **QUICK)
    return found


def test_intervals_are_learned_behind_the_training_rows_of_each_series(of_lengths, recwarn):
    again = tuner(of_lengths.recipe.output, of_lengths.recipe.output)
    again.load_model()  # as it was stored
    until = {"a": "2021-02-23 00:00:00", "b": "2020-10-06 00:00:00", "c": "2020-02-11 00:00:00"}
    assert again.model.config.trained_until == of_lengths.model.config.trained_until == until
    table = lengths({"a": 600, "b": 400, "c": 60})
    found = again.forecast(table, level=[80]).set_index("unique_id")
    assert found["patch"].notna().all() and found.loc[["a", "b"], "patch-lo-80"].notna().all()
    assert found.loc["c", ["patch-lo-80", "patch-hi-80"]].isna().all(axis=None)
    (said,) = [str(one.message) for one in recwarn if "intervals" in str(one.message)]
    assert said.startswith("c: too few rows for intervals, whose ends are left empty: it takes 24")
    alone = again.forecast(table[table["unique_id"] == "b"], level=[80])
    assert np.array_equal(alone["patch-lo-80"], found.loc["b", "patch-lo-80"])
    other = again.forecast(lengths({"d": 300}, "2010-01-01"), level=[80])  # all of its rows are news
    assert other["patch-lo-80"].notna().all()


def test_figures_of_intervals_leave_out_series_without_any(of_lengths, recwarn):
    found = of_lengths.evaluate(lengths({"a": 600, "b": 400, "c": 60}), level=[80, 90])["intervals"]["80"]
    (said,) = [str(one.message) for one in recwarn if "intervals" in str(one.message)]
    assert said.startswith("c: too few windows of validation for intervals")
    kept = of_lengths.evaluate(lengths({"a": 600, "b": 400}), level=[80])["intervals"]["80"]
    assert found["coverage"] == kept["coverage"] and found["by_step"] == kept["by_step"]
    assert found["by_channel"]["b"] == kept["by_channel"]["b"]
    assert all(np.isnan(value) for value in found["by_channel"]["c"].values())
    verdict = of_lengths.compare(lengths({"a": 600, "b": 400, "c": 60}))
    text = Path(verdict["report"]).read_text(encoding="utf-8")
    assert verdict["series"]["intervals"] and not re.search(r"\bnan\b", text, re.I)


def test_a_history_within_the_training_rows_has_no_intervals(teacher):
    with pytest.warns(UserWarning, match="c0, c1, c2: too few rows for intervals"):
        found = teacher.forecast(table().head(220), level=[80])
    assert found["c1"].notna().all() and found["c1-lo-80"].isna().all()
    with pytest.warns(UserWarning, match="too few rows for intervals"):
        past = teacher.cross_validation(table().head(250), n_windows=20, step_size=1, level=[80])
    told = past.groupby("cutoff")["patch-lo-80"].count()
    assert told.iloc[0] == 0 and told.iloc[-1] == 12  # from where enough is known


def test_times_with_and_without_a_zone_meet(teacher, recwarn):
    history = table()
    history["date"] = history["date"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    found = teacher.forecast(history, level=[80])
    assert np.array_equal(found["c1-lo-80"], teacher.forecast(table(), level=[80])["c1-lo-80"])
    assert found["date"].iloc[0] == history["date"].iloc[-1] + pd.Timedelta("1h")
    assert len(teacher.cross_validation(history, 3)) == 36 and not recwarn.list


def test_whole_numbers_go_on_as_such_and_tell_where_training_ended(tmp_path, recwarn):
    run, history = tuner(tmp_path / "run"), table().assign(date=np.arange(1, 301))
    run.load_model()
    run.fit(history, **QUICK)
    recwarn.clear()  # of torch
    found = run.forecast(history, level=[80])
    assert run.model.config.trained_until == 210 and found["date"].tolist() == [301, 302, 303, 304]
    assert found["c1-lo-80"].notna().all() and not recwarn.list
    with pytest.warns(UserWarning, match="it is not known up to when patch was trained"):
        run.forecast(table(), level=[80])


# ---- simple models


def test_simple_models_are_asked_as_they_are(tmp_path):
    history = table()
    repeat = tuner(tmp_path / "repeat", "repeat-last")
    repeat.load_model()
    assert np.allclose(repeat.forecast(history, level=[])["c1"], history["c1"].iloc[-1])
    season = tuner(tmp_path / "season", "seasonal-naive", season=8)
    season.load_model()
    assert np.allclose(season.forecast(history, level=[])["c0"], history["c0"].iloc[-8:-4], atol=1e-5)
    line = tuner(tmp_path / "line", "linear")
    line.load_model()
    with pytest.raises(OrderError, match="linear has not learned"):
        line.forecast(history)
    assert line.evaluate(history)["mse"] < repeat.evaluate(history)["mse"]  # it was fitted
    assert len(line.forecast(history)) == 4
    unknown = tuner(tmp_path / "none", "seasonal-naive")
    with pytest.raises(RecipeError, match="repeats a season, and none is given"):
        unknown.load_model()


def test_a_line_as_comparator_is_fitted_to_each_table(tmp_path):
    one, other = table(), table()
    other[["c0", "c1", "c2"]] = np.random.default_rng(3).normal(size=(300, 3)).cumsum(0)
    line, fresh = tuner(tmp_path / "line", "linear"), tuner(tmp_path / "fresh", "linear")
    line.load_model()
    fresh.load_model()
    line.evaluate(one)
    mse = line.evaluate(other)["mse"]
    assert mse == fresh.evaluate(other)["mse"]
    line.fit(one, **QUICK)
    assert line.evaluate(other)["mse"] != mse  # it was fitted to a table of the user's choice


# ---- folded


def test_a_folded_export_forecasts_the_same_and_stands_for_the_run(tmp_path, capsys):
    history = table()
    run = LLMFineTuner(
        "time_llm", tmp_path / "run", task="forecasting", series={**SIZES, "description": "waves"}, shape=TIME,
        device="cpu",
    )  # fmt: skip
    run.load_model()
    run.fit(history, **QUICK)
    told = run.export("folded")
    assert told["parameters"] < told["parameters_before"] == run.model.num_parameters()
    again = tuner(tmp_path / "again", told["folder"])
    again.load_model()
    assert again.model.config.folded and again.model.num_parameters() == told["parameters"]
    one, other = run.forecast(history), again.forecast(history)
    assert np.allclose(one.iloc[:, 1:], other.iloc[:, 1:], atol=1e-5)
    assert run.evaluate(history)["mse"] == pytest.approx(again.evaluate(history)["mse"], abs=1e-6)
    typed = tmp_path / "typed"
    assert main(["export", str(tmp_path / "run"), "--to", "folded", "--output", str(typed)]) == 0
    assert (typed / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "folded" / "model.safetensors"
    ).read_bytes()
    assert main(["export", str(typed), "--to", "folded", "--output", str(tmp_path / "twice")]) != 0
    assert "nothing to fold" in capsys.readouterr().err
    assert main(["export", str(typed), "--to", "merged", "--output", str(tmp_path / "whole")]) == 0
    why = (
        "ONNX files are written of models that read texts"
        if find_spec("onnx")
        else "export to onnx needs onnx"
    )
    with pytest.raises(ModelError, match=why):
        run.export("onnx")


# ---- wrong use


def test_what_cannot_be_says_what_to_do(teacher, tmp_path):
    fresh = tuner(tmp_path / "fresh")
    fresh.load_model()
    history = table()
    for call, error, said in (
        (lambda: fresh.forecast(history), OrderError, "patch has not learned from any rows yet"),
        (lambda: teacher.forecast(history, horizon=9), RecipeError, "more than the 4 steps"),
        (lambda: teacher.forecast(history, level=80), RecipeError, "must be a list of percentages"),
        (lambda: teacher.forecast(history, level=[0.8]), RecipeError, "in percent"),
        (lambda: teacher.forecast(history, level=[100]), RecipeError, "below 100"),
        (lambda: teacher.forecast(history.head(15), level=[]), DataError, "15 rows before the first forecast"),
        (lambda: teacher.cross_validation(history, n_windows=90), DataError, "fewer cut-offs"),
        (lambda: teacher.predict(["a"]), RecipeError, "predict is for texts"),
        (lambda: teacher.prepare_dataset(history), RecipeError, "prepare_dataset is for texts"),
        (lambda: teacher.merge(), RecipeError, "carries no adapter"),
        (lambda: fresh.fit(history, eval_fraction=0.1), RecipeError, "parted before"),
        (lambda: fresh.setup_forecast_distillation(), OrderError, "needs a teacher"),
        (lambda: fresh.load_teacher_model("patch"), RecipeError, "nobody has trained"),
        (lambda: fresh.load_dataset_from_source(history, num_samples=5), RecipeError, "are read whole"),
        (lambda: tuner(tmp_path / "a", lookbak=3), RecipeError, "did you mean 'data.series.lookback'"),
        (lambda: LLMFineTuner("patch", series=SIZES), RecipeError, "the task is causal_lm"),
        (lambda: LLMFineTuner("some/model", task="forecasting", shape=SMALL), RecipeError, "shape is of a model"),
    ):  # fmt: skip
        with pytest.raises(error, match=said) as raised:
            call()
        assert raised.value.hint
