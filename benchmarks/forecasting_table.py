"""The table of benchmarks/forecasting.py in Markdown: each check, its bar, what was measured, and whether it holds."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from forecasting_runs import Bench

MARK = "<!-- figures: python benchmarks/forecasting.py --table -->"
Line = tuple[str, str, str, bool | None]  # check, bar, measured, whether it holds


def mean(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f}" + ("" if math.isnan(error) else f" +- {error:.4f}")


def mses(arm: list[dict]) -> list[float]:
    return [one["mse"] for one in arm]


def naive(found: dict, etth1: bool) -> list[Line]:
    last, season = found["repeat_last"], found["seasonal"]
    right = abs(last["mse"] - 1.2944) < 2e-4 and abs(last["mae"] - 0.7132) < 2e-4
    told = f"{last['mse']:.4f} / {last['mae']:.4f}, {last['windows']:,} windows"
    return [
        (
            "last value repeated, MSE / MAE",
            "1.2944 / .7132 to 2e-4" if etth1 else "-",
            told,
            right if etth1 else None,
        ),
        (
            f"last season repeated ({found['season']} steps)",
            "-",
            f"{season['mse']:.4f} / {season['mae']:.4f}",
            None,
        ),
        (
            "batch of 1, 32, 257, 1,024",
            "equal to 1e-6",
            f"{found['apart_by_batch']:.1e}",
            found["apart_by_batch"] < 1e-6,
        ),
    ]


def line(found: dict, etth1: bool) -> list[Line]:
    lines: list[Line] = []
    for lookback, wanted in (("96", 0.383), ("336", 0.370)):
        one = found[lookback]
        right = abs(one["mse"] - wanted) < 0.003 and one["cpu_seconds"] < 5
        told = f"{one['mse']:.4f}, {one['cpu_seconds']} CPU-s"
        bar = f"{wanted} within .003, under 5 s" if etth1 else "-"
        lines.append((f"line in closed form, look-back {lookback}", bar, told, right if etth1 else None))
    return [*lines, ("line fitted to the first tenth of the rows", "-", f"{found['few']['mse']:.4f}", None)]


def teacher(found: dict, etth1: bool) -> list[Line]:
    size = f"{found['parameters']:,} parameters, {found['cpu_seconds']:.0f} CPU-s"
    told = f"{found['mse']:.4f} / {found['mae']:.4f}, {size}"
    right = found["mse"] <= 0.392 and found["cpu_seconds"] <= 360
    alone = found["alone"]
    return [
        (
            "compact Time-LLM, .5/.5 by the line",
            "MSE <= .392 in <= 360 CPU-s" if etth1 else "-",
            told,
            right if etth1 else None,
        ),
        ("the same alone", "-", f"{alone['mse']:.4f} / {alone['mae']:.4f}", None),
    ]


def full(found: dict, etth1: bool, teacher: dict) -> list[Line]:
    alone, halves = found["alone"], found[".5/.5"]
    fewer = 1 - alone[0]["parameters"] / teacher["parameters"]
    kept = 100 * teacher["mse"] / statistics.mean(mses(halves))
    loss = statistics.mean(b - a for a, b in zip(mses(alone), mses(halves), strict=True))
    lines: list[Line] = [
        (
            "student, parameters less",
            ">= 85 %",
            f"{100 * fewer:.1f} %, {alone[0]['parameters']:,}",
            fewer >= 0.85,
        ),
        ("all rows, .5/.5: kept of the teacher's MSE", ">= 97 %", f"{kept:.1f} %", kept >= 97),
        ("all rows, .5/.5 minus alone, paired", "<= +.004", f"{loss:+.4f}", loss <= 0.004),
    ]
    lines += [
        (f"all rows, {name}, {len(arm)} seeds", "-", mean(mses(arm)), None)
        for name, arm in found.items()
        if name != "on"
    ]
    return lines


def few(found: dict, etth1: bool, straight: dict) -> list[Line]:
    alone, heavy = mses(found["alone"]), mses(found["0/1"])
    every = all(b < a for a, b in zip(alone, heavy, strict=True))
    lower = 100 * (1 - statistics.mean(heavy) / statistics.mean(alone))
    wanted, most = (12, 0.44) if etth1 else (4, straight["few"]["mse"])
    middle = statistics.mean(heavy)
    lines: list[Line] = [
        (
            "a tenth of the rows, teacher alone: better than alone",
            "every seed",
            "yes" if every else "no",
            every,
        ),
        ("a tenth of the rows, mean MSE lower by", f">= {wanted} %", f"{lower:.1f} %", lower >= wanted),
        (
            "a tenth of the rows, mean MSE",
            f"<= {most:.4f}" + ("" if etth1 else " (line on the same rows)"),
            f"{middle:.4f}",
            middle <= most,
        ),
    ]
    lines += [
        (f"a tenth, {name}, {len(arm)} seeds", "-", mean(mses(arm)), None)
        for name, arm in found.items()
        if name != "on"
    ]
    return lines


def folded(found: dict) -> list[Line]:
    big, small = (found[f"{name}, folded"] for name in ("bert-base", "tinybert"))
    fewer = 100 * (1 - small["parameters"] / big["parameters"])
    times = big["cpu_ms"] / small["cpu_ms"]
    less = 100 * (1 - small["megabytes"] / big["megabytes"])
    wide, slim = (found[f"{name}, as trained"] for name in ("bert-base", "tinybert"))
    before = (
        f"as trained {100 * (1 - slim['parameters'] / wide['parameters']):.1f} %, "
        f"{wide['cpu_ms'] / slim['cpu_ms']:.1f} x, {100 * (1 - slim['megabytes'] / wide['megabytes']):.1f} %"
    )
    told = "{:.1f}M -> {:.1f}M".format(big["parameters"] / 1e6, small["parameters"] / 1e6)
    return [
        (
            "BERT-base -> TinyBERT shapes, folded: parameters less",
            ">= 87 %",
            f"{fewer:.1f} % ({told})",
            fewer >= 87,
        ),
        (
            "the same: less CPU time a window",
            ">= 8 x",
            f"{times:.1f} x ({big['cpu_ms']:.0f} -> {small['cpu_ms']:.0f} ms)",
            times >= 8,
        ),
        ("the same: less memory of weights", ">= 70 %", f"{less:.1f} %", less >= 70),
        ("the same, not folded", "-", before, None),
        ("folded against as trained", "equal to 1e-5", f"{found['apart']:.1e}", found["apart"] < 1e-5),
    ]


def invariances(found: dict) -> list[Line]:
    return [
        ("a series alone and in any batch", "equal to 1e-5", f"{found['batch']:.1e}", found["batch"] < 1e-5),
        ("f(a x + b) = a f(x) + b", "to 1e-4", f"{found['units']:.1e}", found["units"] < 1e-4),
        (
            "other test rows",
            "nothing changes",
            "nothing" if found["test_rows"] else "weights",
            found["test_rows"],
        ),
        (
            "beta = 0",
            "the plain run, bit for bit",
            "equal" if found["beta_0"] else "other weights",
            found["beta_0"],
        ),
    ]


def cache(found: dict) -> list[Line]:
    return [
        (
            "stored answers against the live teacher, weights",
            "equal to 1e-6",
            f"{found['apart']:.1e}",
            found["apart"] < 1e-6,
        )
    ]


def intervals(found: dict, etth1: bool) -> list[Line]:
    lines: list[Line] = []
    for name in ("teacher", "line", "made"):
        one = found[name]
        low, high = min(one["by_channel"]), max(one["by_channel"])
        right = 0.77 <= one["coverage"] <= 0.83 and 0.74 <= low and high <= 0.86
        best = one.get("score_of_the_true_quantiles")
        most = 2.24 if best is None else 1.1 * best
        told = f"{one['coverage']:.3f} [{low:.3f}, {high:.3f}], score {one['interval_score']:.3f}"
        bar = f".77 - .83 [.74, .86], score <= {most:.2f}"
        held = right and one["interval_score"] <= most
        judged = etth1 or name == "made"
        called = name if best is None else f"quantiles of a made series (the true ones score {best:.2f})"
        lines.append(
            (
                f"80 % intervals, {called}: coverage, of channels",
                bar if judged else "-",
                told,
                held if judged else None,
            )
        )
    return lines


def gate(found: dict) -> list[Line]:
    walk, spoilt = found["walk"], found["spoilt"]
    told = any("not" in text and "better than last value" in text for text in walk["warnings"])
    worse = spoilt["paid"] == "no" and any("The teacher" in text for text in spoilt["warnings"])
    return [
        (
            "a walk by chance: the report says that the last value is not beaten",
            "said",
            "said" if told else "not said",
            told,
        ),
        ("a teacher of shuffled rows trips the gate", "did not pay", spoilt["paid"], worse),
    ]


def lines_of(bench: Bench) -> list[Line]:
    found, etth1 = bench.results(), bench.is_etth1
    makers: dict[str, Callable[[Any], list[Line]]] = {
        "naive": lambda part: naive(part, etth1),
        "line": lambda part: line(part, etth1),
        "teacher": lambda part: teacher(part, etth1),
        "full": lambda part: full(part, etth1, found["teacher"]),
        "few": lambda part: few(part, etth1, found["line"]),
        "folded": folded,
        "invariances": invariances,
        "cache": cache,
        "intervals": lambda part: intervals(part, etth1),
        "gate": gate,
    }
    return [told for name, make in makers.items() if name in found for told in make(found[name])]


def table(bench: Bench) -> str:
    """All checks in Markdown."""
    found = bench.results()
    if not found:
        return "no results yet"
    ways: dict[str, list[str]] = {}  # when and on what, and the commits
    for part in found.values():
        way, _, commit = part["on"].rpartition(", ")
        ways[way] = [*dict.fromkeys([*ways.get(way, []), commit])]
    told = "; ".join(f"{way}, at {', '.join(commits)}" for way, commits in ways.items())
    marks = {True: "pass", False: "MISSED", None: ""}
    rows = [f"| {check} | {bar} | {told} | {marks[held]} |" for check, bar, told, held in lines_of(bench)]
    head = [f"`{bench.data.name}`, split {bench.split}, 96 -> 96; {told}", ""]
    return "\n".join([*head, "| check | bar | measured | |", "|---|---|---|---|", *rows])
