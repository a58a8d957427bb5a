"""Did it pay? What verdict and report say of good teachers, spoilt ones, and data without a pattern."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_forecast_facade import tuner
from test_forecasters import SMALL
from test_forecasting import table

from llm_finetuner.benchmark import judge, speed
from llm_finetuner.benchmark.quality import Quality
from llm_finetuner.tasks.forecasting import Forecasting

PLAN = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
HASTY = {**PLAN, "epochs": 1}


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Speeds are of no interest here."""
    monkeypatch.setattr(speed, "TURN", 0.001)


def distilled(folder, history, teacher, plan=HASTY, beta=0.5, **options):
    run = tuner(folder, shape={**SMALL, "num_layers": 1})
    run.load_model("forecast_distillation")
    run.load_teacher_model(teacher)
    run.setup_forecast_distillation(alpha=1 - beta, beta=beta)
    run.fit(history, **plan)
    return run.compare(history, **options), run


def line_of(said, role):
    return next(model for model in said["models"] if model["role"] == role)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The folder of a teacher that was spoilt on purpose."""
    spoilt = table(400)
    for name in ("c0", "c1", "c2"):  # what follows a look-back is drawn from anywhere
        spoilt[name] = np.random.default_rng(0).permutation(spoilt[name])
    teacher = tuner(tmp_path_factory.mktemp("spoilt"))
    teacher.load_model()
    teacher.fit(spoilt, **HASTY)
    return teacher.recipe.output


def test_a_teacher_that_was_spoilt_on_purpose_trips_the_gate(tmp_path, spoilt):
    said, _ = distilled(tmp_path / "run", table(400), spoilt, PLAN, beta=0.9)
    assert said["paid"] == "no" and "distilling did not pay" in said["sentence"]
    alone, found = line_of(said, "baseline_steps"), " ".join(said["warnings"])
    assert f"The teacher (teacher) is worse than {alone['name']}: there was nothing to compress" in found
    assert "worse than line in closed form, which costs next to nothing: take that one, or beta = 0" in found
    assert (
        "is worse than the same student trained on the truth alone for as many steps: take beta = 0" in found
    )
    assert line_of(said, "teacher")["mse"] > alone["mse"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        "there was nothing to compress" in page and "<title>It did not pay, and line in closed form" in page
    )


def test_where_auto_chose_no_teacher_all_say_so(tmp_path, spoilt):
    run = tuner(tmp_path / "run", shape={**SMALL, "num_layers": 1})
    run.load_model("forecast_distillation")
    run.load_teacher_model(spoilt)
    run.setup_forecast_distillation(beta="auto")
    run.fit(table(400), **PLAN)
    said = run.compare(table(400), seeds=3)
    assert said["share"]["chosen"] == 0 and said["paid"] == "no" and "seeds" not in said
    assert said["sentence"].startswith(
        "Distilling did not pay: on validation the teacher did not help, and beta: auto chose the plain run, without "
        "it. There are no pairs of seeds to compare: both sides would be the same run. The plain run "
    )
    assert not {"distilled", "baseline_steps"} & {model["role"] for model in said["models"]}
    assert "beta = 0" not in " ".join(said["warnings"])
    for name in ("report.md", "report.html"):
        page = (tmp_path / "run" / name).read_text()
        assert "It did not pay: auto chose the plain run, and line in closed form is better" in page
        assert "Chosen: 0.0, the teacher did not help" in page and "step of distillation" not in page
        tried = ", ".join(f"{one['share']:g}: {one['value']:.4f}" for one in said["share"]["candidates"])
        assert f"# Validation MSE of each share that was tried: {tried}\n" in page and tried.count(",") == 4


def test_no_weight_on_the_teacher_is_not_called_distilling(tmp_path):
    said, _ = distilled(tmp_path / "run", table(400), "linear", beta=0)
    assert said["paid"] == "unknown" and said["cost"]["ratio"] is None
    assert said["sentence"].startswith(
        "Whether distilling paid is not known: all weight is on the truth, so the teacher is not used. The plain run "
    )
    assert "beta = 0" not in " ".join(said["warnings"]) and not (tmp_path / "run" / "baseline_steps").exists()


def test_where_nothing_beats_the_last_value_the_report_says_so_first(tmp_path):
    steps = np.random.default_rng(3).normal(size=(800, 3)).cumsum(0)  # as exchange rates go
    history = pd.DataFrame({"date": pd.date_range("2021", periods=800, freq="D")}).join(
        pd.DataFrame(steps, columns=["a", "b", "c"])
    )
    said, run = distilled(tmp_path / "run", history, "linear")
    first = said["sentence"].split(" (MSE ")[0]
    assert re.fullmatch(r"Forecast distillation (is worse than|does not measurably beat) last value", first)
    assert re.search(r"The teacher \(teacher\) is (worse|not)", " ".join(said["warnings"]))
    assert line_of(said, "simple")["name"] == "last value"
    assert first in (tmp_path / "run" / "report.md").read_text()
    plain = tuner(tmp_path / "plain", shape={**SMALL, "num_layers": 1})
    plain.load_model()
    plain.fit(history, **HASTY)
    alone = plain.compare(history)  # without any teacher the simple forecasts are what is to be beaten
    assert alone["paid"] == "no" and " last value (MSE " in alone["sentence"].split(", which cost")[0]
    assert not any(model["role"] in ("teacher", "baseline_steps") for model in alone["models"])


def test_a_report_of_several_seeds_tells_all(tmp_path):
    history = table(400, channels=2)
    said, run = distilled(tmp_path / "run", history, "linear", seeds=2)
    assert "Look-back 16, horizon 4." in said["sentence"] and "Over 2 seeds" in said["sentence"]
    others = {pair["other"] for pair in said["differences"] if pair["name"] == "teacher"}
    assert others == {"last value", "the truth, same steps"}  # it is the line in closed form itself
    assert "closed form" not in " ".join(said["warnings"])
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    series, names = kept["series"], [model["name"] for model in kept["models"]]
    assert kept["paid"] == said["paid"] and set(series["by_step"]) == set(series["skill"]) == set(names)
    overall = {model["name"]: model["mse"] for model in kept["models"]}
    for name in names:  # windows and channels count alike, so parts average to the whole
        assert np.mean(series["by_step"][name]) == pytest.approx(overall[name], rel=1e-4)
        assert np.mean(list(series["by_channel"][name].values())) == pytest.approx(overall[name], rel=1e-4)
        assert series["skill"][name]["overall"] == pytest.approx(
            1 - overall[name] / overall["last value"], rel=1e-4
        )
    assert series["skill"]["last value"]["overall"] == 0 and series["naive"] == "last value"
    assert set(series["intervals"]) == {"teacher", "forecast distillation"}
    shares = list(series["reliability"]["teacher"].values())
    assert shares == sorted(shares) and len(shares) == 5
    example = series["examples"][0]
    begins = pd.Timestamp(example["begins"])
    came = history.set_index("date").loc[begins:, example["channel"]].head(4)
    assert np.allclose(example["truth"], came)
    told = run.forecast(history[history["date"] < begins], level=[])[example["channel"]]
    assert np.allclose(told, example["forecasts"]["forecast distillation"]["point"], atol=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    for part in (
        "Forecasts", "Errors by step and channel", "Intervals", "In the units of the data", "By seed", "Training",
        "MSE by step of the horizon", "coverage against what was wanted", "accuracy, latency and size",
        "error to the truth", "error to the teacher", "weighted total",
    ):  # fmt: skip
        assert re.search(rf"<h[23]>{part}</h[23]>", page), part
    assert page.count('class="fan') == 2 * 4 * 2 and page.count('class="bubble') >= 3
    assert "NaN" not in page and "nan" not in re.sub(r"<[^>]*>", "", page).lower().split()
    assert "| c0 |" in (tmp_path / "run" / "report.md").read_text()


def test_models_of_quantiles_are_compared_by_their_medians(tmp_path):
    history, levels = table(400), [0.1, 0.5, 0.9]
    teacher = tuner(tmp_path / "teacher", quantiles=levels)
    teacher.load_model()
    teacher.fit(history, **HASTY)
    alone = teacher.compare(history)  # simple models give one number a step
    assert {model["name"] for model in alone["models"]} >= {"last value", "line in closed form"}
    run = tuner(tmp_path / "run", shape={**SMALL, "num_layers": 1}, quantiles=levels)
    run.load_model("forecast_distillation")
    run.load_teacher_model(teacher.recipe.output)
    run.fit(history, **HASTY)
    said = run.compare(history)
    medians = [
        one.cross_validation(history, n_windows=77, step_size=1).sort_values(["cutoff", "unique_id", "ds"])["patch"]
        for one in (teacher, run)
    ]  # fmt: skip
    spread = history[["c0", "c1", "c2"]].iloc[:280].std(ddof=0).repeat(4).to_numpy()
    gap = (medians[0].to_numpy() - medians[1].to_numpy()).reshape(-1, 12) / spread
    by_role = {model["role"]: model for model in said["models"]}
    assert by_role["distilled"]["mse_to_teacher"] == pytest.approx(np.square(gap).mean(), rel=1e-4)
    assert next(m for m in said["models"] if m["name"] == "last value")["mse_to_teacher"] > 0
    assert by_role["distilled"]["mse"] == pytest.approx(run.evaluate(history)["mse"], rel=1e-5)


def test_few_separate_windows_are_no_ground_for_an_answer():
    measure, windows = Forecasting().measure, 170
    sizes, tokens = {"distilled": 1.0, "baseline_steps": 9.0}, np.ones(windows, int)
    scored = {role: Quality(np.full(windows, at), tokens, span=24) for role, at in sizes.items()}
    lines = [
        {"name": role, "role": role, "calibration_error": None, **measure.summary(quality)}
        for role, quality in scored.items()
    ]
    pair = {"name": "distilled", "other": "baseline_steps", "role": "baseline_steps"}
    pair |= measure.compare(scored["distilled"], scored["baseline_steps"])
    case = judge.Case(lines, [pair], windows, measure, 24)
    found = judge.finding(case, lines[0])
    assert found["paid"] == "unclear" and lines[0]["mse_low"] is None
    assert "distilling cannot be judged" in found["sentence"]
    assert "88.9 % lower on 170 windows that overlap, too few for an interval" in found["sentence"]
    assert (
        "too few separate windows: 170 that overlap are as much as 7 that do not" in judge.warnings(case)[0]
    )
