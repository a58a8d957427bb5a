"""Results of a benchmark beside what they were measured on, part by part, and the place of their table in a page."""

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- end -->"


def commit() -> str:
    """The code that runs."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def today() -> str:
    """2026-11-29, the same day everywhere."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def facts() -> dict[str, str]:
    """When, on what, and with which code."""
    return {
        "date": today(), "machine": platform.machine(), "torch": torch.__version__, "commit": commit()
    }  # fmt: skip


def circumstances() -> str:
    """The same in a line, of what runs on one thread."""
    found = facts()
    return f"{found['date']}, {found['machine']}, torch {found['torch']}, one thread, {found['commit']}"


def results(out: Path) -> dict[str, Any]:
    """What was kept in this folder, by name."""
    path = out / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(out: Path, name: str, figures: dict[str, Any]) -> None:
    """Add figures to the results, or replace those of that name."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**results(out), name: figures}, indent=1)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


def put(page: Path, begin: str, text: str) -> None:
    """Put a table between the page's marks: this comment and the end after it."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{page} has no place for the table: {begin} ... {END}")
    page.write_text(f"{before}{begin}\n{text}\n{END}{tail}", encoding="utf-8")
