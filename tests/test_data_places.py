"""Folders, globs, saved datasets, live rows, and names that lead nowhere."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from llm_finetuner.data import sources
from llm_finetuner.errors import DataError

GOOD = '{"question": "how many?", "answer": "two"}\n'


def test_folders_globs_and_splits(tmp_path):
    for name in (
        "train.jsonl",
        "part/test/a.jsonl",
        "part/test/b.jsonl",
        "dev-00000-of-00002.jsonl",
        ".hidden.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("no data")

    def texts(source, **options):
        return list(sources.read(source, **options).dataset["text"])

    assert texts(tmp_path) == ["train.jsonl"]
    assert texts(tmp_path, split="test") == ["part/test/a.jsonl", "part/test/b.jsonl"]
    assert texts(str(tmp_path), split="validation") == ["dev-00000-of-00002.jsonl"]
    assert texts(tmp_path, files="**/b.jsonl") == ["part/test/b.jsonl"]
    assert texts(f"{tmp_path}/*.jsonl") == ["dev-00000-of-00002.jsonl", "train.jsonl"]
    assert texts(tmp_path / "part" / "test" / "a.jsonl") == ["part/test/a.jsonl"]
    for options, why in (
        ({"split": "other"}, "no files of the split 'other'"),
        ({"files": "no*"}, "no file matches"),
    ):
        with pytest.raises(DataError, match=why):
            sources.read(tmp_path, **options)
    with pytest.raises(DataError, match="no readable file matches"):
        sources.read(f"{tmp_path}/*.md")


def test_parquet_and_saved_datasets(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", "b", None]})
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet, row 3: column 'text' is null"):
        sources.read(tmp_path / "a.parquet")
    assert sources.read(tmp_path / "a.parquet", on_bad_row="skip").skipped == 1
    data.save_to_disk(tmp_path / "saved")
    assert list(sources.read(tmp_path / "saved", samples=2).dataset["text"]) == ["a", "b"]
    with pytest.raises(DataError, match="saved, row 3"):
        sources.read(tmp_path / "saved")
    both = datasets.DatasetDict({"train": data.select([0]), "validation": data.select([1])})
    both.save_to_disk(tmp_path / "both")
    for source in (tmp_path / "both", both):
        assert list(sources.read(source, split="dev").dataset["text"]) == ["b"]
        with pytest.raises(DataError, match="splits found: train, validation"):
            sources.read(source, split="test")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        sources.read(tmp_path / "saved")


def test_live_rows():
    rows = [{"text": "a"}, {"text": "b"}]
    assert sources.read(rows).dataset.to_list() == rows
    data = datasets.Dataset.from_list(rows)
    assert sources.read(data).dataset is data
    with pytest.raises(DataError, match="row 2: not an object"):
        sources.read([{"text": "a"}, "b"])
    with pytest.raises(DataError, match="a set cannot be read"):
        sources.read({"a"})
    prepared = datasets.Dataset.from_dict({"input_ids": [[1, 2]]})
    assert sources.read(prepared).shape is None


def test_names_that_are_not_there(tmp_path):
    (tmp_path / "train.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match="no such file") as caught:
        sources.read(tmp_path / "trian.jsonl")
    assert caught.value.hint == "did you mean train.jsonl"
    for name in ("./nothing", "~/nothing/here", "a/b/c", "nothing.csv"):
        with pytest.raises(DataError, match="no such file"):
            sources.read(name)
    for name in ("two words", "$(id)", "a\nb"):
        with pytest.raises(DataError, match="cannot be a hub name"):
            sources.read(name)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="this kind of file is not read"):
        sources.read(tmp_path / "a.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file that can be read"):
        sources.read(tmp_path / "empty")


def test_a_hub_name_without_a_hub():
    code = (
        "from llm_finetuner.data import sources\n"
        "from llm_finetuner.errors import DataError\n"
        "try: sources.read('no-such-owner/no-such-data')\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert "no local file or folder named 'no-such-owner/no-such-data', and the hub said: " in done.stdout, (
        done.stderr
    )
    assert "give a local path" in done.stdout


def test_paths_the_system_refuses():
    for name in ("./" + "x" * 5000, "~nobody-of-this-name/data.jsonl", ""):
        with pytest.raises(DataError, match="cannot be read|is empty"):
            sources.read(name)


@pytest.mark.parametrize("source", ["rows.jsonl", "*.jsonl", "."])
def test_a_split_that_is_not_there_is_refused(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    assert len(sources.read(source, split="train").dataset) == 1
    with pytest.raises(DataError, match="has no split 'test'"):
        sources.read(source, split="test")
