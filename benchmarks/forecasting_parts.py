"""The parts of benchmarks/forecasting.py: each gives figures; forecasting_table.py holds them against the bars."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forecasting_made as made
import numpy as np
import torch
from forecasting_runs import (
    DESCRIPTION,
    FEW,
    FEW_STEPS,
    HORIZON,
    LOOKBACK,
    RATE,
    STEPS,
    STUDENT,
    TEACHER,
    Bench,
)

from llm_finetuner.benchmark import forecasts
from llm_finetuner.comparison import compare_run
from llm_finetuner.models import build
from llm_finetuner.models.fold import fold
from llm_finetuner.models.linear_forecaster import fit_closed_form
from llm_finetuner.models.naive import Naive, NaiveConfig
from llm_finetuner.models.time_llm import TimeLLM
from llm_finetuner.trainer import fit

Figures = dict[str, Any]


def naive(bench: Bench) -> Figures:
    """Repeat-last and the last season, and the first with four batch sizes."""
    frame, sizes = bench.frame(), {"lookback": LOOKBACK, "horizon": HORIZON}
    test, last = frame.part("test"), Naive(NaiveConfig(**sizes))
    by_batch = {
        batch: forecasts.scaled(forecasts.forecast(last, test, batch)) for batch in (1, 32, 257, 1024)
    }
    season = forecasts.scaled(forecasts.forecast(Naive(NaiveConfig(**sizes, season=frame.season)), test))
    apart = max(abs(by_batch[batch][key] - by_batch[32][key]) for batch in by_batch for key in ("mse", "mae"))
    return {"repeat_last": by_batch[32], "seasonal": season, "apart_by_batch": apart, "season": frame.season}


def line(bench: Bench) -> Figures:
    """The line in closed form, of two look-backs."""
    found = {}
    for lookback in (96, 336):
        began = time.process_time()
        frame = bench.frame(lookback=lookback)
        model = build.linear(lookback=lookback, horizon=HORIZON)
        fit_closed_form(model, frame.part("train").blocks())
        scored = forecasts.scaled(forecasts.forecast(model, frame.part("test")))
        found[str(lookback)] = {**scored, "cpu_seconds": round(time.process_time() - began, 2)}
    few = bench.frame(FEW)
    model = build.linear(lookback=LOOKBACK, horizon=HORIZON)
    fit_closed_form(model, few.part("train").blocks())
    found["few"] = forecasts.scaled(forecasts.forecast(model, few.part("test")))
    return found


def teacher(bench: Bench) -> Figures:
    """The compact Time-LLM that a line has taught, and the same alone."""
    alone = bench.trained(bench.recipe("teacher_alone", TEACHER, 0, STEPS, RATE))
    return {**bench.teacher()[1], "alone": alone}


def full(bench: Bench) -> Figures:
    """Students on all training rows: alone, by the guide's halves, by the teacher alone, and with a second teacher."""
    folder, _ = bench.teacher()
    arms = {"alone": None, ".5/.5": (0.5, 0.5), "0/1": (0.0, 1.0)}
    return _by_seed(bench, arms, STEPS, 100.0, folder)


def few(bench: Bench) -> Figures:
    """The same on the first tenth of the training rows; the line that teaches was fitted to these rows alone."""
    folder, _ = bench.teacher()
    arms = {"alone": None, ".5/.5": (0.5, 0.5), "0/1": (0.0, 1.0), "0/1 by a line": (0.0, 1.0)}
    return _by_seed(bench, arms, FEW_STEPS, FEW, folder)


def _by_seed(bench: Bench, arms: dict, steps: int, percent: float, folder: Path) -> Figures:
    found: Figures = {name: [] for name in arms}
    for seed in bench.seeds:
        for name, weights in arms.items():
            run = bench.recipe(f"run_{name.replace('/', '_')}", STUDENT, seed, steps, RATE, percent)
            if weights is not None:
                run = bench.taught(run, *weights, "linear" if "line" in name else str(folder))
            found[name].append(bench.trained(run))
    return found


def folded(bench: Bench) -> Figures:
    """Shapes of BERT-base and TinyBERT (4 blocks of 312): parameters, bytes, CPU time of a window of 7 channels."""
    models: dict[str, TimeLLM] = {}
    for name, width, layers, heads, inner in (
        ("bert-base", 768, 12, 12, 3072),
        ("tinybert", 312, 4, 12, 1200),
    ):
        whole = made.on_bert(width, layers, heads, inner, DESCRIPTION)
        models |= {f"{name}, as trained": whole, f"{name}, folded": fold(whole)}
    window, taken = torch.randn(7, LOOKBACK), {name: [] for name in models}
    with torch.no_grad():
        for turn in range(8):
            for name, model in models.items():
                began = time.process_time()
                said = model.eval()(window).values
                if turn:
                    taken[name].append(time.process_time() - began)
        apart = max(
            float(
                (models[f"{name}, folded"](window).values - models[f"{name}, as trained"](window).values)
                .abs()
                .max()
            )
            for name in ("bert-base", "tinybert")
        )
    assert said.shape == (7, HORIZON)
    return {
        "apart": apart, "prompt_tokens": len(models["bert-base, folded"].slots),
        **{
            name: {
                "parameters": model.num_parameters(), "cpu_ms": 1000 * statistics.median(taken[name]),
                "megabytes": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6,
            }
            for name, model in models.items()
        },
    }  # fmt: skip


def invariances(bench: Bench) -> Figures:
    """A window alone and in a batch, other units, other test rows, and beta = 0."""
    model, test = bench.load(bench.teacher()[0]), bench.frame().part("test")
    context = torch.from_numpy(np.concatenate([test[i]["context"].T for i in range(0, 2785, 200)]))
    with torch.no_grad():
        together = model(context).values
        alone = torch.cat([model(one[None]).values for one in context])
        moved = model.double()(3.5 * context.double() - 40).values
        plain = model(context.double()).values
    return {
        "batch": float((together - alone).abs().max()),
        "units": float((moved - (3.5 * plain - 40)).abs().max()),
        "beta_0": _beta_0(bench), "test_rows": _test_rows(bench),
    }  # fmt: skip


def _beta_0(bench: Bench) -> bool:
    """Whether a run with a teacher of no weight has the weights of the plain run, bit for bit."""
    plain = bench.recipe("beta_0_plain", STUDENT, 0, 10, RATE)
    taught = replace(
        bench.taught(plain, 1.0, 0.0, str(bench.teacher()[0])), output=str(bench.out / "beta_0_taught")
    )
    one, other = (list(fit(run).tuned.model.parameters()) for run in (plain, taught))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _test_rows(bench: Bench) -> bool:
    """Whether a run on a table whose test rows were overwritten has the same weights."""
    found = []
    for name, source in (("as it is", bench.data), ("changed", made.with_other_test_rows(bench))):
        run = replace(bench, data=source).recipe(f"test_rows_{name.replace(' ', '_')}", STUDENT, 0, 10, 2e-3)
        found.append(list(fit(run).tuned.model.parameters()))
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def cache(bench: Bench) -> Figures:
    """A student of stored answers against one of the live teacher: the largest difference of any weight."""
    folder, _ = bench.teacher()
    stored = bench.taught(bench.recipe("stored", STUDENT, 0, 12, RATE, FEW), 0.5, 0.5, str(folder))
    live = replace(
        stored, teacher=replace(stored.teacher, kind="live", options={}), output=str(bench.out / "live")
    )
    one, other = (list(fit(run).tuned.model.parameters()) for run in (stored, live))
    return {"apart": max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))}


def intervals(bench: Bench) -> Figures:
    """Intervals of 80 % around the teacher and the line, and around a made series whose quantiles are known."""
    frame, model = bench.frame(), bench.load(bench.teacher()[0])
    straight = build.linear(lookback=LOOKBACK, horizon=HORIZON)
    fit_closed_form(straight, frame.part("train").blocks())
    found = {name: _of_level(frame, one) for name, one in (("teacher", model), ("line", straight))}
    return {**found, "made": made.intervals(bench)}


def _of_level(frame: Any, model: torch.nn.Module, level: float = 0.8) -> Figures:
    before, said = (forecasts.forecast(model, frame.part(name)) for name in ("validation", "test"))
    covered = forecasts.intervals(before, said, level)
    by_step = covered.by_step()
    return {
        **covered.figures(), "by_channel": covered.by_channel(), "steps": [float(by_step.min()), float(by_step.max())]
    }  # fmt: skip


def gate(bench: Bench) -> Figures:
    """A series where nothing beats the last value, and a teacher that was spoilt on purpose: what the verdicts say."""
    found = {}
    for name, settings in made.trials(bench).items():
        fit(settings)
        said = compare_run(settings.output)
        found[name] = {"paid": said["paid"], "sentence": said["sentence"], "warnings": said["warnings"]}
    return found


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "naive": naive, "line": line, "teacher": teacher, "full": full, "few": few, "folded": folded,
    "invariances": invariances, "cache": cache, "intervals": intervals, "gate": gate,
}  # fmt: skip
