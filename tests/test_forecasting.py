"""Forecasting through the engine: steps against float64 references, and what must not change a forecast."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from task_steps import gradient_of, gradient_of_step
from test_forecasters import SMALL, TIME

from llm_finetuner.assembly import Parts
from llm_finetuner.data import series
from llm_finetuner.data.windows import Windows, frame
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models import build
from llm_finetuner.recipe import Model
from llm_finetuner.recipe_file import from_dict
from llm_finetuner.recipe_series import Series
from llm_finetuner.tasks.forecasting import Forecasting
from llm_finetuner.trainer import fit

SIZES = {"lookback": 16, "horizon": 4}
TEACHER = {**SMALL, **SIZES, "hidden_size": 24, "num_layers": 3, "num_heads": 4}
LEVELS = [0.1, 0.5, 0.9]


def table(rows: int = 300, channels: int = 3, seed: int = 0) -> pd.DataFrame:
    draw, steps = np.random.default_rng(seed), np.arange(rows)
    made = {
        f"c{i}": 5 * i + np.sin(2 * np.pi * steps / (8 + 4 * i)) + 0.2 * draw.normal(size=rows)
        for i in range(channels)
    }
    return pd.DataFrame({"date": pd.date_range("2021", periods=rows, freq="h"), **made})


@pytest.fixture(scope="module")
def rows() -> Windows:
    """Eight windows of three channels, in float64."""
    (group,), _ = series.load(table(), Series())
    whole = frame([group], Series(**SIZES), 24).part("train")
    exact = [whole.frame.scales[0].down(group.values)]
    return Windows(exact, whole.starts[::23][:8], 16, 4, whole.frame)


def patch(seed: int = 0, **shape):
    return build.drawn(build.patch, seed, {**SMALL, **SIZES, **shape}).double()


@pytest.fixture(scope="module")
def teacher():
    return build.drawn(build.patch, 7, TEACHER).double()


def said(model, rows, hidden: bool = False):
    """Each channel of each window by itself: forecasts [N, V], and the states after each block [[N, P, D]]."""
    values, states = [], []
    for number in range(len(rows)):
        for channel in range(rows[number]["context"].shape[1]):
            kept = []
            hooks = [
                layer.register_forward_hook(lambda _m, _i, o, kept=kept: kept.append(o))
                for layer in model.layers
            ]
            values.append(
                model(torch.from_numpy(rows[number]["context"][:, channel][None])).values.flatten(1)[0]
            )
            states.append(kept)
            for hook in hooks:
                hook.remove()
    stacked = [torch.cat([kept[block] for kept in states]) for block in range(len(model.layers))]
    return (torch.stack(values), stacked) if hidden else torch.stack(values)


def truth(rows):
    return torch.cat([torch.from_numpy(rows[number]["target"].T) for number in range(len(rows))])


def close(got, want, tolerance: float = 1e-9):
    scale = max(g.abs().max() for g in want.values() if g is not None)
    for name, gradient in want.items():
        assert (got[name] - (0 if gradient is None else gradient)).abs().max() < tolerance * scale, name


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_a_step_is_the_gradient_of_the_guide_s_loss_however_it_is_cut(
    tmp_path, rows, teacher, batch, accumulation
):
    student = patch()
    got, record = gradient_of_step(
        "forecasting", tmp_path, student, teacher, rows, "forecast_distillation", batch, accumulation, alpha=0.6,
        beta=0.3,
    )  # fmt: skip
    own = said(student, rows)
    to_truth, to_teacher = F.mse_loss(own, truth(rows)), F.mse_loss(own, said(teacher, rows).detach())
    close(got, gradient_of(0.6 * to_truth + 0.3 * to_teacher, student))
    assert record["mse"] == pytest.approx(to_truth.item(), rel=1e-12)
    assert record["output_mse"] == pytest.approx(to_teacher.item(), rel=1e-12)
    assert record["loss"] == pytest.approx(0.6 * to_truth.item() + 0.3 * to_teacher.item(), rel=1e-12)


def test_only_the_ratio_of_alpha_and_beta_matters(tmp_path, rows, teacher):
    student, found = patch(), []
    for alpha, beta in ((0.3, 0.6), (1.0, 2.0)):
        got, _ = gradient_of_step(
            "forecasting", tmp_path, student, teacher, rows, "forecast_distillation", alpha=alpha, beta=beta
        )
        found.append({name: gradient / (alpha + beta) for name, gradient in got.items()})
    close(found[0], found[1])
    mixed = (truth(rows) + 2 * said(teacher, rows).detach()) / 3
    close(found[0], gradient_of(F.mse_loss(said(student, rows), mixed), student))


def test_without_beta_it_is_plain_training_bit_for_bit(tmp_path, rows, teacher):
    student = patch()
    plain, _ = gradient_of_step("forecasting", tmp_path, student, None, rows, "fine_tuning")
    alone, record = gradient_of_step(
        "forecasting", tmp_path, student, teacher, rows, "forecast_distillation", alpha=1.0, beta=0.0
    )
    assert all(torch.equal(plain[name], alone[name]) for name in plain)
    assert "output_mse" not in record


def test_states_of_patches_are_compared_within_a_window(tmp_path, rows, teacher):
    student = patch()
    got, record = gradient_of_step(
        "forecasting", tmp_path, student, teacher, rows, "distillation",
        objectives={"cka": {"layers": [[1, 2]]}},
    )  # fmt: skip
    own, other = said(student, rows, hidden=True)[1][1], said(teacher, rows, hidden=True)[1][2].detach()
    total = 0
    for window in range(8):  # all patches of all channels of a window belong together
        x, y = (z[3 * window : 3 * window + 3].flatten(0, 1) for z in (own, other))
        x, y = x - x.mean(0), y - y.mean(0)
        total += 1 - (y.T @ x).square().sum() / ((x.T @ x).square().sum() * (y.T @ y).square().sum()).sqrt()
    close(got, gradient_of(total / 8, student), 1e-8)
    assert record["cka"] == pytest.approx(total.item() / 8, rel=1e-9)


def test_channels_of_a_window_are_related_and_no_others(tmp_path, rows, teacher):
    student = patch()
    got, record = gradient_of_step(
        "forecasting", tmp_path, student, teacher, rows, "forecast_distillation", 2, 4, alpha=0.0, beta=0.0,
        relation_weight=1.0,
    )  # fmt: skip

    def cosines(model):
        pooled = model.norm(said(model, rows, hidden=True)[1][-1]).mean(1).unflatten(0, (8, 3))
        unit = F.normalize(pooled, dim=-1)
        return unit @ unit.transpose(1, 2)

    apart = ~torch.eye(3, dtype=bool)
    loss = (cosines(student) - cosines(teacher).detach()).square()[:, apart].mean()
    close(got, gradient_of(loss, student), 1e-8)
    assert record["token_relation"] == pytest.approx(loss.item(), rel=1e-9)


def test_quantiles_learn_by_pinball_and_from_the_teacher_s_quantiles(tmp_path, rows):
    student, teacher = patch(quantiles=LEVELS), patch(3, quantiles=LEVELS)
    got, record = gradient_of_step(
        "forecasting", tmp_path, student, teacher, rows, "forecast_distillation", alpha=0.5, beta=0.5
    )
    own, level = said(student, rows).unflatten(1, (4, 3)), torch.tensor(LEVELS, dtype=torch.float64)
    gap = truth(rows)[..., None] - own
    pinball = torch.where(gap > 0, level * gap, (level - 1) * gap).mean()
    apart = F.mse_loss(own, said(teacher, rows).detach().unflatten(1, (4, 3)))
    close(got, gradient_of(0.5 * pinball + 0.5 * apart, student))
    assert record["pinball"] == pytest.approx(pinball.item(), rel=1e-12)


def test_a_teacher_that_is_the_student_teaches_nothing(tmp_path, rows):
    student = patch()
    got, record = gradient_of_step(
        "forecasting", tmp_path, student, copy.deepcopy(student), rows, "forecast_distillation", alpha=0.0, beta=1.0,
        spectrum_weight=1.0, scale_weight=1.0,
    )  # fmt: skip
    assert max(gradient.abs().max() for gradient in got.values()) < 1e-12 and record["loss"] < 1e-15


def test_terms_that_do_not_fit_are_refused(tmp_path, rows, teacher):
    for objectives, why in (
        ({"jsd": 1.0}, "the answers here are numbers"),
        ({"hidden_mse": {"layers": [[0, 9]]}}, "9"),
        ({"attention_mse": 1.0}, "attention"),
    ):
        with pytest.raises((RecipeError, ModelError), match=why):
            gradient_of_step(
                "forecasting", tmp_path, patch(), teacher, rows, "distillation", objectives=objectives
            )
    with pytest.raises(RecipeError, match="gives quantiles"):
        gradient_of_step(
            "forecasting", tmp_path, patch(quantiles=LEVELS), patch(1, quantiles=LEVELS), rows, "forecast_distillation",
            spectrum_weight=1.0,
        )  # fmt: skip
    with pytest.raises(ModelError, match=r"quantiles \[0.1, 0.5, 0.9\], the teacher \[\]"):
        gradient_of_step(
            "forecasting", tmp_path, patch(quantiles=LEVELS), teacher, rows, "forecast_distillation"
        )
    line = build.linear(**SIZES).double()
    with pytest.raises(RecipeError, match="hidden states, and this teacher gives answers only"):
        gradient_of_step(
            "forecasting", tmp_path, patch(), line, rows, "forecast_distillation", feature_weight=1.0
        )


# ---- whole runs


def recipe(folder, source, **changes):
    settings = {
        "task": "forecasting", "method": "forecast_distillation",
        "student": {"name": "patch", "shape": {**SMALL, "num_layers": 1}}, "teacher": {"name": "linear"},
        "data": {"source": str(source), "series": dict(SIZES)},
        "train": {
            "steps": 4, "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "precision": "fp32",
        },
        "output": str(folder),
    }  # fmt: skip
    for name, value in changes.items():
        settings[name] = (
            {**settings[name], **value} if isinstance(value, dict) and name in settings else value
        )
    return from_dict(settings)


@pytest.fixture
def source(tmp_path):
    table().to_csv(tmp_path / "series.csv", index=False)
    return tmp_path / "series.csv"


def test_a_line_that_teaches_is_fitted_to_the_training_rows(tmp_path, source):
    found = fit(recipe(tmp_path / "run", source))
    assert found.history[0]["output_mse"] > 0
    frame_ = Forecasting().frame(source, recipe(tmp_path / "x", source).data)
    line = build.linear(**SIZES)
    Forecasting().meet(line, frame_.part("train"))
    again = fit(recipe(tmp_path / "again", source), Parts(teacher=line))
    assert [r["output_mse"] for r in again.history] == [r["output_mse"] for r in found.history]


def test_weights_are_chosen_on_validation_and_test_rows_change_nothing(tmp_path, source):
    first = fit(recipe(tmp_path / "a", source, train={"eval_every": 2}))
    changed = table()
    changed.loc[240:, ["c0", "c1", "c2"]] = 1e6  # the test part
    changed.to_csv(source, index=False)
    second = fit(recipe(tmp_path / "b", source, train={"eval_every": 2}))
    assert first.metrics["eval_mse"] == second.metrics["eval_mse"]
    for one, other in zip(first.tuned.model.parameters(), second.tuned.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["full", "frozen", "lora"])
def test_which_weights_of_time_llm_move(tmp_path, source, kind):
    changes = {
        "method": "fine_tuning", "teacher": None, "student": {"name": "time_llm", "shape": TIME},
        "data": {"source": str(source), "series": {**SIZES, "description": "waves"}}, "tuning": {"kind": kind},
    }  # fmt: skip
    chosen = recipe(tmp_path / "run", source, **changes)
    before = build.drawn(build.time_llm, 0, chosen.student.shape)
    model = fit(chosen).tuned.model
    now, then = dict(model.named_parameters()), dict(before.named_parameters())
    same = {
        name: torch.equal(weight, now.get(name, now.get(name.replace(".weight", ".base_layer.weight"), weight)))
        for name, weight in then.items() if name.startswith("backbone.encoder")
    }  # fmt: skip
    assert all(same.values()) == (kind != "full")
    moved = [
        name for name in now if name.startswith(("embed", "reprogram", "head")) and now[name].requires_grad
    ]
    assert moved


def test_small_forecasters_take_no_adapter(tmp_path, source):
    with pytest.raises(ModelError, match="is trained whole"):
        fit(recipe(tmp_path / "run", source, tuning={"kind": "lora"}))
    with pytest.raises(ModelError, match="nothing would be trained"):
        fit(recipe(tmp_path / "run", source, tuning={"kind": "frozen"}))


def test_a_run_of_another_horizon_is_refused(tmp_path, source):
    fit(recipe(tmp_path / "big", source))
    other = recipe(
        tmp_path / "run", source, teacher={"name": str(tmp_path / "big")},
        data={"source": str(source), "series": {**SIZES, "horizon": 6}},
    )  # fmt: skip
    with pytest.raises(ModelError, match="the student has horizon 6, the teacher 4"):
        fit(other)
    with pytest.raises(DataError, match="the windows have look-back 16 and horizon 6, the model 16 and 4"):
        fit(
            replace(
                other, method="fine_tuning", options={}, teacher=None, student=Model(str(tmp_path / "big"))
            )
        )


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, source):
    whole = fit(recipe(tmp_path / "a", source, train={"save_every": 2, "eval_every": 2, "steps": 6}))
    half = recipe(tmp_path / "b", source, train={"save_every": 2, "eval_every": 2, "steps": 6})

    def stop(kind, record):
        if kind == "step" and record["step"] == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(half, on_event=stop)
    resumed = fit(half, resume=True)
    for one, other in zip(whole.tuned.model.parameters(), resumed.tuned.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["time_llm", "patch", "linear", "seasonal-naive"])
def test_series_give_a_model_its_sizes_and_leave_it_the_rest(name):
    """A setting of windows that is called like one of a model would take its place unseen."""
    section = {"lookback": 48, "horizon": 12, "description": "load", "window_step": 3, "season": 7}
    student = from_dict(
        {"task": "forecasting", "student": {"name": name}, "data": {"series": section}}
    ).student
    plain = from_dict({"task": "forecasting", "student": {"name": name}}).student
    changed = {key for key in student.shape if student.shape[key] != plain.shape[key]}
    assert changed <= {"lookback", "horizon", "description", "season"} and {"lookback", "horizon"} <= changed
