"""What the table of a sweep says of the trials that cannot be told apart from the best."""

from llm_finetuner.benchmark.enough import ENOUGH
from llm_finetuner.report.sweep_table import undecided


def result_of(*trials: tuple[bool | None, int | None], span: int = 0) -> dict:
    lines = [
        {"number": number, "apart": apart, "examples": examples, "span": span}
        for number, (apart, examples) in enumerate(trials)
    ]
    return {"best": lines[0], "trials": lines}


def test_too_few_examples_are_the_reason_that_is_given():
    said = undecided(result_of((False, 8), (False, 8), (False, 8), (None, None)))
    assert said.startswith("2 of the others cannot be told apart from the best: 8 examples chose")
    assert f"under {ENOUGH} no interval is trusted" in said


def test_with_enough_examples_the_count_stands_alone():
    said = undecided(result_of((False, ENOUGH), (True, ENOUGH), (False, ENOUGH)))
    assert said == "1 of the others cannot be told apart from the best"


def test_windows_that_overlap_are_no_independent_examples():
    said = undecided(result_of((False, 170), (False, 170), span=24))
    assert said.endswith(
        ": 170 windows (as much as 7 that do not overlap) chose, and under 12 such no interval is trusted, whatever it "
        "leaves out"
    )
