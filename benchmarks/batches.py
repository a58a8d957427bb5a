"""What a budget of tokens and packing save on instruction-like rows: CPU seconds a step, padding, and the same loss.

    python benchmarks/batches.py [--rounds 3]
    python benchmarks/batches.py --rows       # how long the rows should be that examples share

GPT-2-like models with random weights; prompts and answers have log-normal lengths, and the answers count.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from performance_models import gpt2, instructions

from llm_finetuner.assembly import Parts
from llm_finetuner.data import columns
from llm_finetuner.data.layout import share_rows
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

VOCABULARY, STEPS, BATCH, ACCUMULATION = 8192, 3, 8, 4
WAYS = {
    "plain: 8 examples a batch": {},
    "max_tokens=2048": {"max_tokens": 2048},
    "max_tokens=1024": {"max_tokens": 1024},
    "packing": {"packing": True},
    "packing, max_tokens=2048": {"packing": True, "max_tokens": 2048},
    "packing, max_tokens=1024": {"packing": True, "max_tokens": 1024},
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--rows", action="store_true")
    rounds = asked.parse_args().rounds
    if asked.parse_args().rows:
        return compare_rows(rounds)
    torch.manual_seed(0)
    student, teacher = gpt2(VOCABULARY, 4, 256), gpt2(VOCABULARY, 6, 384)
    rows = instructions(STEPS * BATCH * ACCUMULATION, VOCABULARY)
    print(
        f"{len(rows)} rows of {columns.lengths(rows).mean():.0f} tokens, the longest {columns.lengths(rows).max()}"
    )
    print(
        f"drawn without regard to length, 8 a batch: {padding_of_random_batches(columns.lengths(rows)):.0%} padding"
    )
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    records = {}
    for number in range(rounds):
        names = list(WAYS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken, records[name] = one_run(student, teacher, rows, WAYS[name])
            seconds[name].append(taken)
    plain = seconds[next(iter(WAYS))]
    print("\n| | CPU s a step | against plain | padding | loss of the first step |\n|---|---|---|---|---|")
    for name, taken in seconds.items():
        ratios = [was / now for was, now in zip(plain, taken, strict=True)]
        padding = statistics.mean(record["padding"] for record in records[name])
        print(
            f"| {name} | {statistics.median(taken):.2f} | {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} - {max(ratios):.2f}) | {padding:.0%} | {records[name][0]['loss']:.6f} |"
        )


def one_run(student, teacher, rows, way: dict) -> tuple[float, list[dict]]:
    """(CPU seconds a step, the records) of an epoch from the same weights."""
    marks: list[float] = []

    def mark(kind: str, record: dict) -> None:
        if kind in ("plan", "step"):
            marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            method="vanilla_distillation", student=Model("student"), teacher=Teacher("teacher"), output=folder,
            train=Train(
                epochs=1, batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION, save_every=0, precision="fp32",
                **way,
            ),
        )  # fmt: skip
        parts = Parts(student=copy.deepcopy(student), teacher=teacher, train=rows, device="cpu")
        history = fit(recipe, parts, on_event=mark).history
    return (marks[-1] - marks[0]) / len(history), history


def compare_rows(rounds: int) -> None:
    """CPU seconds of one trunk, forward and backward, over 24 examples in longer and longer rows."""
    model, lengths = gpt2(VOCABULARY, 2, 256), columns.lengths(instructions(24, VOCABULARY)).tolist()
    model.transformer.wpe = torch.nn.Embedding(sum(lengths), 256)
    rows, _ = share_rows(lengths)
    for together in (1, 2, 4, len(rows)):
        wide = [sum(rows[i : i + together], []) for i in range(0, len(rows), together)]
        positions = [torch.cat([torch.arange(lengths[n]) for n in row]) for row in wide]
        positions = torch.nn.utils.rnn.pad_sequence(positions, batch_first=True)
        taken = []
        for _ in range(rounds + 1):
            began = time.process_time()
            said = model.base_model(input_ids=positions, position_ids=positions, use_cache=False)
            said.last_hidden_state.sum().backward()
            taken.append(time.process_time() - began)
        print(f"{len(wide)} rows of {positions.shape[1]}: {statistics.median(taken[1:]):.2f} s", flush=True)


def padding_of_random_batches(lengths: np.ndarray) -> float:
    shuffled = (
        np.random.default_rng(0).permutation(lengths)[: len(lengths) // BATCH * BATCH].reshape(-1, BATCH)
    )
    return 1 - shuffled.sum() / (shuffled.max(1) * BATCH).sum()


if __name__ == "__main__":
    main()
