"""What benchmarks/state_space.py trains: S4Ds that focus simulated radar columns, compact ones of the issue's ratios.

Columns: X-band from 5 km, an aperture of 62 pulses, 256 pulses each, closest ranges +- 10 %, bursts of interference.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ledger
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llm_finetuner.benchmark import focus, signal_figures  # noqa: E402
from llm_finetuner.data import sar, sar_files, sar_scenes  # noqa: E402
from llm_finetuner.models.loading import load_pretrained  # noqa: E402
from llm_finetuner.recipe import Data, Recipe  # noqa: E402
from llm_finetuner.recipe_file import from_dict  # noqa: E402
from llm_finetuner.tasks.sequence_regression import SequenceRegression  # noqa: E402
from llm_finetuner.trainer import fit  # noqa: E402

COLUMNS = {"train": 1024, "validation": 64, "test": 256}
SIZES = {  # half, or a bit less, of the presets' width; their ratios of parameters
    "teacher": {"model_dim": 32, "state_dim": 128, "num_layers": 4, "gate": "channel"},
    "standard": {"model_dim": 32, "state_dim": 128, "num_layers": 4, "gate": "off"},
    "compressed": {"model_dim": 16, "state_dim": 64, "num_layers": 3, "gate": "off"},
    "tiny": {"model_dim": 12, "state_dim": 32, "num_layers": 2, "gate": "off"},
}
STUDENTS = ("standard", "compressed", "tiny")
STEPS = {"teacher": 1400, "standard": 300, "compressed": 350, "tiny": 400}  # of 16 columns
RATE = 2e-2  # the best for students alone, too
LABELLED = 32


@dataclass(frozen=True)
class Bench:
    """Where columns and results stand."""

    out: Path
    seeds: tuple[int, ...]

    def results(self) -> dict[str, Any]:
        return ledger.results(self.out)

    def keep(self, name: str, figures: dict[str, Any]) -> None:
        ledger.keep(self.out, name, {**figures, "on": ledger.circumstances()})

    def columns(self, labelled: int | None = None) -> Path:
        """The folder of the columns, drawn at the first call; few of the second have their truth."""
        folder = self.out / ("columns" if labelled is None else f"columns_{labelled}")
        counts = {**COLUMNS, "train": COLUMNS["train"] + (labelled or 0)}
        if not (folder / "meta.json").exists():
            sar_files.write(folder, sar.AIRBORNE, sar_scenes.Scene(), counts, 0, labelled)
        return folder

    def recipe(self, name: str, size: str, seed: int, plan: str | None = None, **changes: Any) -> Recipe:
        """Plain training on the truth, the whole sequence seen both ways. plan: whose steps and rate to take."""
        plan = plan or size
        settings = {
            "task": "sequence_regression", "method": "fine_tuning",
            "student": {"name": "s4d", "shape": {"preset": "teacher", "bidirectional": True, **SIZES[size]}},
            "data": {"source": str(self.columns())},
            "train": {
                "steps": STEPS[plan], "batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": RATE,
                "warmup": 30, "eval_every": 0, "save_every": 0, "precision": "fp32", "seed": seed,
            },
            "output": str(self.out / name),
        }  # fmt: skip
        return from_dict({**settings, **changes})

    def taught(self, recipe: Recipe, weights: tuple[float, float, float], init: str) -> Recipe:
        """The same with the teacher: alpha, beta, gamma, and what the student begins with.

        Its answers and states are kept beside the columns by the first run that asks, and read by all others.
        """
        settings = recipe.to_dict()
        options = dict(zip(("alpha", "beta", "gamma"), weights, strict=True))
        kept = {
            "path": f"{recipe.data.source}_answers",
            "keep_layers": list(range(SIZES["teacher"]["num_layers"])),
        }
        settings |= {
            "method": "regression_distillation", "options": {**options, "feature_layers": "uniform"},
            "teacher": {"name": str(self.out / "teacher"), "kind": "live_cached", "options": kept},
            "student": {**settings["student"], "init": init},
        }  # fmt: skip
        return from_dict(settings)

    def trained(self, recipe: Recipe) -> dict[str, Any]:
        """Train it and score it: nmse_db, psnr, ssim, coherence, width, pslr, islr, phase, parameters, cpu_seconds."""
        began = time.process_time()
        model = fit(recipe).tuned.model
        seconds = time.process_time() - began
        return {**self.scores(model), "parameters": _numbers(model), "cpu_seconds": round(seconds, 1)}

    def scores(self, model: torch.nn.Module) -> dict[str, float]:
        """Of all test columns, and of single points."""
        radar, columns = sar_files.read_columns(self.columns(), "test")
        return {
            **image(answers(model, columns.inputs), columns),
            **points(radar, lambda x, _: answers(model, x)),
        }

    def load(self, name: str) -> torch.nn.Module:
        return load_pretrained(str(self.out / name), auto="AutoModel").eval()


def answers(model: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Focused columns [N, L] of inputs [N, L, 2]."""
    task, said = SequenceRegression(), []
    for part in np.array_split(np.array(inputs), 8):
        said += task.predict(model.eval(), None, list(part), Data())
    return np.stack(said)[..., 0]


def image(said: np.ndarray, columns: sar_scenes.Columns) -> dict[str, float]:
    """How far from the truth, over rows with a whole aperture."""
    found = focus.focused(said[:, columns.rows], columns.truth[:, columns.rows, 0])
    return {"nmse_db": found.nmse_db, **asdict(found)}


def points(radar: sar.Radar, process) -> dict[str, float]:
    """Single points without noise, at ranges and places between pulses, measured as reports do."""
    scene = sar_scenes.Scene()
    inputs, ranges, places = signal_figures.single_points(radar, scene.length, scene.range_spread)
    ideal = sar.focus(radar, inputs[..., 0], ranges)
    best = [focus.impulse(one, place) for one, place in zip(ideal, places, strict=True)]
    found = signal_figures.measured(process(inputs.astype(np.complex64), ranges), places, best)
    return found or sys.exit("a response to a single point has no peak")


def _numbers(model: torch.nn.Module) -> int:
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
