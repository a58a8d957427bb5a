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
from pathlib import Path

import gsm8k
import ledger
import methods_table

sys.path.insert(0, str(gsm8k.ROOT))
import arms  # noqa: E402


def run_arm(out: Path, arm: str, seed: int, steps: int, rate: float) -> dict:
    """Train and score one arm with one seed."""
    bench = arms.Bench(out, arm, seed, steps, rate)
    model = arms.ARMS[arm](bench)
    return {
        "arm": arm, "seed": seed, "steps": steps, "rate": rate,
        **{part: bench.perplexity(model, part) for part in ("dev", "test")},
        "train_seconds": round(bench.train_seconds, 2), "other_seconds": round(bench.other_seconds, 2),
        "parameters": model.num_parameters(), **bench.notes, **ledger.facts(),
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
        "--arms", nargs="+", choices=arms.ARMS, default=list(arms.ARMS), metavar="ARM",
        help=", ".join(arms.ARMS),
    )  # fmt: skip
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=100)
    made.add_argument("--rate", type=float, default=arms.RATE, help="learning rate of students from scratch")
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
    records = methods_table.read(args.results, args.steps, args.rate)
    print(methods_table.table(args.out, records, list(arms.ARMS)))


if __name__ == "__main__":
    main()
