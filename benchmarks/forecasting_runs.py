"""What benchmarks/forecasting.py trains: a compact Time-LLM, students of it, and the same students alone."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ledger
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llm_finetuner.benchmark import forecasts  # noqa: E402
from llm_finetuner.data.windows import Frame  # noqa: E402
from llm_finetuner.models.loading import load_pretrained  # noqa: E402
from llm_finetuner.recipe import Recipe  # noqa: E402
from llm_finetuner.recipe_file import from_dict  # noqa: E402
from llm_finetuner.tasks.forecasting import Forecasting  # noqa: E402
from llm_finetuner.trainer import fit  # noqa: E402

LOOKBACK = HORIZON = 96
DESCRIPTION = "electricity transformer: hourly load and oil temperature"
TEACHER: dict[str, Any] = {}  # the defaults of time_llm: BERT of 3 blocks, 64 wide, 100 prototypes
STUDENT = {
    "hidden_size": 16, "num_layers": 1, "num_heads": 2, "prototypes": 24, "heads": 2, "head_width": 16, "read": 16,
}  # fmt: skip
STEPS, RATE = 630, 2e-3  # of 32 windows: two epochs and a half; of 1e-3, 2e-3, 4e-3 the best on validation
FEW, FEW_STEPS = 10.0, 200  # percent of the training rows


@dataclass(frozen=True)
class Bench:
    """The series, and where results stand."""

    data: Path
    split: str
    season: int | None
    out: Path
    seeds: tuple[int, ...]

    @property
    def is_etth1(self) -> bool:
        return self.data.name == "ETTh1.csv" and self.split == "ett-hour"

    def results(self) -> dict[str, Any]:
        return ledger.results(self.out)

    def keep(self, part: str, figures: dict[str, Any]) -> None:
        ledger.keep(self.out, part, {**figures, "on": ledger.circumstances()})

    def series(self, percent: float = 100.0, **changes: Any) -> dict[str, Any]:
        """The section data.series."""
        about = {
            "split": self.split,
            "season": self.season,
            "description": DESCRIPTION,
            "train_percent": percent,
        }
        return {**about, "lookback": LOOKBACK, "horizon": HORIZON, **changes}

    def frame(self, percent: float = 100.0, **changes: Any) -> Frame:
        data = from_dict({"data": {"series": self.series(percent, **changes)}}).data
        return Forecasting().frame(self.data, data)

    def recipe(
        self, name: str, shape: dict, seed: int, steps: int, rate: float, percent: float = 100.0
    ) -> Recipe:
        """Plain training on the truth; weights are chosen on validation, eight times a run."""
        return from_dict(
            {
                "task": "forecasting", "method": "fine_tuning", "student": {"name": "time_llm", "shape": shape},
                "data": {"source": str(self.data), "series": self.series(percent), "eval_samples": 400},
                "train": {
                    "steps": steps, "batch_size": 32, "gradient_accumulation_steps": 1, "learning_rate": rate,
                    "warmup": 0.1, "eval_every": max(1, steps // 8), "save_every": 0, "precision": "fp32", "seed": seed,
                },
                "output": str(self.out / name),
            }
        )  # fmt: skip

    def taught(self, recipe: Recipe, alpha: float, beta: float, teacher: str) -> Recipe:
        """The same with a teacher."""
        settings = recipe.to_dict()
        kind = {"kind": "live_cached", "options": {"path": f"{self.out}/answers", "mode": "fp32"}}
        settings |= {
            "method": "forecast_distillation", "options": {"alpha": alpha, "beta": beta},
            "teacher": {"name": teacher, **(kind if teacher != "linear" else {})},
        }  # fmt: skip
        return from_dict(settings)

    def trained(self, recipe: Recipe) -> dict[str, Any]:
        """Train it, and score it on all test windows: mse, mae, parameters, cpu_seconds."""
        began = time.process_time()
        found = fit(recipe).tuned.model
        seconds = time.process_time() - began
        scored = forecasts.scaled(forecasts.forecast(found, self.frame().part("test")))
        return {
            "mse": scored["mse"], "mae": scored["mae"], "windows": scored["windows"],
            "parameters": found.num_parameters(), "cpu_seconds": round(seconds, 1),
        }  # fmt: skip

    def teacher(self) -> tuple[Path, dict[str, Any]]:
        """The folder of the compact Time-LLM and its figures, trained at the first call: half by a line's forecasts."""
        folder = self.out / "teacher"
        path = self.out / "teacher.json"
        if not path.exists():
            plain = self.recipe("teacher", TEACHER, 0, STEPS, RATE)
            found = self.trained(self.taught(plain, 0.5, 0.5, "linear"))
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return folder, json.loads(path.read_text(encoding="utf-8"))

    def load(self, folder: Path) -> torch.nn.Module:
        return load_pretrained(str(folder), auto="AutoModel").eval()
