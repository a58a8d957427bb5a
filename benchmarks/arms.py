"""The arms of benchmarks/methods.py: a name, and how the package's own engine trains it.

An arm takes a Bench and returns a trained student. ", shuffled" is the control of an arm: the teacher's hidden states
are those of another sequence at the same position. What helps then too is not what the teacher knows of this text.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gsm8k
import torch
from datasets import Dataset
from torch import Tensor, nn

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data.order import Order
from llm_finetuner.models import loading
from llm_finetuner.named_models import load_teacher
from llm_finetuner.output import Output, Want
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers import kinds
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.trainer import fit

BATCH = 8  # blocks a step
PROMPT = 16  # tokens of a block that are given where somebody writes the rest
RESPONSE = {"alpha": 0.1, "temperature": 1.0}
STATES_AND_RESPONSE = {**RESPONSE, "output_weight": 0.9}
RATE = 8e-3  # of students from scratch: chosen on dev by cross-entropy alone
LAYERS_RATE = 2e-3  # of students made of teacher layers: not searched


@dataclass
class Bench:
    """One arm with one seed: its rows, its folder, and what it has cost so far."""

    out: Path
    arm: str
    seed: int
    steps: int
    rate: float = RATE
    train_seconds: float = 0.0  # CPU, of optimizer steps
    other_seconds: float = 0.0  # CPU, of what comes before them: caches, generated text, a middle student
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.rows = {part: as_rows(stream) for part, stream in gsm8k.load_streams(self.out).items()}
        self.tokenizer = loading.load_tokenizer(self.path("student"))
        self.task = resolve(TASKS, "causal_lm")()

    def path(self, name: str) -> str:
        return str(self.out / name)

    def teacher(self, name: str = "teacher", **settings: Any) -> Teacher:
        return Teacher(self.path(name), **settings)

    def fit(
        self, method: str, teacher: Teacher | None = None, *, student: Model | None = None, rows: Any = None,
        steps: float = 1, rate: float | None = None, stage: str = "", batch: int = BATCH, **options: Any,
    ) -> nn.Module:  # fmt: skip
        """Train by the package's own engine; steps as a multiple of the benchmark's. Returns the student."""
        recipe = Recipe(
            method=method,
            options=options,
            student=student or Model(self.path("student"), from_scratch=True),
            teacher=teacher,
            train=Train(
                steps=round(steps * self.steps), batch_size=batch, gradient_accumulation_steps=1,
                learning_rate=rate or self.rate, warmup=20, weight_decay=0.1, eval_every=0, save_every=0,
                keep_best=False, seed=self.seed,
            ),
            output=self.folder(stage),
        )  # fmt: skip
        recipe = replace(recipe, data=replace(recipe.data, max_length=gsm8k.training.BLOCK))
        rows = self.rows["train"] if rows is None else rows
        parts = Parts(tokenizer=self.tokenizer, train=rows, device="cpu")
        began, clock = time.process_time(), {}  # CPU-seconds when the loop begins, and after its newest step

        def look(kind: str, record: dict) -> None:
            if kind in ("plan", "step"):
                clock[kind] = time.process_time()

        result = fit(recipe, parts, on_event=look)
        self.train_seconds += clock["step"] - clock["plan"]
        if recipe.scheme.writing:
            self.other_seconds += clock["plan"] - began
        return result.tuned.model

    def folder(self, stage: str = "") -> str:
        return self.path(f"runs/{self.arm.replace(' ', '_').replace('/', '')}_{self.seed}{stage}")

    @contextmanager
    def before(self) -> Iterator[None]:
        """What is done inside is not the student's own training."""
        began, trained = time.process_time(), self.train_seconds
        yield
        self.other_seconds += time.process_time() - began
        self.train_seconds = trained

    def perplexity(self, model: nn.Module, part: str) -> float:
        return evaluate(self.task, model, self.rows[part], batch_size=16).perplexity

    def prompted(self, count: int | None = None) -> Dataset:
        """Blocks of which all but the first PROMPT tokens count: of the whole text, or the first so many of the run."""
        rows = self.rows["train"]
        if count is not None:
            order = Order([gsm8k.training.BLOCK] * len(rows), BATCH, BATCH, self.seed)
            steps = -(-count // BATCH)
            seen = [i for step in range(1, steps + 1) for i in order.step(step)[0][0]]
            rows = rows.select(seen[:count])
        labels = [[-100] * PROMPT + row[PROMPT:] for row in rows["input_ids"]]
        return Dataset.from_dict({**rows.to_dict(), "labels": labels})


def as_rows(stream_N: Tensor) -> Dataset:
    """A stream as prepared rows of one block each, every token counted."""
    blocks = gsm8k.training.cut(stream_N, gsm8k.training.BLOCK).tolist()
    ones = [[1] * len(block) for block in blocks]
    return Dataset.from_dict({"input_ids": blocks, "attention_mask": ones, "labels": blocks})


class ShuffledStates(Shuffled):
    """Hidden states of another sequence beside the answers that belong here: what a term over states adds to KL."""

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        said = super().__call__(batch, want)
        count = len(said.rows)
        back = torch.arange(count).roll(-(count // 2))
        return replace(said, rows=said.rows[back])

    def prepare(self, want: Want, terms: Any) -> None:
        self.inner.prepare(want, terms)


def shuffled_states(spec: Teacher, context: Any) -> ShuffledStates:
    return ShuffledStates(kinds.live(spec, context))


# ---- arms of more than one training


def sequence(bench: Bench, temperature: float) -> nn.Module:
    """The teacher writes on from the first tokens of blocks; it ends where a problem does, so a step takes two."""
    model = bench.fit(
        "sequence_distillation", bench.teacher(), rows=bench.prompted(2 * BATCH * bench.steps), batch=2 * BATCH,
        max_new_tokens=gsm8k.training.BLOCK - PROMPT, sampling_temperature=temperature,
    )  # fmt: skip
    with open(Path(bench.folder()) / "written.jsonl", encoding="utf-8") as file:
        counted = sum(len(json.loads(line)["tokens"]) for line in file)
    bench.notes["tokens_counted_a_step"] = counted / bench.steps
    return model


def cached(bench: Bench, k: int = 50) -> nn.Module:
    """The teacher's k best and the shape of their tail, written down once for all seeds."""
    folder = bench.out / f"cache_k{k}"
    figures = folder.with_suffix(".json")
    if not figures.exists():
        began = time.process_time()
        model = load_teacher(bench.teacher(), "cpu")
        about = {"teacher": bench.path("teacher")}
        said = write_cache(
            Live(bench.task, model), bench.task, bench.rows["train"], folder, vocabulary=gsm8k.VOCABULARY,
            about=about, k=k,
        )  # fmt: skip
        said = {name: said[name] for name in ("bytes_per_token", "mean_kl", "top_mass", "tokens")}
        figures.write_text(json.dumps({**said, "cpu_seconds": time.process_time() - began}), encoding="utf-8")
    bench.notes["cache"] = json.loads(figures.read_text(encoding="utf-8"))
    # the share of the cache that these steps read
    share = BATCH * bench.steps / len(bench.rows["train"])
    bench.other_seconds += bench.notes["cache"]["cpu_seconds"] * share
    return bench.fit(
        "vanilla_distillation", Teacher(kind="cached", options={"path": str(folder)}), **RESPONSE
    )


def chain(bench: Bench) -> nn.Module:
    """The teacher teaches a middle student for three times the steps, which teaches the student."""
    with bench.before():
        middle = Model(bench.path("middle"), from_scratch=True)
        bench.fit(
            "vanilla_distillation", bench.teacher(), student=middle, steps=3, stage="_middle", **RESPONSE
        )
    return bench.fit("vanilla_distillation", Teacher(bench.folder("_middle")), **RESPONSE)


def born_again(bench: Bench) -> nn.Module:
    """A first generation learns from the text alone, and teaches a second one of its own kind."""
    with bench.before():
        bench.fit("fine_tuning", stage="_first")
    return bench.fit("vanilla_distillation", Teacher(bench.folder("_first")), **RESPONSE)


# ---- the table of arms

Arm = Callable[[Bench], nn.Module]
SHUFFLED = "arms:shuffled_states"


def response(objective: str, **options: Any) -> Arm:
    """.1 cross-entropy + .9 of another divergence at temperature 1, to be read beside vanilla a.1 T1."""
    terms = {"cross_entropy": 0.1, objective: {"weight": 0.9, "temperature": 1.0, **options}}
    return lambda b: b.fit("distillation", b.teacher(), objectives=terms)


def with_control(name: str, method: str, **options: Any) -> dict[str, Arm]:
    """An arm that reads hidden states, and its control."""
    return {
        name: lambda b: b.fit(method, b.teacher(), **options),
        f"{name}, shuffled": lambda b: b.fit(method, b.teacher(kind=SHUFFLED), **options),
    }


def from_layers(method: str, **options: Any) -> Arm:
    """The student is the teacher's first and last block, with its weights."""
    return lambda b: b.fit(method, b.teacher(), student=Model("teacher/2"), rate=LAYERS_RATE, **options)


def relation(kind: str, **options: Any) -> dict[str, Any]:
    return {"method": "relation_distillation", "relation": kind, **options}


SELF = {"alpha": 0.5, "temperature": 1.0}
ARMS: dict[str, Arm] = {
    "cross-entropy": lambda b: b.fit("fine_tuning"),
    "vanilla a.1 T1": lambda b: b.fit("vanilla_distillation", b.teacher(), **RESPONSE),
    "vanilla a.1 T1, shuffled": lambda b: b.fit(
        "vanilla_distillation", b.teacher(shuffled=True), **RESPONSE
    ),
    "vanilla a.5 T2": lambda b: b.fit("vanilla_distillation", b.teacher()),
    **{
        f"cross-entropy x{k}": lambda b, k=k: b.fit("fine_tuning", steps=k) for k in (1.5, 2, 3, 4, 6)
    },  # the lengths that equal compute is read off
    **with_control("feature", "feature_distillation"),
    **with_control("feature + KL", "feature_distillation", **STATES_AND_RESPONSE),
    **with_control("relation", **relation("distance_angle")),
    **with_control("relation + KL", **relation("distance_angle", **STATES_AND_RESPONSE)),
    **with_control("similarity", **relation("similarity")),
    **with_control("token relation", **relation("token_relation")),
    "reverse KL": response("reverse_kl"),
    "JSD .5": response("jsd", beta=0.5),
    "skew KL .1": response("skew_forward_kl", lam=0.1),
    "adaptive KL": response("adaptive_kl"),
    "total variation": response("total_variation"),
    "cached k=50": cached,
    "ensemble": lambda b: b.fit(
        "vanilla_distillation",
        b.teacher(kind="ensemble", options={"members": [b.path("teacher"), b.path("second")]}),
        **RESPONSE,
    ),
    "second teacher alone": lambda b: b.fit("vanilla_distillation", b.teacher("second"), **RESPONSE),
    "sequence, sampled": lambda b: sequence(b, 1.0),
    "sequence, greedy": lambda b: sequence(b, 0.0),
    "on-policy": lambda b: b.fit(
        "on_policy_distillation", b.teacher(), rows=b.prompted(), divergence="forward_kl",
        max_new_tokens=gsm8k.training.BLOCK - PROMPT, **RESPONSE,
    ),
    "mutual": lambda b: b.fit("online_distillation", b.teacher("student", from_scratch=True), **SELF),
    "self: exit": lambda b: b.fit("self_distillation", **SELF),
    "self: average": lambda b: b.fit("self_distillation", by="average", decay=0.95, **SELF),
    "born again": born_again,
    "chain": chain,
    "cross-entropy from teacher layers": from_layers("fine_tuning"),
    "cross-entropy from teacher layers x2": from_layers("fine_tuning", steps=2),
    "cross-entropy from teacher layers x4": from_layers("fine_tuning", steps=4),
    "vanilla a.1 T1 from teacher layers": from_layers("vanilla_distillation", **RESPONSE),
}  # fmt: skip
