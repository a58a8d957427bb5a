"""What a training step and its loss cost, beside the plain way, TRL and the matrix products: ratios in one run.

    python benchmarks/performance.py [--only loss step ...] [--rounds 5] [--markdown FILE]

Every variant runs in a process of its own on two threads, and they take turns, so that a busy minute of the machine
falls on all. CPU seconds are of all threads of a process. Ratios are of one round; the median counts, the range is
beside it. Ours runs with the settings that finetune_cli.py makes for every user, the others with PyTorch's defaults,
whose threads wait by spinning: where something else runs on the same cores that counts as CPU seconds of theirs, so
measure on a machine at rest.
TRL is measured where it is installed: python -m pip install -e ".[dev,benchmark]". About half an hour in all.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import performance_table
from performance_pieces import PIECES
from performance_process import THREADS, measure

ROOT = Path(__file__).resolve().parents[1]
NO_TRL = 'TRL is not installed: `python -m pip install -e ".[dev,benchmark]"`'


def run(name: str, rounds: int) -> tuple[str, bool]:
    """A piece as a section of Markdown, and whether its bars are reached."""
    piece, began = PIECES[name](), time.perf_counter()
    failed = {}
    if importlib.util.find_spec("trl") is None:
        failed = {variant: NO_TRL for variant, how in piece.variants.items() if how.trl}
    wanted = {variant: how for variant, how in piece.variants.items() if variant not in failed}
    with tempfile.TemporaryDirectory() as folder:
        if piece.looks_at != "time":
            records, broken = measure(wanted, 1, Path(folder), warm=0, alone=True)
        else:
            records, broken = measure(wanted, rounds, Path(folder))
    failed |= broken
    bars, good = performance_table.verdicts(piece, records, failed)
    told = f"{rounds} rounds" if piece.looks_at == "time" else "One repetition"
    told = f"{piece.notes} {told}, {time.perf_counter() - began:.0f} s."
    parts = [
        f"## {piece.title}",
        performance_table.table(piece, records, failed),
        bars,
        told,
    ]
    return "\n\n".join(part.strip() for part in parts if part), good and not broken


def circumstances() -> str:
    """When, on what, and with which code."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    versions = []
    for package in ("torch", "transformers", "trl"):
        if importlib.util.find_spec(package):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{date}, commit {commit}, {processor()}, {THREADS} threads, Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def processor() -> str:
    """Its name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def main() -> int:
    """Print the tables; 1 where a bar is missed or a variant broke."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument(
        "--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE", help=", ".join(PIECES)
    )
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--markdown", type=Path, help="write the tables there too")
    asked = asked.parse_args()
    sections, good = [f"Measured on {circumstances()}."], True
    print(sections[0], flush=True)
    for name in asked.only:
        section, reached = run(name, asked.rounds)
        print(f"\n{section}", flush=True)
        sections.append(section)
        good = good and reached
    if asked.markdown:
        asked.markdown.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
