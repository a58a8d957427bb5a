"""Whole steps of our trainer on prepared rows."""

import tempfile
from pathlib import Path

import torch
from performance_models import RATE, answer_tokens, build_models, full_rows, instructions
from performance_worker import Gate

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.store import Store
from llm_finetuner.trainer import fit

ENDLESS = 10**6  # steps: the gate ends the process


def train(gate: Gate, recipe: Recipe, parts: Parts, tokens: int, every: int = 1) -> None:
    """`fit`, with the gate after every so many of its steps, which count `tokens` in all."""
    gate.weights()
    losses: list[float] = []

    def on_event(kind: str, record: dict) -> None:
        if kind == "step":
            losses.append(record["loss"])
            if len(losses) == every:
                gate(loss=sum(losses) / every, tokens=tokens)
                losses.clear()

    fit(recipe, parts, on_event=on_event)


def recipe_of(method: str, options: dict, **plan) -> Recipe:
    plan = {
        "steps": ENDLESS, "gradient_accumulation_steps": 1, "learning_rate": RATE, "warmup": 0, "precision": "fp32",
        "schedule": "constant", "eval_every": 0, "save_every": 0, "keep_best": False, **plan,
    }  # fmt: skip
    return Recipe(
        method=method, options=options, student=Model("student"), teacher=Teacher("teacher"),
        train=Train(**plan), output=str(Path.cwd() / tempfile.mkdtemp(dir=".")),
    )  # fmt: skip


def on_full_rows(
    gate: Gate,
    family: str,
    vocabulary: int,
    rows: dict,
    size: int,
    method: str,
    options: dict,
    k: int | None = None,
) -> None:
    """A step of `size` full rows. k: the teacher's answers come from a cache of so many tokens a position."""
    student, teacher = build_models(family, vocabulary)
    data = full_rows(**rows, vocabulary=vocabulary)
    answers = teacher if k is None else _cached(teacher, data, vocabulary, k)
    if k is not None:
        del teacher
    parts = Parts(student=student, teacher=answers, train=data, device="cpu")
    train(gate, recipe_of(method, options, batch_size=size), parts, size * (rows["tokens"] - 1))


def _cached(teacher, rows, vocabulary: int, k: int) -> Cached:
    folder = Path(tempfile.mkdtemp(dir="."))
    write_cache(Live(CausalLM(), teacher), CausalLM(), rows, folder, vocabulary=vocabulary, about={}, k=k)
    return Cached(Store.open(folder), CausalLM(), torch.device("cpu"))


def on_instructions(
    gate: Gate, family: str, vocabulary: int, count: int, size: int, options: dict, plan: dict
) -> None:
    """All the rows in one optimizer step. plan: settings of the training that form its batches."""
    student, teacher = build_models(family, vocabulary)
    data = instructions(count, vocabulary)
    steps = {"batch_size": size, "gradient_accumulation_steps": -(-count // size), **plan}
    parts = Parts(student=student, teacher=teacher, train=data, device="cpu")
    train(gate, recipe_of("vanilla_distillation", options, **steps), parts, answer_tokens(data))
