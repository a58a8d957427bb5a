"""The embedded default data set: what is in it, and that its split does not move."""

import json
import os
import subprocess
import sys

import pytest

from llm_finetuner.data import stdlib
from llm_finetuner.errors import DataError


def modules(split: str) -> set[str]:
    return {row["module"] for row in stdlib.corpus(split)}


def test_the_two_splits_share_no_module_and_a_twelfth_is_held_out():
    train, test = modules("train"), modules("test")
    assert not train & test
    assert 1 / 16 < len(test) / (len(train) + len(test)) < 1 / 8


def test_the_split_is_the_same_on_every_python():
    # The shipped teacher has never seen these; on the training side they would make its figures worthless.
    assert {
        "calendar.py",
        "dataclasses.py",
        "subprocess.py",
        "textwrap.py",
        "asyncio/__init__.py",
    } <= modules("test")
    assert {"argparse.py", "json/decoder.py", "typing.py", "asyncio/events.py"} <= modules("train")


def test_a_module_that_becomes_a_package_stays_on_its_side():
    for name in ("pathlib", "sysconfig", "zipfile", "string", "calendar"):
        assert stdlib.is_held_out(f"{name}.py") == stdlib.is_held_out(f"{name}/__init__.py")


def test_tests_tables_and_foreign_packages_are_left_out():
    unwanted = {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "site-packages",
        "distutils",
        "tkinter",
    }
    for module in modules("train") | modules("test"):
        assert not unwanted & set(module.split("/")[:-1]), module


def test_rows_hold_source_and_posix_paths():
    rows = stdlib.corpus("train")
    assert all(set(row) == {"text", "module"} and row["text"].strip() for row in rows)
    assert [row["module"] for row in rows] == sorted(row["module"] for row in rows)
    assert any("def loads(" in row["text"] for row in rows if row["module"] == "json/__init__.py")


def test_there_is_enough_text():
    assert sum(len(row["text"]) for row in stdlib.corpus("train")) > 5_000_000
    assert sum(len(row["text"]) for row in stdlib.corpus("test")) > 500_000


def test_write_twice_changes_nothing(tmp_path):
    folder = stdlib.write(tmp_path / "new" / "folder")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert set(before) == {"train.jsonl", "test.jsonl"}
    assert [json.loads(line) for line in before["test.jsonl"][1].splitlines()] == stdlib.corpus("test")
    assert stdlib.write(folder) == folder
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


def test_write_repairs_half_a_file(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "ha', encoding="utf-8")
    stdlib.write(tmp_path)
    lines = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(stdlib.corpus("test"))
    assert sorted(os.listdir(tmp_path)) == ["test.jsonl", "train.jsonl"]


def test_an_unknown_split_says_which_there_are():
    with pytest.raises(DataError, match="'validation'\\nuse 'train' or 'test'"):
        stdlib.corpus("validation")


def test_importing_it_is_cheap():
    heavy = "{'torch', 'transformers', 'datasets'}"
    code = f"import sys; import llm_finetuner.data.stdlib; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
