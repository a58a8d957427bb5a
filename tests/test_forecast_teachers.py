"""Teachers of forecasters: answers on disk, several at once, lines that are fitted, and what cannot teach."""

import pytest
import torch
from test_forecasters import SMALL
from test_forecasting import SIZES, recipe, source  # noqa: F401  a fixture

from llm_finetuner.assembly import Parts
from llm_finetuner.cache_job import cache_answers
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models import build
from llm_finetuner.models.forecaster import Forecast
from llm_finetuner.models.linear_forecaster import LinearForecasterConfig
from llm_finetuner.tasks.forecasting import Forecasting
from llm_finetuner.trainer import fit

EXACT = {"steps": 8, "eval_every": 0}


@pytest.fixture
def taught(tmp_path, source):  # noqa: F811
    """The folder of a teacher."""
    shape = {**SMALL, "hidden_size": 24, "num_heads": 4}
    fit(recipe(tmp_path / "taught", source, method="fine_tuning", teacher=None, student={"shape": shape}))
    return str(tmp_path / "taught")


def weights(result):
    return torch.cat([weight.detach().flatten() for weight in result.tuned.model.parameters()])


@pytest.mark.parametrize("quantiles", [[], [0.1, 0.5, 0.9]])
def test_answers_on_disk_teach_as_the_live_teacher_does(tmp_path, source, quantiles):  # noqa: F811
    series = {"data": {"source": str(source), "series": {**SIZES, "quantiles": quantiles}}}
    fit(recipe(tmp_path / "taught", source, method="fine_tuning", teacher=None, **series))
    taught, cache = str(tmp_path / "taught"), str(tmp_path / "cache")
    live = fit(recipe(tmp_path / "live", source, teacher={"name": taught}, train=EXACT, **series))
    given = {"kind": "live_cached", "name": taught, "options": {"path": cache}}
    several = {**EXACT, "batch_size": 32, "steps": 20}  # two epochs and more
    filled = fit(recipe(tmp_path / "filled", source, teacher=given, train=several, **series))
    again = fit(recipe(tmp_path / "again", source, teacher={"name": taught}, train=several, **series))
    assert (weights(filled) - weights(again)).abs().max() < 1e-6
    read = fit(
        recipe(tmp_path / "read", source, teacher={"kind": "cached", "name": "", "options": {"path": cache}},
               train=EXACT, **series)
    )  # fmt: skip
    assert (weights(live) - weights(read)).abs().max() < 1e-6
    assert [r["output_mse"] for r in read.history] == pytest.approx(
        [r["output_mse"] for r in live.history], rel=1e-5
    )


def test_the_cache_command_writes_all_of_a_forecast_and_states_of_patches(tmp_path, source, taught):  # noqa: F811
    chosen = recipe(tmp_path / "run", source, teacher={"name": taught})
    told = cache_answers(chosen, tmp_path / "cache", layers=[1, "pooled"])
    assert told["rows"] == (210 - 19) + (30 - 3) and told["tokens"] == 3 * told["rows"]
    assert told["bytes_per_token"] == 4 * 4 and told["mean_kl"] == 0 and told["top_mass"] is None
    options = {"feature_weight": 1.0, "feature_layers": [[0, 1]], "relation_weight": 1.0}
    of_disk = {"kind": "cached", "name": "", "options": {"path": str(tmp_path / "cache")}}
    found = [
        fit(recipe(tmp_path / str(n), source, options=options, teacher=teacher, train=EXACT)).history
        for n, teacher in enumerate(({"name": taught}, of_disk))
    ]
    for name in ("hidden_mse", "token_relation", "output_mse"):  # states are kept in float16
        assert [r[name] for r in found[1]] == pytest.approx([r[name] for r in found[0]], rel=1e-2)


def test_a_cache_of_other_windows_says_so(tmp_path, source, taught):  # noqa: F811
    cache_answers(recipe(tmp_path / "run", source, teacher={"name": taught}), tmp_path / "cache")
    of_disk = {"kind": "cached", "name": "", "options": {"path": str(tmp_path / "cache")}}
    wide = {"source": str(source), "series": {**SIZES, "lookback": 20}}
    with pytest.raises(DataError, match="lookback was 16, is 20"):
        fit(recipe(tmp_path / "other", source, teacher=of_disk, data=wide))


def test_a_line_is_not_stored_before_it_is_fitted(tmp_path, source):  # noqa: F811
    given = {"kind": "live_cached", "name": "linear", "options": {"path": str(tmp_path / "cache")}}
    with pytest.raises(RecipeError, match="fitted to the training rows in a second"):
        fit(recipe(tmp_path / "run", source, teacher=given))
    with pytest.raises(RecipeError, match="fitted to the training rows in a second"):
        cache_answers(recipe(tmp_path / "run", source), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_several_teachers_forecast_their_mean(tmp_path, source, taught):  # noqa: F811
    both = {"kind": "ensemble", "name": "", "options": {"members": [taught, "linear"]}}
    chosen = recipe(tmp_path / "run", source, teacher=both)
    assert chosen.teacher.options["members"][1]["shape"] == {**SIZES, "quantiles": [], "closed_form": True}
    found = fit(chosen)

    class Mean(build.linear(**SIZES).__class__):
        def forward(self, context):
            said = [model(context).values for model in members]
            return Forecast((said[0] + said[1]) / 2)

    line, teacher = build.linear(**SIZES), type(found.tuned.model).from_pretrained(taught).eval()
    Forecasting().meet(line, Forecasting().frame(source, chosen.data).part("train"))
    members = line, teacher
    mean = Mean(LinearForecasterConfig(**SIZES))
    again = fit(recipe(tmp_path / "again", source, teacher={"name": "mean"}), Parts(teacher=mean))
    for name in ("output_mse", "mse"):  # Adam makes more of a rounding with every step
        assert [r[name] for r in found.history] == pytest.approx([r[name] for r in again.history], rel=1e-5)


def test_forecasts_are_no_distributions(tmp_path, source, taught):  # noqa: F811
    for options in ({"mixture": "probabilities"}, {"weights": "loss"}):
        both = {"kind": "ensemble", "name": "", "options": {"members": [taught, "linear"], **options}}
        with pytest.raises(RecipeError, match="forecasts are no one distribution"):
            fit(recipe(tmp_path / "run", source, teacher=both))


@pytest.mark.parametrize("quantiles", [[], [0.1, 0.5, 0.9]])
def test_weights_that_nobody_trained_do_not_teach(tmp_path, source, quantiles):  # noqa: F811
    series = {"source": str(source), "series": {**SIZES, "quantiles": quantiles}}
    for teacher in ({"name": "patch", "shape": SMALL}, *([{"name": "linear"}] if quantiles else [])):
        with pytest.raises(RecipeError, match="nobody has trained"):
            fit(recipe(tmp_path / "run", source, teacher=teacher, data=series))


def test_a_shuffled_line_is_fitted_too(tmp_path, source):  # noqa: F811
    chosen = recipe(tmp_path / "a", source, teacher={"name": "linear", "shuffled": True})
    line = build.linear(**SIZES)
    Forecasting().meet(line, Forecasting().frame(source, chosen.data).part("train"))
    given = fit(recipe(tmp_path / "b", source, teacher={"name": "", "shuffled": True}), Parts(teacher=line))
    assert [r["output_mse"] for r in fit(chosen).history] == [r["output_mse"] for r in given.history]
