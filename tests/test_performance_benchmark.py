"""The benchmark of performance: its variants can be called, its bars judge, a process that breaks is told of."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from performance_pieces import PIECES  # noqa: E402
from performance_process import Variant, measure  # noqa: E402
from performance_table import Bar, Bound, Piece, Same, table, verdicts  # noqa: E402

NAMES = ["slow", "fast"]


def record(cpu: float, above: float = 1e6, **facts) -> dict:
    return {"cpu": cpu, "wall": cpu, "peak": 2 * above, "above": above, "facts": facts}


@pytest.mark.parametrize("name", PIECES)
def test_every_variant_can_be_called_and_every_bar_names_variants(name):
    piece = PIECES[name]()
    for variant in piece.variants.values():
        module, _, function = variant.run.partition(":")
        inspect.signature(getattr(importlib.import_module(module), function)).bind(None, **variant.options)
    named = {piece.against} | {side for bar in piece.bars for side in (bar.over, bar.under)}
    assert named <= set(piece.variants)


def test_bars_take_the_median_of_the_ratios_by_round_and_bounds_the_worst():
    records = {
        "slow": [record(3.0, loss=1.0), record(40.0, loss=1.0), record(5.0, loss=2.0)],
        "fast": [record(1.0, loss=1.0), record(10.0, loss=1.0), record(5.0, loss=2.001)],
    }
    bar = Bar("", "slow", "fast", 2)
    assert bar.values(records) == [3, 4, 1] and bar.reached([3, 4, 1])
    assert not Bar("", "slow", "fast", 2, at_most=True).reached([3, 4, 1])
    same = Same("", "slow", "fast", 1e-4)
    assert not same.reached(same.values(records)) and same.reached(same.values(records)[:2])
    bound = Bound("", "slow", "loss", 1.5)
    assert not bound.reached(bound.values(records))


def test_a_variant_that_is_not_there_is_no_missed_bar_but_is_told():
    piece = Piece(
        "", dict.fromkeys(NAMES), "slow", [Bar("twice", "slow", "fast", 2), Bar("same", "slow", "slow", 1)]
    )
    said, good = verdicts(piece, {"slow": [record(1.0)]}, {"fast": "not installed"})
    assert good and "not measured: fast: not installed" in said and "| same | 1 | pass |" in said
    assert "| fast | not installed |" in table(piece, {"slow": [record(1.0)]}, {"fast": "not installed"})


@pytest.mark.slow
def test_processes_take_turns_and_one_that_breaks_is_told_of(tmp_path):
    options = {"tokens": 24, "vocabulary": 300}
    variants = {
        "naive": Variant("performance_loss:naive", options),
        "ours": Variant("performance_loss:ours", {**options, "chunk": 7}, ours=True),
        "broken": Variant("performance_loss:naive", {"tokens": -1, "vocabulary": 300}),
    }
    records, failed = measure(variants, 2, tmp_path)
    assert list(records) == ["naive", "ours"] and list(failed) == ["broken"] and "Error" in failed["broken"]
    for found in records.values():
        assert len(found) == 2 and all(r["cpu"] > 0 and r["peak"] > r["above"] for r in found)
    losses = [r["facts"]["loss"] for found in records.values() for r in found]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
