"""Does the quickstart's distillation pay? Three seeds of it, every seed in the table.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--output outputs/benchmark_quickstart]

Perplexities on held-out modules of the standard library; ratios are to cross-entropy alone from the same start.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "teacher",
    "same steps",
    "vanilla",
    "feature",
    "same compute",
    "vanilla/steps",
    "feature/steps",
    "vanilla/compute",
)


def run(seed: int, output: Path) -> dict[str, float]:
    """One quickstart in a process of its own; returns the perplexities by column."""
    command = [sys.executable, str(ROOT / "finetune_cli.py"), "--json", "quickstart", "--seed", str(seed)]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    verdict = json.loads(done.stdout)
    found = {(model["role"], model["name"]): model["perplexity"] for model in verdict["models"]}
    by_role = {role: value for (role, _), value in found.items()}
    ppl = {
        "teacher": by_role["teacher"],
        "same steps": by_role["baseline_steps"],
        "vanilla": found["distilled", "vanilla distillation"],
        "feature": found["distilled", "feature distillation"],
        "same compute": by_role["baseline_compute"],
    }
    ppl["vanilla/steps"] = ppl["vanilla"] / ppl["same steps"]
    ppl["feature/steps"] = ppl["feature"] / ppl["same steps"]
    ppl["vanilla/compute"] = ppl["vanilla"] / ppl["same compute"]
    return ppl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmark_quickstart")
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}")
    print("| seed | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    rows = []
    for seed in given.seeds:
        rows.append(run(seed, given.output / f"seed_{seed}"))
        print(f"| {seed} | " + " | ".join(f"{rows[-1][c]:.3g}" for c in COLUMNS) + " |", flush=True)
    medians = {c: statistics.median(row[c] for row in rows) for c in COLUMNS}
    print("| median | " + " | ".join(f"{medians[c]:.3g}" for c in COLUMNS) + " |")


if __name__ == "__main__":
    main()
