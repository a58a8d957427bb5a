"""The table of benchmarks/methods.py in Markdown, and which of the bars the figures reach."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

BASELINE = "cross-entropy"
SHUFFLED = ", shuffled"  # what the name of an arm's control ends in
FROM_LAYERS = " from teacher layers"
HEADER = (
    "arm", "perplexity", "/ cross-entropy, equal steps", "every seed wins", "/ its shuffled control",
    "compute, in cross-entropy steps", "/ cross-entropy, equal compute", "CPU-s",
)  # fmt: skip

CIRCUMSTANCES = ("date", "machine", "torch", "commit")

Results = dict[str, dict[int, dict]]  # arm -> seed -> record


def read(path: Path, steps: int, rate: float) -> list[dict]:
    """The records of runs of this many steps at this rate, oldest first."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [r for r in records if r["steps"] == steps and r["rate"] == rate]


def by_arm(records: list[dict]) -> Results:
    found: Results = defaultdict(dict)
    for record in records:
        found[record["arm"]][record["seed"]] = record
    return found


def base_of(arm: str) -> str:
    """The cross-entropy run from the same start."""
    return BASELINE + FROM_LAYERS if FROM_LAYERS in arm else BASELINE


def ratios(results: Results, arm: str, other: str) -> list[float]:
    """Perplexity of an arm over that of another, for every seed that both have."""
    both = sorted(set(results[arm]) & set(results.get(other, {})))
    return [results[arm][seed]["test"] / results[other][seed]["test"] for seed in both]


def seconds(results: Results, arm: str) -> float:
    """CPU-seconds of an arm: the least of its seeds, for what else the machine does only adds."""
    return min(r["train_seconds"] + r["other_seconds"] for r in results[arm].values())


def equal_steps(results: Results, arm: str, steps: int) -> float:
    """Steps of cross-entropy alone, from the same start, that take the CPU-seconds of the arm."""
    return steps * seconds(results, arm) / seconds(results, base_of(arm))


def curve(results: Results, seed: int, base: str, steps: int) -> list[tuple[float, float]]:
    """(steps, test perplexity) of the cross-entropy runs of all lengths, each with a schedule of its own."""
    points = []
    for arm in results:
        if (arm == base or arm.startswith(f"{base} x")) and seed in results[arm]:
            times = float(arm.rpartition(" x")[2]) if " x" in arm else 1.0
            points.append((times * steps, results[arm][seed]["test"]))
    return sorted(points)


def at_steps(points: list[tuple[float, float]], steps: float) -> float | None:
    """Perplexity between two lengths, on straight lines of the logarithms; None beyond the longest."""
    for (low, above), (high, below) in zip(points, points[1:], strict=False):
        if low <= steps <= high:
            share = math.log(steps / low) / math.log(high / low)
            return math.exp(math.log(above) * (1 - share) + math.log(below) * share)
    return points[0][1] if points and steps < points[0][0] else None


def compute_ratios(results: Results, arm: str, steps: int) -> list[float]:
    """Perplexity over that of cross-entropy alone with the arm's CPU-seconds, for every seed."""
    wanted, found = equal_steps(results, arm, steps), []
    for seed, record in sorted(results[arm].items()):
        other = at_steps(curve(results, seed, base_of(arm), steps), wanted)
        if other is not None:
            found.append(record["test"] / other)
    return found


def each(values: list[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values) or "-"


def line(results: Results, arm: str, steps: int) -> list[str]:
    """One row of the table."""
    records = results[arm].values()
    test = [r["test"] for r in records]
    spread = statistics.stdev(test) if len(test) > 1 else 0.0
    against = ratios(results, arm, base_of(arm))
    wins = "" if arm == base_of(arm) or not against else "yes" if max(against) < 1 else "no"
    cells = [arm, f"{statistics.mean(test):.2f} +- {spread:.2f}", each(against), wins]
    cells.append(each(ratios(results, arm, arm + SHUFFLED)) if arm + SHUFFLED in results else "")
    if base_of(arm) in results:
        wanted = equal_steps(results, arm, steps)
        cells += [f"{wanted:.0f}", each(compute_ratios(results, arm, steps))]
    else:
        cells += ["-", "-"]
    other = min(r["other_seconds"] for r in records)
    return [*cells, f"{min(r['train_seconds'] for r in records):.1f}" + (f" + {other:.1f}" if other else "")]


def bars(results: Results) -> list[str]:
    """What was to be shown, each with every seed's figure and whether all of them reach it."""
    said = []

    def bar(text: str, values: list[float], high: float) -> None:
        if values:
            said.append(f"- {'pass' if max(values) <= high else 'FAIL'}: {text} <= {high:g}: {each(values)}")

    if BASELINE in results:
        bar(f"perplexity of {BASELINE}", [r["test"] for _, r in sorted(results[BASELINE].items())], 125)
    for arm, high in (("vanilla a.1 T1", 0.8), ("vanilla a.5 T2", 0.9)):
        if arm in results:
            bar(f"{arm} / {BASELINE}", ratios(results, arm, BASELINE), high)
    start = "vanilla a.1 T1" + FROM_LAYERS
    if start in results:
        bar(f"{start} / {base_of(start)}", ratios(results, start, base_of(start)), 0.95)
    cached, live = "cached k=50", "vanilla a.1 T1"
    if cached in results and live in results:
        with_cache, alive = ratios(results, cached, BASELINE), ratios(results, live, BASELINE)
        kept = [(1 - a) / (1 - b) for a, b in zip(with_cache, alive, strict=False)]
        notes = next(iter(results[cached].values())).get("cache", {})
        verdict = "pass" if min(kept) >= 0.8 else "FAIL"
        said.append(f"- {verdict}: {cached} keeps of the live gain >= 0.8: {each(kept)} (cache: {notes})")
    return said


def models(out: Path) -> list[str]:
    """Perplexities of the teachers and of the student's own long run."""
    said = []
    for name in ("teacher", "second", "student"):
        path = out / f"{name}.json"
        if not path.exists():  # not prepared yet, and the arms that need it are not in the table
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        what = "student alone until dev stalls" if name == "student" else f"{name} (seed {record['seed']})"
        figures = ", ".join(f"{part} {record[f'{part}_perplexity']:.2f}" for part in ("train", "dev", "test"))
        said.append(
            f"- {what}: {record['parameters'] / 1e6:.2f}M parameters, {record['steps']} steps, "
            f"perplexity {figures}, {record['cpu_seconds']} CPU-s"
        )
    return said


def table(out: Path, records: list[dict], order: list[str]) -> str:
    """Everything in Markdown, the arms in this order; sd is over seeds, and ratios are listed by seed."""
    results = by_arm(records)
    if not results:
        return "no results yet"
    steps = records[0]["steps"]
    ways = sorted({", ".join(str(r[name]) for name in CIRCUMSTANCES) for r in records})
    lines = [
        f"{steps} steps, learning rate {records[0]['rate']:g}; one thread a process; {'; '.join(ways)}",
        "",
    ]
    lines += [*models(out), "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(line(results, arm, steps)) + " |" for arm in order if arm in results]
    return "\n".join([*lines, "", *bars(results)])
