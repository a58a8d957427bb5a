"""How differences, ratios and numbers of examples are written, and which simple models a sentence must name."""

import numpy as np
import pytest

from llm_finetuner.benchmark import judge
from llm_finetuner.benchmark.enough import ENOUGH, counted, least, told_apart
from llm_finetuner.benchmark.phrases import change, listed, times
from llm_finetuner.benchmark.quality import Quality
from llm_finetuner.report.write import title
from llm_finetuner.tasks.forecasting import Forecasting

WINDOWS = 360


def pair(size: float, low: float, high: float) -> dict:
    ends = {"change": size, "change_low": low, "change_high": high}
    return {
        "difference": size,
        "low": low,
        "high": high,
        "significant": low > 0 or high < 0,
        "p": 0.5,
        **ends,
    }


@pytest.mark.parametrize(
    "size, low, high, said",
    [
        (-0.4, -0.5, -0.2, "0.4 % lower (95 % interval -0.5 to -0.2 %), more than the uncertainty"),
        (-0.3, -0.6, 0.1, "0.3 % lower (95 % interval -0.6 to +0.1 %), not more than the uncertainty"),
        (2.0, 1.0, 3.0, "2.0 % higher (95 % interval +1.0 to +3.0 %), more than the uncertainty"),
        (-0.01, -0.1, 0.1, "less than 0.05 % lower (95 % interval -0.1 to +0.1 %), not more than"),
    ],
)
def test_an_interval_has_the_signs_of_the_differences(size, low, high, said):
    assert change(pair(size, low, high), 100, "%").startswith(said)


@pytest.mark.parametrize(
    "ratio, said",
    [(1234.56, "1,234.6"), (14.29, "14.3"), (1.0, "1.0"), (0.96, "1.0"), (0.944, "0.94"), (0.5, "0.50"),
     (0.0385, "0.038"), (0.00012, "0.00012")],
)  # fmt: skip
def test_a_small_ratio_keeps_two_digits(ratio, said):
    assert times(ratio) == said


def test_names_in_a_row():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_windows_that_overlap_are_counted_with_how_many_do_not():
    assert (least(0), least(4), least(1)) == (ENOUGH, 48, ENOUGH)
    assert counted(1500, 0, "other held-out ") == "1,500 other held-out examples"
    assert counted(170, 24) == "170 windows (as much as 7 that do not overlap)"
    assert (
        "bootstrap" in told_apart(0) and "Student's t" in told_apart(24) and "bootstrap" not in told_apart(24)
    )


def case_of(**errors: float) -> judge.Case:
    """A distilled student, alone, and simple models by name, with these errors in every window but for some noise."""
    measure, draw = Forecasting().measure, np.random.default_rng(0)
    noise = draw.normal(scale=0.02, size=(len(errors), WINDOWS))
    scored = {
        name: Quality(error + own, np.ones(WINDOWS, int), span=4)
        for (name, error), own in zip(errors.items(), noise, strict=True)
    }
    roles = {name: name if name in ("distilled", "baseline_steps") else "simple" for name in errors}
    lines = [
        {"name": name, "role": roles[name], "calibration_error": None, **measure.summary(quality)}
        for name, quality in scored.items()
    ]
    pairs = [
        {"name": "distilled", "other": name, "role": roles[name]}
        | measure.compare(scored["distilled"], scored[name])
        for name in errors
        if name != "distilled"
    ]
    return judge.Case(lines, pairs, WINDOWS, measure, 4)


def test_a_student_that_is_clearly_worse_is_called_worse():
    case = case_of(distilled=0.45, baseline_steps=0.5, line=0.31, season=0.45001, last=1.2)
    found = judge.finding(case, case.lines[0])
    assert found["sentence"].startswith(
        f"Distilled is worse than line (MSE {case.shown(case.line('line'))}), and does not measurably beat season (MSE "
    )
    assert ", which cost next to nothing. At equal steps distilling paid: " in found["sentence"]
    assert "last" not in found["sentence"] and found["simpler"] == ["line"] and found["paid"] == "yes"
    alone = judge.finding(case_of(distilled=0.45, line=0.31), case.lines[0])["sentence"]
    assert "), which costs next to nothing. " in alone and "measurably" not in alone


@pytest.mark.parametrize(
    "paid, simpler, more, said",
    [
        ("yes", [], {}, "It paid"),
        ("yes", ["line"], {}, "It paid, but line is better"),
        ("no", ["line", "season"], {}, "It did not pay, and line and season are better"),
        ("no", [], {"untaught": "auto chose the plain run"}, "It did not pay: auto chose the plain run"),
    ],
)  # fmt: skip
def test_a_title_names_the_simple_models_that_are_better(paid, simpler, more, said):
    assert title({"paid": paid, "simpler": simpler, **more}) == said
