"""The tables of benchmarks/state_space.py in Markdown: what was measured, and each check with its bar."""

import math
import statistics
from typing import Any

from state_space_runs import LABELLED, STUDENTS, Bench

from llm_finetuner.benchmark.focusers import SIMPLE

MARK = "<!-- figures: python benchmarks/state_space.py --table -->"
ARMS = ("alone", "guide's loss", "from the teacher")
KEPT = {"standard": 97, "compressed": 95, "tiny": 91}  # percent of the teacher's energy
WIDTH = {"standard": 1.10, "compressed": 1.15, "tiny": 1.20}
PSLR = {"standard": -32, "compressed": -30, "tiny": -27}  # dB
Line = tuple[str, str, str, bool | None]  # check, bar, measured, whether it holds


def table(bench: Bench) -> str:
    """Both tables; of the second the lines whose runs are there."""
    found = bench.results()
    if not found:
        return "no results yet"
    marks = {True: "pass", False: "MISSED", None: ""}
    checks = [
        f"| {check} | {bar} | {told} | {marks[held]} |" for check, bar, told, held in lines(bench, found)
    ]
    return "\n".join(
        [
            f"{'; '.join(sorted({one['on'] for one in found.values()}))}.",
            "",
            "| | parameters | NMSE, dB | kept, % | PSNR | SSIM | coherence | width | PSLR | ISLR | phase | CPU-s |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *rows(bench, found),
            "",
            "| check | bar | measured | |",
            "|---|---|---|---|",
            *checks,
        ]
    )


def rows(bench: Bench, found: dict[str, Any]) -> list[str]:
    """A line a model or processor, of several seeds their means; NMSE with its standard error."""
    groups = {name: [name] for name in (*SIMPLE, "teacher", "without gates")}
    groups |= {f"{size}, {arm}": seeds(bench, f"{size}, {arm}") for size in STUDENTS for arm in ARMS}
    groups |= {f"{LABELLED} with truth, {arm}": seeds(bench, f"few, {arm}") for arm in ("alone", "taught")}
    made, top = [], found.get("teacher")
    for name, runs in groups.items():
        there = [found[run] for run in runs if run in found]
        if not there:
            continue
        kept = "" if top is None else f"{statistics.mean(100 * retained(one, top) for one in there):.1f}"
        shown = [
            _mean(there, "parameters", ",.0f"), _spread([one["nmse_db"] for one in there]), kept,
            *(_mean(there, key, form) for key, form in (("psnr", ".1f"), ("ssim", ".3f"), ("coherence", ".3f"))),
            *(_mean(there, key, form) for key, form in (("width", ".2f"), ("pslr", ".1f"), ("islr", ".1f"))),
            _mean(there, "phase", ".1f"), _mean(there, "cpu_seconds", ".0f"),
        ]  # fmt: skip
        made.append(f"| {name} | {' | '.join(shown)} |")
    return made


def lines(bench: Bench, found: dict[str, Any]) -> list[Line]:
    """The checks."""
    made: list[Line] = []
    if "teacher" in found and "without gates" in found:
        one, other = found["teacher"], found["without gates"]
        gain = other["nmse_db"] - one["nmse_db"]
        right = one["nmse_db"] <= -10 and one["cpu_seconds"] <= 360 and one["width"] <= 1.10
        told = f"{one['nmse_db']:.2f} dB, width {one['width']:.2f}, {one['cpu_seconds']:.0f} CPU-s"
        made.append(("teacher", "<= -10 dB, width <= 1.10, <= 360 CPU-s", told, right))
        made.append(("better than without gates by", ">= 1 dB", f"{gain:.2f} dB", gain >= 1))
    for size in STUDENTS:
        taught, alone = ([found.get(run) for run in seeds(bench, f"{size}, {arm}")] for arm in ARMS[::-2])
        if all([*taught, *alone, "teacher" in found]):
            made += student(size, taught, alone, found["teacher"])
    spent = sum(
        found[run]["cpu_seconds"]
        for size in STUDENTS
        for run in seeds(bench, f"{size}, {ARMS[2]}")
        if run in found
    )
    made.append(
        ("students from the teacher, all of them", "<= 600 CPU-s", f"{spent:.0f} CPU-s", spent <= 600)
    )
    alone, taught = ([found.get(run) for run in seeds(bench, f"few, {arm}")] for arm in ("alone", "taught"))
    if all([*alone, *taught]):
        gains = [a["nmse_db"] - b["nmse_db"] for a, b in zip(alone, taught, strict=True)]
        told = f"by {min(gains):.1f} to {max(gains):.1f} dB"
        made.append(
            (
                f"{LABELLED} columns with truth: better than alone, every seed",
                ">= 2 dB",
                told,
                min(gains) >= 2,
            )
        )
    return made


def student(size: str, taught: list[dict], alone: list[dict], top: dict) -> list[Line]:
    """The bars of one size, each of its worst seed."""
    kept = min(100 * retained(one, top) for one in taught)
    gain = min(b["nmse_db"] - a["nmse_db"] for a, b in zip(taught, alone, strict=True))
    width, pslr = max(one["width"] for one in taught), max(one["pslr"] for one in taught)
    return [
        (f"{size}: energy kept, worst seed", f">= {KEPT[size]} %", f"{kept:.1f} %", kept >= KEPT[size]),
        (f"{size}: better than alone, worst seed", ">= .7 dB", f"{gain:.2f} dB", gain >= 0.7),
        (f"{size}: 3 dB width, worst seed", f"<= {WIDTH[size]:.2f}", f"{width:.2f}", width <= WIDTH[size]),
        (f"{size}: PSLR, worst seed", f"<= {PSLR[size]} dB", f"{pslr:.1f} dB", pslr <= PSLR[size]),
    ]


def seeds(bench: Bench, arm: str) -> list[str]:
    return [f"{arm}, {seed}" for seed in bench.seeds]


def retained(one: dict, top: dict) -> float:
    return (1 - one["nmse"]) / (1 - top["nmse"])


def _mean(there: list[dict], key: str, form: str) -> str:
    return format(statistics.mean(one[key] for one in there), form) if key in there[0] else ""


def _spread(values: list[float]) -> str:
    error = "" if len(values) < 2 else f" +- {statistics.stdev(values) / math.sqrt(len(values)):.2f}"
    return f"{statistics.mean(values):.2f}{error}"
