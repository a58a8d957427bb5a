"""The variants of one piece of work, each in a process of its own, timed in turn so that a busy minute falls on all."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = str(Path(__file__).with_name("performance_worker.py"))
CHOSEN_BY_US = (
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "THP_MEM_ALLOC_ENABLE",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "LD_PRELOAD",
)
THREADS = 2


@dataclass(frozen=True)
class Variant:
    """run: "module:function" of (gate, **options). ours: with the settings that finetune_cli.py makes."""

    run: str
    options: dict[str, Any] = field(default_factory=dict)
    ours: bool = False
    trl: bool = False  # needs it


class Failed(Exception):
    """A variant's process ended; the text is what it said last."""


class Worker:
    """One process. `once` is a repetition: {"cpu", "wall" seconds, "peak", "above" bytes, "facts"}."""

    def __init__(self, variant: Variant, errors: Path):
        self.errors = errors
        env = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_US}
        env |= {"OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        asked = json.dumps({"run": variant.run, "ours": variant.ours, "options": variant.options})
        with open(errors, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, asked], env=env, text=True, stderr=said,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=errors.parent,
            )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Wait until it is built. Raises Failed."""
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            said = self.errors.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
            raise Failed(f"ended with status {status}: {said[-1]}")
        return json.loads(line)

    def once(self) -> dict[str, Any]:
        """Raises Failed."""
        try:
            print("go", file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # why, it says in `ready`
        return self.ready()

    def leave(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already
        self.process.wait()
        self.process.stdout.close()


def measure(
    variants: dict[str, Variant], rounds: int, folder: Path, warm: int = 1, alone: bool = False
) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """(records of every variant, one a round; why a variant has none). `warm` repetitions before are not kept.

    alone: one variant after the other, each gone before the next begins, where only memory counts.
    """
    if alone:
        records, failed = {}, {}
        for name, variant in variants.items():
            found, why = measure({name: variant}, rounds, folder, warm)
            records, failed = records | found, failed | why
        return records, failed
    workers, records, failed = {}, {name: [] for name in variants}, {}

    def attempt(name: str, keep: bool, call) -> None:
        try:
            record = call()
        except Failed as error:
            failed[name] = str(error)
            workers.pop(name).leave()
            return
        if keep:
            records[name].append(record)

    try:
        for number, (name, variant) in enumerate(variants.items()):
            workers[name] = Worker(variant, folder / f"{number}.log")
            attempt(name, False, workers[name].ready)
        for turn in range(warm + rounds):
            for name in list(workers):
                attempt(name, turn >= warm, workers[name].once)
    finally:
        for worker in workers.values():
            worker.leave()
    return {name: found for name, found in records.items() if name not in failed}, failed
