"""Faults in files are caused, not imagined: every one is a DataError with file and line, and never a traceback."""

import codecs
import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from llm_finetuner.data import label_columns, sources, tagged, transform
from llm_finetuner.data.label_columns import Labelled
from llm_finetuner.data.shapes import Shape
from llm_finetuner.errors import DataError

GOOD = '{"question": "how many?", "answer": "two"}\n'
GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


def deep(levels):
    return '{"question": "q", "answer": "a", "x": ' + "[" * levels + "]" * levels + "}\n"


# file name, its bytes, the line named ("line 2" or "row 2"), a piece of the message
MALFORMED = [
    ("a.jsonl", GOOD + '{"question": "x", \n', "line 2", "not valid JSON"),
    ("a.jsonl", GOOD + '\n{"question": "cut off', "line 3", "not valid JSON"),
    ("a.jsonl", GOOD + '["a", "b"]\n', "line 2", "a JSON list"),
    ("a.jsonl", GOOD + "null\n", "line 2", "a JSON null"),
    ("a.jsonl", GOOD + "{}\n", "line 2", "empty object"),
    ("a.jsonl", GOOD.encode() + b'{"question": "\x00", "answer": "a"}\n', "line 2", "NUL byte at offset 57"),
    (
        "a.jsonl",
        GOOD.encode() + '{"question": "h\xf6h", "answer": "a"}\n'.encode("latin-1"),
        "line 2",
        "0xf6 at offset",
    ),
    ("a.jsonl", GOOD.encode("utf-16-le"), "line 1", "UTF-16 without a BOM"),
    ("a.jsonl", codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le") + b"\x41", "line 2", "not UTF-16"),
    ("a.json", codecs.BOM_UTF32_LE + GOOD.encode("utf-32-le"), "line 1", "UTF-32"),
    ("a.jsonl", GOOD + deep(3000), "line 2", "nested deeper"),
    ("a.jsonl", GOOD + deep(40), "line 2", "nested deeper"),
    ("a.jsonl", GOOD + '{"question": "\\ud800", "answer": "a"}\n', "line 2", "surrogate"),
    ("a.jsonl", GOOD + '{"question": "a", "question": "b", "answer": "a"}\n', "line 2", "twice"),
    ("a.jsonl", GOOD + '{"question": "a", "n": ' + "9" * 5000 + "}\n", "line 2", "not usable JSON"),
    ("a.jsonl", GOOD + '{"question": "only"}\n', "line 2", "column 'answer' is missing"),
    ("a.jsonl", GOOD + '{"question": null, "answer": "a"}\n', "line 2", "column 'question' is null"),
    ("a.jsonl", GOOD + '{"question": "a", "answer": 7}\n', "line 2", "column 'answer' holds int, not text"),
    ("a.jsonl", GOOD + '{"question": " ", "answer": "a"}\n', "line 2", "column 'question' is blank"),
    ("a.json", '[{"text": "a"},\n {"text": }]', "line 2", "not valid JSON"),
    ("a.json", '[{"text": "a"},\n\n 3]', "line 3", "a JSON number"),
    ("a.json", '[{"text": "a"}\n {"text": "b"}]', "line 1", "no comma"),
    ("a.json", '[{"text": "a"},\n {"text": "b"}', "line 2", "no comma or ]"),
    ("a.json", '[{"text": "a"}]\nmore', "line 2", "after the closing bracket"),
    ("a.json", '{"v": [1], "data": [{"text": "a"},\n{"text": ""}]}', "line 2", "column 'text' is blank"),
    ("a.json", '{"a": [{"text": "a"}],\n "b": [{"text": "a"}]}', "line 1", "several lists"),
    ("a.json", "[" * 200000, "line 1", "nested deeper"),
    ("a.csv", "question,answer\na,b\nonly one\n", "line 3", "1 fields where the header has 2"),
    ("a.csv", 'question,answer\n"two\nlines",b\na,b,c\n', "line 4", "3 fields where the header has 2"),
    ("a.csv", 'question,answer\na,b\nc,"never closed\nd,e\n', "line 3", "never closed"),
    ("a.csv", "text,text\na,b\n", "line 1", "column 'text' twice"),
    ("a.csv", "text,,x\na,b,c\n", "line 1", "column 2 of the header has no name"),
    ("a.tsv", "a stirred, funny film\t1\t7\nanother one\t0\t8\n", "line 1", "looks like a row of data"),
    ("a.tsv", "a stirred, funny film\t1\nanother one\n", "line 2", "1 fields where the first line has 2"),
    ("a.csv", b"text,label\na,1\nb\xff,2\n", "line 3", "not UTF-8"),
    ("a.txt", b"fine\nna\xefve\n", "line 2", "not UTF-8: byte 0xef at offset 7"),
    ("a.txt", b"fine\nbad\0\n", "line 2", "NUL byte"),
    ("a.parquet", b"PAR1 this is no parquet file", "row 1", "not valid parquet"),
]


@pytest.mark.parametrize(
    ("name", "content", "where", "why"), MALFORMED, ids=[f"{m[0]}-{m[3]}" for m in MALFORMED]
)
def test_malformed_files_name_file_and_line(tmp_path, name, content, where, why):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        sources.read(path)
    assert f"{path}, {where}: " in caught.value.what
    assert why in caught.value.what


EMPTY = [
    ("a.jsonl", ""),
    ("a.jsonl", "\n \n\n"),
    ("a.json", ""),
    ("a.json", "[]"),
    ("a.json", '{"data": []}'),
]
EMPTY += [
    ("a.csv", ""),
    ("a.csv", "text,label\n"),
    ("a.tsv", "\n\n"),
    ("a.txt", " \n"),
    ("a.jsonl", "\ufeff"),
]


@pytest.mark.parametrize(("name", "content"), EMPTY)
def test_files_without_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no usable rows"):
        sources.read(tmp_path / name)


def test_skip_counts_and_lists_bad_rows(tmp_path):
    path, listed = tmp_path / "a.jsonl", tmp_path / "out" / "bad_rows.jsonl"
    long = '{"question": "' + "x" * 500
    path.write_text(GOOD + "broken\n\n" + GOOD + '{"question": "q", "answer": null}\n' + long)
    for _ in range(2):  # the list of an earlier run is replaced
        rows = sources.read(path, on_bad_row="skip", bad_rows_path=listed)
    assert (len(rows.dataset), rows.skipped) == (2, 3)
    bad = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [entry["line"] for entry in bad] == [2, 5, 6]
    assert all(entry["file"] == str(path) for entry in bad)
    assert bad[0]["text"] == "broken" and "not valid JSON" in bad[0]["reason"]
    assert bad[1]["reason"] == "column 'answer' is null"
    assert len(bad[2]["text"]) == 200
    (tmp_path / "b.jsonl").write_text("no\nno\n")
    with pytest.raises(DataError, match="2 bad rows were left out"):
        sources.read(tmp_path / "b.jsonl", on_bad_row="skip")


@pytest.mark.parametrize(
    "encode",
    [
        lambda s: s.encode(),
        lambda s: codecs.BOM_UTF8 + s.encode(),
        lambda s: s.replace("\n", "\r\n").encode(),
        lambda s: codecs.BOM_UTF8 + s.replace("\n", "\r\n").encode(),
        lambda s: codecs.BOM_UTF16_LE + s.encode("utf-16-le"),
        lambda s: codecs.BOM_UTF16_BE + s.replace("\n", "\r\n").encode("utf-16-be"),
    ],
    ids=["utf-8", "bom", "crlf", "bom-crlf", "utf-16-le", "utf-16-be-crlf"],
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "h\u00f6h"}\n\n{"text": "two"}\n'),
        ("a.json", '[\n{"text": "h\u00f6h"},\n{"text": "two"}\n]\n'),
        ("a.json", '{"text": "h\u00f6h"}\n{"text": "two"}\n'),
        ("a.json", '{"info": {"data": [1]}, "data": [{"text": "h\u00f6h"}, {"text": "two"}], "n": 2}'),
        ("a.csv", "text\nh\u00f6h\ntwo\n"),
        ("a.tsv", "text\tn\nh\u00f6h\t1\n\ntwo\t2"),
        ("a.csv", "n;text\n1;h\u00f6h\n2;two\n"),
        ("a.txt", "h\u00f6h\n\ntwo\n"),
    ],
)
def test_encodings_and_line_ends(tmp_path, encode, name, content):
    (tmp_path / name).write_bytes(encode(content))
    assert list(sources.read(tmp_path / name).dataset["text"]) == ["h\u00f6h", "two"]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encode(content)))
    assert list(sources.read(tmp_path / f"{name}.gz").dataset["text"]) == ["h\u00f6h", "two"]


def test_csv_keeps_line_breaks_and_long_fields(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"two\nlines, ""quoted""",1\n' + "x" * 300_000 + ",2\n")
    assert list(sources.read(tmp_path / "a.csv").dataset["text"]) == ['two\nlines, "quoted"', "x" * 300_000]


def test_a_line_of_10_megabytes(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 10_000_000}) + "\n" + '{"text": "y"}\n')
    rows = sources.read(tmp_path / "a.jsonl").dataset
    assert [len(text) for text in rows["text"]] == [10_000_000, 1]


def test_gzip_bombs_and_broken_gzip(tmp_path):
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * 80 * 2**20 + b'"}\n'))
    with pytest.raises(DataError, match="unpacks to more than"):
        sources.read(tmp_path / "bomb.jsonl.gz")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"abc" * 1000)[:-12])
    (tmp_path / "none.txt.gz").write_bytes(b"not gzip")
    for name in ("cut", "none"):
        with pytest.raises(DataError, match="cannot be read"):
            sources.read(tmp_path / f"{name}.txt.gz")


def test_mixed_and_missing_columns_do_not_stop_the_reading(tmp_path):
    rows = [{"text": "a", "x": 1, "id": 1}, {"text": "b", "x": "one"}, {"text": "c", "x": [1, {"k": None}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sources.read(tmp_path / "a.jsonl").dataset
    assert found["x"][:] == ["1", "one", '[1, {"k": null}]']
    assert found["id"][:] == [1, None, None]


def test_samples_stop_early(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 150 + "broken\n")
    assert len(sources.read(path, samples=20).dataset) == 20
    with pytest.raises(DataError, match="line 151"):
        sources.read(path)
    with pytest.raises(DataError, match="samples"):
        sources.read(path, samples=0)


# rows of other tasks, the columns named, who recognises them, and what is recognised
OTHER_TASKS = [
    ([{"text": "a", "label": 1}], "text,label", label_columns, Labelled("single", ("text",), "label")),
    ([{"text": "a", "label": None}], None, label_columns, Labelled("single", ("text",), "label")),
    (
        [{"question": "q", "sentence": "s", "label": 0}, {"question": "q", "sentence": None, "label": 1}],
        None,
        label_columns,
        Labelled("single", ("question", "sentence"), "label"),
    ),
    (
        [{"tokens": ["a", "b"], "ner_tags": [0, 1], "id": " "}],
        None,
        tagged,
        Shape("tagged", ("tokens", "ner_tags")),
    ),
    (
        [{"translation": {"de": "eins", "en": "one"}}],
        "translation.de,translation.en",
        transform,
        Shape("transform", ("translation.de", "translation.en")),
    ),
]


@pytest.mark.parametrize(("rows", "named", "layout", "expected"), OTHER_TASKS)
@pytest.mark.parametrize("live", [False, True], ids=["file", "dataset"])
def test_rows_of_other_tasks_are_read_as_they_are(tmp_path, rows, named, layout, expected, live):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = datasets.Dataset.from_list(rows) if live else tmp_path / "a.jsonl"
    read = sources.read(source, text_columns=named, shapes_of_text=False)
    assert (read.dataset.to_list(), read.shape, read.skipped) == (rows, None, 0)
    assert layout.recognise(read.dataset, named) == expected
    assert len(sources.read(source, samples=1, shapes_of_text=False).dataset) == 1


def test_rows_that_are_only_read_must_be_readable(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\nbroken\n{"text": "", "label": null}\n')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        sources.read(tmp_path / "a.jsonl", shapes_of_text=False)
    rows = sources.read(tmp_path / "a.jsonl", on_bad_row="skip", shapes_of_text=False)
    assert (rows.dataset["label"][:], rows.skipped) == ([0, None], 1)


def test_nothing_heavy_is_imported_at_the_top():
    names = "sources, text, chat, shapes"
    code = (
        f"import sys; from llm_finetuner.data import {names}; print([m for m in {HEAVY} if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr


HEAVY = ["torch", "transformers", "datasets", "pyarrow", "jinja2", "numpy"]


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the gsm8k files are not beside this checkout")
def test_gsm8k():
    rows = sources.read(GSM8K)
    assert (len(rows.dataset), rows.skipped) == (7473, 0)
    assert rows.shape == Shape("question_answer", ("question", "answer"))
    assert len(sources.read(GSM8K, split="test").dataset) == 1319
