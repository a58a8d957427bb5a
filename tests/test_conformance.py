"""The conformance table: its page is whole, its cheap probes pass over the registry, and probes catch faults."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import conformance_kinds  # noqa: E402
import conformance_objectives  # noqa: E402
import conformance_page  # noqa: E402
import conformance_teachers  # noqa: E402
from conformance_rules import RULES  # noqa: E402
from conformance_step import Bench  # noqa: E402

from llm_finetuner.objectives import divergence  # noqa: E402
from llm_finetuner.registry import OBJECTIVES, TEACHERS  # noqa: E402


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("conformance"))


def sections() -> dict[str, list[str]]:
    """Heading -> the rows of its table, each split into cells."""
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    found = {}
    for part in page.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("| ") or line.startswith("|  ")]
        found[heading] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return found


def test_the_page_has_every_rule_objective_and_kind_of_teacher():
    page, found = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8"), sections()
    for line in conformance_page.rules():
        assert line in page
    columns = [f"{number} {rule.name}" for number, rule in RULES.items()]
    for heading, rows in (
        ("Objectives", [f"`{name}`" for name in conformance_objectives.PROBED]),
        ("Teachers", [f"`{kind.name}`" for kind in conformance_kinds.KINDS]),
        ("TRL", list(conformance_page.PEERS.values())),
    ):
        table = found[heading]
        assert table[0][1:] == columns, heading
        assert [row[0] for row in table[1:]] == rows, heading
        assert all(len(row) == 1 + len(RULES) for row in table)
    assert {kind.registered for kind in conformance_kinds.KINDS} == set(TEACHERS)
    ours = [cell for heading in ("Objectives", "Teachers") for row in found[heading][1:] for cell in row[1:]]
    assert not [cell for cell in ours if "FAIL" in cell] and sum("pass" in cell for cell in ours) > 250


@pytest.mark.parametrize("name", conformance_objectives.PROBED)
def test_masks_and_float32_of_every_objective(bench, name):
    for number, cell in conformance_objectives.probe(bench, name, rules=(2, 5)).items():
        assert cell.verdict in ("pass", "-"), (name, number, cell)


@pytest.mark.parametrize("kind", conformance_kinds.KINDS, ids=lambda kind: kind.name)
def test_masks_of_every_kind_of_teacher(bench, kind):
    assert conformance_teachers.probe(bench, kind, rules=(2,))[2].verdict == "pass"


# ---- the probes catch what the rules are about


def without_factor(student, teacher, *, temperature=1.0):
    return divergence.forward_kl(student, teacher, temperature=temperature) / temperature**2


def in_bfloat16(student, teacher, *, temperature=1.0):
    log_p, log_q = (torch.log_softmax(z.bfloat16() / temperature, -1) for z in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(-1).to(student.dtype)


def normalised_to_the_chunk(student, teacher, *, temperature=1.0):
    return divergence.forward_kl(student, teacher, temperature=temperature) / len(student)


def of_the_next_position(student, teacher, *, temperature=1.0):
    return divergence.forward_kl(student, teacher.roll(1, 0), temperature=temperature)


@pytest.mark.parametrize(
    ("broken", "rule", "least"),
    [
        (without_factor, 4, 0.9), (in_bfloat16, 5, 1e-3), (normalised_to_the_chunk, 3, 0.5),
        (of_the_next_position, 1, 0.1),
    ],
)  # fmt: skip
def test_a_broken_loss_fails(bench, monkeypatch, broken, rule, least):
    monkeypatch.setitem(OBJECTIVES, "forward_kl", f"{__name__}:{broken.__name__}")
    cell = conformance_objectives.probe(bench, "forward_kl", rules=(rule,))[rule]
    assert cell.verdict == "fail" and cell.error > least, cell
