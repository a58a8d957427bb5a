"""docs/conformance.md from what the probes found."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch
from conformance_paths import ROOT
from conformance_rules import LIMIT, RULES, Cell

Table = dict[str, dict[int, Cell]]  # row -> rule -> cell
COMMAND = "python benchmarks/conformance.py --write"
PEERS = {
    "generalized_jsd_loss": "`GKDTrainer.generalized_jsd_loss` (function)",
    "ChunkedDivergenceFunction": "`ChunkedDivergenceFunction` (tiles of `DistillationTrainer`)",
    "GKDTrainer, data (lmbda=0)": "`GKDTrainer`, `lmbda=0`: texts from the data",
    "GKDTrainer, on-policy (lmbda=1)": "`GKDTrainer`, `lmbda=1`: the student's texts",
    "DistillationTrainer": "`DistillationTrainer`: the student's texts",
}
INTRO = f"""# Conformance

Which rules of a sound distillation loss are kept, by every objective and every kind of teacher of LLM Finetuner, and by
the losses of TRL. Each rule is one that at least one popular tool has broken. Where a cell shows a number, it is the
relative error of the *gradient*, the largest difference over the largest entry, unless the rule says otherwise. The
product's gradient is the change of every weight in one optimizer step of the real training loop (SGD at rate 1); the
reference is the definition of the loss, written out naively in float64, one unpadded row at a time. Up to
{LIMIT:g} passes, unless the rule says otherwise.

`pass`, `FAIL`; `refused`: the run stops and says why instead of learning something wrong; `-`: the rule does not apply
or was not probed.
"""
OURS = """The models are tiny GPT-2s in float64 with a real byte-level tokenizer; caches and endpoints are
real ones (the endpoint is an HTTP server on the loopback that answers as vLLM does, in float32)."""
OBJECTIVES_NOTE = """`mse` and `huber` compare numbers, not tokens, so only their functions are probed; what is about
forecasts alone is tested in tests/test_forecasting.py.
`span_kl` compares texts of several tokens between two tokenizers: its cells compare ways to run a step with
each other, not with the naive reference. In rule 5 the loss functions themselves are probed; there the number
is the error of the loss."""
TEACHERS_NOTE = """Teachers of 50 tokens a position are compared, in all rules but 7, with the loss of what
they themselves answer to single rows; rule 7 says how far that is from the whole distribution. In rule 5 the
teacher is in bfloat16 and the number is the largest error of its probabilities. `average` is probed with
another model's weights, as on the first step it is the student itself. Caches and endpoints have no weights
in the training process (8)."""
PEERS_NOTE = """The same rows, tokenizer, rules and limits, through documented arguments, forward KL
(`beta=0`) unless a note says otherwise; Llamas in float32. Where a trainer lets the student write the texts,
the reference is over the texts that it wrote. `GKDTrainer` on-policy divides by another number of tokens
(rule 3), so its other cells compare gradients up to one common factor. Heads are probed without LoRA (9).
`GKDTrainer` has no temperature of the loss (4). Not probed: `GOLDTrainer`; the trainers that need a vLLM
server (`ServerDistillationTrainer`, which documents a tail bucket for top-k answers, and
`AsyncDistillationTrainer`); the Liger variants, which need a package of their own."""


def shown(cell: Cell | None) -> str:
    if cell is None or cell.verdict == "-":
        return "-"
    word = "**FAIL**" if cell.verdict == "fail" else cell.verdict
    return word if cell.error is None else f"{word} {figure(cell.error)}"


def figure(error: float) -> str:
    if error == 0 or error >= 0.01:
        return f"{error:.2g}"
    return f"{error:.0e}".replace("e-0", "e-")


def grid(table: Table, names: dict[str, str] | None = None) -> list[str]:
    """Rows of a Markdown table, the rules as columns."""
    header = ["", *(f"{number} {rule.name}" for number, rule in RULES.items())]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row, cells in table.items():
        name = (names or {}).get(row, f"`{row}`")
        lines.append("| " + " | ".join([name, *(shown(cells.get(number)) for number in RULES)]) + " |")
    return lines


def remarks(table: Table, names: dict[str, str] | None = None, every: bool = False) -> list[str]:
    """What does not pass, in words; all notes with `every`."""
    lines = []
    for row, cells in table.items():
        for number, cell in sorted(cells.items()):
            if cell.note and (every or cell.verdict in ("fail", "refused")):
                name = (names or {}).get(row, f"`{row}`")
                lines.append(f"- {name}, {number} {RULES[number].name}: {shown(cell)}. {cell.note}.")
    return lines


def tails(table: Table) -> list[str]:
    """How near the 50 best with their tail come, beside the 50 best renormalised."""
    return [
        f"- `{row}`: {cells[7].error:.2g} ({cells[7].note})"
        for row, cells in table.items()
        if cells[7].error is not None
    ]


def stored(table: Table) -> list[str]:
    """What caches of hidden states come to."""
    return [
        f"- `{row}`: {cells[13].note}" for row, cells in table.items() if "hidden states" in cells[13].note
    ]


def rules() -> list[str]:
    """The rules in words: the part of the page that is not measured."""
    return [
        f"{number}. **{rule.name}.** {rule.words} *Probe:* {rule.probe}" for number, rule in RULES.items()
    ]


def page(
    objectives: Table, teachers: Table, peers: Table | None, absent: str, seconds: tuple[float, float]
) -> str:
    """absent: said where there are no peers. seconds: by the clock, of the processor."""
    lines = [INTRO, *about(peers is not None, seconds), "", "## Rules", "", *rules()]
    lines += [
        "",
        "## Objectives",
        "",
        OURS,
        "",
        OBJECTIVES_NOTE,
        "",
        *grid(objectives),
        *_list(remarks(objectives)),
    ]
    lines += ["", "Rule 7, relative gradient error to the whole distribution:", "", *tails(objectives)]
    lines += ["", "Rule 13, hidden states:", "", *stored(objectives)]
    lines += ["", "## Teachers", "", TEACHERS_NOTE, "", *grid(teachers), *_list(remarks(teachers))]
    lines += ["", "Rule 7, relative gradient error to the whole distribution:", "", *tails(teachers)]
    lines += ["", "## TRL", ""]
    if peers is None:
        lines.append(absent)
    else:
        lines += [PEERS_NOTE, "", *grid(peers, PEERS), *_list(remarks(peers, PEERS, every=True))]
    return "\n".join([*lines, ""])


def _list(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def about(with_peers: bool, seconds: tuple[float, float]) -> list[str]:
    packages = ["torch", "transformers", "llm-finetuner", *(["trl"] if with_peers else [])]
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return [
        f"Made by `{COMMAND}` on {datetime.date.today().isoformat()} in {seconds[0]:.0f} s "
        f"({seconds[1]:.0f} s of the processor; the machine was shared); commit {_commit()}; "
        f"Python {platform.python_version()}, {versions}; {_hardware()}."
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from the sources
        return "of this folder"


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def _hardware() -> str:
    """The processor and the threads in use; no GPU is used."""
    info, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        found = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = found[0] if found else name
    return f"{name}, {torch.get_num_threads()} thread(s), CPU only"
