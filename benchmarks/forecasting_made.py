"""Tables and models that benchmarks/forecasting.py makes for itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from forecasting_runs import HORIZON, LOOKBACK, Bench
from transformers import BertConfig

from llm_finetuner.benchmark import forecasts
from llm_finetuner.data import series, windows
from llm_finetuner.models import prompt
from llm_finetuner.models.time_llm import TimeLLM, TimeLLMConfig
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_file import from_dict
from llm_finetuner.trainer import fit

VOCABULARY = 30_522  # of BERT


class Words:
    """Stands in for BERT's tokenizer: a number for each word. Only how many tokens a prompt has matters here."""

    bos_token_id, cls_token_id = None, 101

    def __init__(self):
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [self.known.setdefault(word, 1000 + len(self.known)) for word in text.split()]}


def on_bert(width: int, layers: int, heads: int, inner: int, description: str) -> TimeLLM:
    """Time-LLM as published on a BERT of these sizes, weights drawn: 1,000 prototypes, a prompt in words."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner,
    )  # fmt: skip
    slots = prompt.of_text(Words(), description, LOOKBACK, HORIZON)
    torch.manual_seed(0)
    return TimeLLM(
        TimeLLMConfig(
            backbone=config.to_dict(), slots=[(list(slot.ids), slot.reads) for slot in slots], description=description,
            prototypes=1000, heads=8, head_width=128, read=128,
        )
    ).eval()  # fmt: skip


def with_other_test_rows(bench: Bench) -> Path:
    """A copy of the table whose rows of the test part are other ones."""
    table, frame = pd.read_csv(bench.data), bench.frame()
    low, high = frame.borders[0]["test"]
    columns = frame.names
    table.loc[low : high - 1, columns] = (
        np.random.default_rng(0).normal(size=(high - low, len(columns))) * 100
    )
    path = bench.out / "changed.csv"
    table.to_csv(path, index=False)
    return path


def noise(rows: int = 6000, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """A daily wave with noise whose spread has a daily wave of its own, and that spread: [T]."""
    steps = np.arange(rows)
    spread = 0.5 + 0.4 * np.sin(2 * np.pi * steps / 24)
    draw = np.random.default_rng(seed).normal(size=(rows, 2))
    wave = 3 * np.sin(2 * np.pi * steps / 24)[:, None] + spread[:, None] * draw
    return pd.DataFrame(
        {"date": pd.date_range("2020", periods=rows, freq="h"), "a": wave[:, 0], "b": wave[:, 1]}
    ), spread


def intervals(bench: Bench, level: float = 0.8) -> dict[str, Any]:
    """Of quantiles forecast by a line on the made series: coverage, and the score beside that of the true quantiles."""
    table, spread = noise()
    bench.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(bench.out / "noise.csv", index=False)
    about = {"lookback": LOOKBACK, "horizon": 24, "quantiles": [0.1, 0.5, 0.9], "season": 24}
    recipe = from_dict(
        {
            "task": "forecasting", "method": "fine_tuning", "student": {"name": "linear"},
            "data": {"source": str(bench.out / "noise.csv"), "series": about},
            "train": {
                "steps": 600, "batch_size": 64, "gradient_accumulation_steps": 1, "learning_rate": 5e-3,
                "warmup": 0.1, "eval_every": 100, "save_every": 0, "precision": "fp32",
            },
            "output": str(bench.out / "noise"),
        }
    )  # fmt: skip
    model = fit(recipe).tuned.model.eval()
    groups, _ = series.load(table, recipe.data.series)
    frame = windows.frame(groups, recipe.data.series, 24)
    before, said = (forecasts.forecast(model, frame.part(name)) for name in ("validation", "test"))
    found = forecasts.intervals(before, said, level)
    starts = frame.part("test").starts[:, 1] + LOOKBACK
    known_nH = spread[starts[:, None] + np.arange(24)]
    best = (
        2 * 1.7549833 * (known_nH[..., None] / frame.scales[0].spread).mean()
    )  # E[score] of N(0, 1) at 80 %
    return {
        **found.figures(), "by_channel": found.by_channel(), "score_of_the_true_quantiles": float(best)
    }  # fmt: skip


def trials(bench: Bench) -> dict[str, Recipe]:
    """A walk by chance, and a teacher that learned the series in a shuffled order."""
    bench.out.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    walk = pd.DataFrame({f"c{i}": draw.normal(size=4000).cumsum() for i in range(4)})
    walk.insert(0, "date", pd.date_range("2020", periods=4000, freq="D"))
    walk.to_csv(bench.out / "walk.csv", index=False)
    table = pd.read_csv(bench.data)
    first = table.columns[0]
    shuffled = table.sample(frac=1, random_state=0).reset_index(drop=True)
    shuffled[first] = table[first]
    shuffled.to_csv(bench.out / "shuffled.csv", index=False)
    small = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}

    def recipe(output: str, source: Path, split: str, **settings: Any) -> Recipe:
        return from_dict(
            {
                "task": "forecasting", "method": "fine_tuning", "student": {"name": "patch", "shape": small},
                "data": {"source": str(source), "series": {**bench.series(), "split": split, "season": 24}},
                "train": {
                    "steps": 120, "batch_size": 32, "gradient_accumulation_steps": 1, "learning_rate": 2e-3,
                    "eval_every": 40, "save_every": 0, "precision": "fp32",
                },
                "output": str(bench.out / output), **settings,
            }
        )  # fmt: skip

    fit(recipe("walk_teacher", bench.out / "walk.csv", "70-10-20"))
    fit(recipe("spoilt_teacher", bench.out / "shuffled.csv", bench.split))
    taught = {"method": "forecast_distillation", "options": {"alpha": 0.0, "beta": 1.0}}
    return {
        "walk": recipe(
            "walk", bench.out / "walk.csv", "70-10-20", **taught, teacher={"name": str(bench.out / "walk_teacher")}
        ),
        "spoilt": recipe(
            "spoilt", bench.data, bench.split, **taught, teacher={"name": str(bench.out / "spoilt_teacher")}
        ),
    }  # fmt: skip
