"""One variant of a performance benchmark in a process of its own: built, then timed one repetition at a time.

    python benchmarks/performance_worker.py '{"run": "performance_loss:naive", "ours": false, "options": {}}'

performance_process.py writes to it: "go" is one repetition, anything else the end. Every answer is a line of JSON.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
PEAK_FROM_HERE = "5"  # to /proc/self/clear_refs: the peak starts again from what is resident now


class Gate:
    """Stands between two repetitions. A variant calls `weights` when it is built, and the gate before each repetition.

    So a variant may be a plain loop, or hang on the callback of a trainer that has its own.
    """

    def __init__(self, told: TextIO):
        self.told, self.held = told, 0
        self.began: tuple[float, float] | None = None

    def weights(self, gradients: int = 0) -> None:
        """What is resident now is not counted as used, nor are `gradients`: bytes that every variant leaves."""
        self.held = resident("VmRSS") + gradients

    def __call__(self, **facts) -> None:
        """End a repetition, with what is to be known of it, and wait for the next."""
        record = {"facts": facts, "peak": resident("VmHWM")}
        record["above"] = record["peak"] - self.held
        if self.began:
            record |= {"wall": time.perf_counter() - self.began[0], "cpu": used() - self.began[1]}
        print(json.dumps(record), file=self.told, flush=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(0)  # not by an exception: a trainer would save what it has
        forget_peak()
        self.began = time.perf_counter(), used()


def used() -> float:
    """CPU seconds of this process and all its threads."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime


def resident(field: str) -> int:
    """Bytes in memory: VmRSS now, VmHWM the most since the peak was forgotten. Off Linux the most ever, for both."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Where the kernel lets us; elsewhere the peak is that of the whole life of the process."""
    try:
        Path("/proc/self/clear_refs").write_text(PEAK_FROM_HERE, encoding="ascii")
    except OSError:
        pass


def main() -> None:
    asked = json.loads(sys.argv[1])
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.insert(0, str(ROOT))
    if asked["ours"]:
        import finetune_cli  # noqa: F401  # sets threads and allocator as every user has them, before torch loads
    module, _, name = asked["run"].partition(":")
    import torch

    torch.manual_seed(0)
    getattr(importlib.import_module(module), name)(Gate(told), **asked["options"])


if __name__ == "__main__":
    main()
