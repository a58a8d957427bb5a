"""The table of benchmarks/classification.py in Markdown, and which of the bars the figures reach.

Accuracy is of dev. +- is the standard error over the seeds; the sentences are the same for all, and what their choice
leaves uncertain is in the teacher's interval and in McNemar's p.
"""

import json
import math
import statistics
from pathlib import Path

import classification_arms
from classification_arms import BASELINE, LONGER, STARTS, UNLABELLED

from llm_finetuner.benchmark.classes import paired, wilson

MARK = "<!-- figures: python benchmarks/classification.py --table -->"
HEADER = (
    "start", "learns from", "seeds", "accuracy, %", "of the teacher's, %", "parameters", "forward, x teacher",
    "CPU-s", "minus cross-entropy, points", "p, seed 0",
)  # fmt: skip
KEPT, FASTER = 97.0, 1.6  # the bars, in % and times: DistilBERT's published figures (arXiv 1910.01108)

Results = dict[tuple[str, str], dict[int, dict]]  # (start, arm) -> seed -> record


def read(out: Path, steps: int) -> list[dict]:
    """The records of runs of this many steps, oldest first."""
    path = out / "results.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["steps"] == steps]


def key(record: dict) -> tuple[str, str, int, int]:
    return record["start"], record["arm"], record["blocks"], record["seed"]


def accuracy(record: dict) -> float:
    """In percent."""
    return 100 * record["right"].count("1") / len(record["right"])


def hits(record: dict) -> list[bool]:
    return [one == "1" for one in record["right"]]


def mean(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error); NaN where one value has none."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def differences(results: Results, start: str, arm: str) -> list[float]:
    """Points of accuracy above cross-entropy from the same start, for every seed that both have."""
    ours, base = results[start, arm], results.get((start, BASELINE), {})
    return [accuracy(ours[seed]) - accuracy(base[seed]) for seed in sorted(set(ours) & set(base))]


def figure(values: list[float], sign: str = "") -> str:
    middle, error = mean(values)
    return f"{middle:{sign}.2f}" + ("" if math.isnan(error) else f" +- {error:.2f}")


def line(results: Results, start: str, arm: str, teacher: dict, times: str) -> list[str]:
    """One row of the table."""
    records = results[start, arm]
    scores = [accuracy(record) for record in records.values()]
    cells = [
        start, arm, str(len(scores)), figure(scores), f"{100 * mean(scores)[0] / accuracy(teacher):.1f}",
        f"{next(iter(records.values()))['parameters'] / 1e6:.1f}M", times,
        f"{min(record['cpu_seconds'] for record in records.values()):.0f}",
    ]  # fmt: skip
    against = differences(results, start, arm)
    if arm == BASELINE or not against:
        return [*cells, "", ""]
    base = results[start, BASELINE]
    both = 0 in records and 0 in base
    p = f"{paired(hits(records[0]), hits(base[0]))['p']:.3f}" if both else "-"
    return [*cells, figure(against, "+"), p]


def bars(results: Results, teacher: dict, times: float) -> list[str]:
    """What was to be shown for half of the blocks, each with its figure and whether it is reached."""
    lines = []
    if not math.isnan(times):
        lines.append(
            said(times >= FASTER, f"forward at least {FASTER} x as fast as the teacher: {times:.2f} x")
        )
    for start in STARTS:
        scores = {
            arm: mean([accuracy(record) for record in records.values()])[0]
            for (other, arm), records in results.items()
            if other == start
        }
        if BASELINE in scores and len(scores) > 1:
            lines += bars_of_start(results, start, scores, accuracy(teacher))
    return lines


def bars_of_start(results: Results, start: str, scores: dict[str, float], teacher: float) -> list[str]:
    """The bars of accuracy; the best method is picked on the same sentences, which flatters it a little."""
    taught = [arm for arm in scores if arm not in (BASELINE, LONGER) and "shuffled" not in arm]
    best = max(taught, key=scores.__getitem__)
    kept = 100 * scores[best] / teacher
    gain, error = mean(differences(results, start, best))
    lines = [
        said(kept >= KEPT, f"{start}: at least {KEPT:g} % of the teacher's accuracy: {kept:.1f} % ({best})")
    ]
    if not math.isnan(error):  # one seed has none
        above = f"{figure(differences(results, start, best), '+')} points ({best})"
        text = f"{start}: the best method above cross-entropy by more than its standard error: {above}"
        lines.append(said(gain > error, text))
    if UNLABELLED in scores:
        without = figure(differences(results, start, UNLABELLED), "+")
        reached = scores[UNLABELLED] >= scores[BASELINE]
        lines.append(
            said(reached, f"{start}: no labels as good as cross-entropy with labels: {without} points")
        )
    return lines


def said(reached: bool, text: str) -> str:
    return f"- {'pass' if reached else 'MISSED'}: {text}"


def about(out: Path, teacher: dict, records: list[dict], conditions: str) -> list[str]:
    """Of what the table is."""
    count, batch, tokens = len(teacher["right"]), classification_arms.BATCH, classification_arms.TOKENS
    low, high = wilson(teacher["right"].count("1"), count)
    names = ("date", "machine", "torch", "precision", "commit")
    ways = sorted({", ".join(str(record[name]) for name in names) for record in records})
    rates = ", ".join(f"{start} {rate:g}" for start, rate in classification_arms.RATES.items())
    asked = [
        json.loads(path.read_text(encoding="utf-8"))["cpu_seconds"]
        for path in sorted(out.glob("answers_*.json"))
    ]
    return [
        f"- teacher: {teacher['blocks']} blocks, {teacher['parameters'] / 1e6:.1f}M parameters, "
        f"{teacher['steps']} steps, dev accuracy {accuracy(teacher):.2f} % (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}, {count} sentences), {teacher['cpu_seconds']} CPU-s",
        f"- students: {records[0]['steps']} steps of {batch} sentences, learning rate by start: {rates}",
        f"- the teacher's answers, once for all students: {', '.join(f'{seconds:.0f}' for seconds in asked)} CPU-s",
        f"- trained one thread a process: {'; '.join(ways)}",
        f"- forward passes of {batch} x {tokens} tokens, models in turn, medians: {conditions}",
    ]


def table(out: Path, steps: int) -> str:
    """Everything in Markdown, a table for each number of blocks."""
    records = read(out, steps)
    if not records or not (out / "teacher.json").exists():
        return "no results yet"
    teacher = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
    path = out / "speed.json"
    speeds = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rates = speeds.get("tokens_per_second", {})
    lines = about(out, teacher, records, speeds.get("conditions", "not measured yet"))
    for blocks in sorted({record["blocks"] for record in records}, reverse=True):
        results: Results = {}
        for record in records:
            if record["blocks"] == blocks:
                results.setdefault((record["start"], record["arm"]), {})[record["seed"]] = record
        times = rates[str(blocks)] / rates["teacher"] if str(blocks) in rates else math.nan
        shown = "-" if math.isnan(times) else f"{times:.2f}"
        lines += ["", f"{blocks} of {teacher['blocks']} blocks:", ""]
        lines += ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        for start, arms in STARTS.items():
            for arm in arms:
                if (start, arm) in results:
                    lines.append("| " + " | ".join(line(results, start, arm, teacher, shown)) + " |")
        if 2 * blocks == teacher["blocks"]:
            lines += ["", *bars(results, teacher, times)]
    return "\n".join(lines)
