"""Which way of distilling helps a small language model on real text, and by how much? Every arm, three seeds.

    python benchmarks/methods.py --data FOLDER [--arms NAME ...] [--seeds 0 1 2] [--steps 100] [--jobs 2]
    python benchmarks/methods.py --table

FOLDER holds GSM8K's train.jsonl and test.jsonl (MIT licence, https://github.com/openai/grade-school-math). The
first call prepares text and teachers (gsm8k.py: about an hour and a half on one core); results are added to
results.jsonl in the out folder as they come, and what is there already is not run again. Every arm trains the same
student from the same start on the same blocks in the same order: 8 blocks of 128 tokens a step. All that was chosen
was chosen on dev; the table is of test.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gsm8k
import methods_table
import torch
from torch import nn

sys.path.insert(0, str(gsm8k.ROOT))
from llm_finetuner.assembly import Parts  # noqa: E402
from llm_finetuner.benchmark.quality import evaluate  # noqa: E402
from llm_finetuner.models import loading  # noqa: E402
from llm_finetuner.recipe import Model, Recipe, Teacher, Train  # noqa: E402
from llm_finetuner.registry import TASKS, resolve  # noqa: E402
from llm_finetuner.trainer import fit  # noqa: E402

RATE = 4e-3  # from scratch
HALF = {"alpha": 0.5}
RESPONSE = {"alpha": 0.1, "temperature": 1.0}


@dataclass
class Bench:
    """One arm with one seed: its rows, its folder, and what it has cost so far."""

    out: Path
    arm: str
    seed: int
    steps: int
    rate: float = RATE
    train_seconds: float = 0.0  # CPU, of optimizer steps
    other_seconds: float = (
        0.0  # CPU, of what an arm does before them: caches, generated text, a middle student
    )
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.rows = {part: as_rows(stream) for part, stream in gsm8k.load_streams(self.out).items()}
        self.tokenizer = loading.load_tokenizer(self.model("student"))

    def model(self, name: str) -> str:
        return str(self.out / name)

    def teacher(self, name: str = "teacher", **settings: Any) -> Teacher:
        return Teacher(self.model(name), **settings)

    def fit(
        self, method: str, teacher: Teacher | None = None, *, student: Model | None = None, parts: Parts | None = None,
        steps: float = 1, rate: float | None = None, stage: str = "", **options: Any,
    ) -> nn.Module:  # fmt: skip
        """Train by the package's own engine; steps as a multiple of the benchmark's. Returns the student."""
        recipe = Recipe(
            method=method,
            options=options,
            student=student or Model(self.model("student"), from_scratch=True),
            teacher=teacher,
            train=Train(
                steps=round(steps * self.steps), batch_size=8, gradient_accumulation_steps=1,
                learning_rate=rate or self.rate, warmup=20, weight_decay=0.1, eval_every=0, save_every=0,
                keep_best=False, seed=self.seed,
            ),
            output=str(self.folder(stage)),
        )  # fmt: skip
        parts = parts or Parts()
        parts = replace(
            parts, tokenizer=self.tokenizer, train=parts.train or self.rows["train"], device="cpu"
        )
        began = time.process_time()
        clock = {"plan": began, "step": began}  # CPU-seconds at the start of the loop and after its last step

        def look(kind: str, record: dict) -> None:
            if kind in clock:
                clock[kind] = time.process_time()

        result = fit(recipe, parts, on_event=look)
        self.train_seconds += clock["step"] - clock["plan"]
        return result.tuned.model

    def folder(self, stage: str = "") -> Path:
        return self.out / "runs" / f"{self.arm.replace(' ', '_')}_{self.seed}{stage}"

    def perplexity(self, model: nn.Module, part: str) -> float:
        return evaluate(resolve(TASKS, "causal_lm")(), model, self.rows[part], batch_size=16).perplexity


def as_rows(stream_N: torch.Tensor):
    """A stream as prepared rows of gsm8k's block length, every token counted."""
    from datasets import Dataset

    blocks = gsm8k.training.cut(stream_N, gsm8k.training.BLOCK).tolist()
    return Dataset.from_dict(
        {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": blocks}
    )


Arm = Callable[[Bench], nn.Module]
ARMS: dict[str, Arm] = {
    "cross-entropy": lambda b: b.fit("fine_tuning"),
    "vanilla a.1 T1": lambda b: b.fit("vanilla_distillation", b.teacher(), **RESPONSE),
    "vanilla a.5 T2": lambda b: b.fit("vanilla_distillation", b.teacher()),
    "feature": lambda b: b.fit("feature_distillation", b.teacher()),
    "feature + KL": lambda b: b.fit("feature_distillation", b.teacher(), output_weight=0.9, **RESPONSE),
}
LONGER = (1.5, 2, 3, 4, 6)  # cross-entropy with more steps, to compare at equal compute
ARMS |= {f"cross-entropy x{k}": lambda b, k=k: b.fit("fine_tuning", steps=k) for k in LONGER}


def run_arm(out: Path, arm: str, seed: int, steps: int, rate: float) -> dict:
    """Train and score one arm with one seed."""
    bench = Bench(out, arm, seed, steps, rate)
    model = ARMS[arm](bench)
    return {
        "arm": arm, "seed": seed, "steps": steps, "rate": rate,
        **{part: bench.perplexity(model, part) for part in ("dev", "test")},
        "train_seconds": round(bench.train_seconds, 2), "other_seconds": round(bench.other_seconds, 2),
        "parameters": model.num_parameters(), **bench.notes,
    }  # fmt: skip


def run_all(args: argparse.Namespace) -> None:
    """Run what has no result yet, each arm and seed in a process of its own, args.jobs at a time."""
    done = {(r["arm"], r["seed"]) for r in methods_table.read(args.results, args.steps, args.rate)}
    left = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    running: list[tuple[tuple[str, int], subprocess.Popen]] = []
    failed = []
    while left or running:
        while left and len(running) < args.jobs:
            arm, seed = left.pop(0)
            command = [sys.executable, __file__, "--one", arm, str(seed)]
            for name in ("out", "steps", "rate", "results"):
                command += [f"--{name}", str(vars(args)[name])]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            running.append(((arm, seed), subprocess.Popen(command, env=env)))
        time.sleep(0.2)
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            running.remove(entry)
            if entry[1].returncode:
                failed.append(entry[0])
    if failed:
        sys.exit(f"failed: {failed}")


def main() -> None:
    made = gsm8k.parser(__doc__.splitlines()[0])
    made.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS)
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=100)
    made.add_argument("--rate", type=float, default=RATE, help="learning rate of students from scratch")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    made.add_argument("--results", type=Path, help="default: results.jsonl in the out folder")
    made.add_argument("--table", action="store_true", help="only print the table of what is there")
    made.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    args = gsm8k.settle(made.parse_args())
    args.results = args.results or args.out / "results.jsonl"
    if args.one:
        record = run_arm(args.out, args.one[0], int(args.one[1]), args.steps, args.rate)
        with open(args.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
        return
    if not args.table:
        gsm8k.prepare(argparse.Namespace(**vars(args) | {"only": gsm8k.PARTS, "steps": None, "every": 100}))
        run_all(args)
    print(methods_table.table(args.out, methods_table.read(args.results, args.steps, args.rate)))


if __name__ == "__main__":
    main()
