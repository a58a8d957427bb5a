"""TSV files as they are published: without a header, and with quotes that are characters of the text."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from llm_finetuner.assembly import only
from llm_finetuner.data import labelled, sources
from llm_finetuner.errors import DataError

SST2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2"


@pytest.fixture
def read(tmp_path):
    """Text of a TSV file -> its rows."""

    def of(content: str, **options) -> list[dict]:
        (tmp_path / "a.tsv").write_text(content, encoding="utf-8", newline="")
        return sources.read(tmp_path / "a.tsv", **options).dataset.to_list()

    return of


def rows(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


# ---- with a header or without


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a fine film\t1\nmeh\t0\n", rows(("a fine film", 1), ("meh", 0))),
        ("only one line\t-1", rows(("only one line", -1))),
        (
            "\n\na fine film\tpos\r\nmeh\tneg\r\nwow\tpos\r\n",
            rows(("a fine film", "pos"), ("meh", "neg"), ("wow", "pos")),
        ),
        ("a fine film\t1\nmeh\tunclear\n", rows(("a fine film", "1"), ("meh", "unclear"))),  # types are mixed
        ("a fine film\t1\nmeh\t\n", rows(("a fine film", "1"), ("meh", ""))),
        ("\ufeffx" + "x" * 300 + "\t3\n", rows(("x" * 301, 3))),
    ],
)
def test_a_text_and_its_label_need_no_header(read, content, expected):
    assert read(content) == expected


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("sentence\tlabel\na fine film\t1\n", ["sentence", "label"]),
        ("review\tverdict\na fine film\tgood\nmeh\tbad\n", ["review", "verdict"]),
        ("text\ttoxic\nyou fool\ttoxic\nhello\tnone\n", ["text", "toxic"]),  # a label called like its column
        ("review\tclass\nwhat school\tclass\n", ["review", "class"]),
        (
            "review\tverdict\nmeh\tbad\nreview\tverdict\nfine\tgood\n",
            ["review", "verdict"],
        ),  # two files in one
    ],
)
def test_a_header_stays_a_header(read, content, columns):
    found = read(content)
    assert list(found[0]) == columns and len(found) == content.count("\n") - 1


@pytest.mark.parametrize(
    "content", ["1\t2\n3\t4\n", "a fine film\t0.5\nmeh\t0.25\n", "a\t1\t2\n", "text\t1\na\t2\n"]
)
def test_other_first_lines_with_numbers_are_still_refused(read, content):
    with pytest.raises(DataError, match="line 1: looks like a row of data"):
        read(content)


def test_rows_of_a_file_without_header_are_chosen_and_counted(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(
        gzip.compress(b"".join(b"film %d\t%d\n" % (i, i % 3) for i in range(300)) + b"cut off\n")
    )
    first = sources.read(path, samples=4, shapes_of_text=False).dataset
    assert first.to_list() == rows(("film 0", 0), ("film 1", 1), ("film 2", 2), ("film 3", 0))
    assert only(first, {"label": 0}, "a.tsv")["text"][:] == ["film 0", "film 3"]
    with pytest.raises(DataError, match="line 301: 1 fields where the first line has 2"):
        sources.read(path)
    whole = sources.read(path, on_bad_row="skip", shapes_of_text=False)
    assert (len(whole.dataset), whole.skipped) == (300, 1)
    assert labelled.names(whole.dataset, labelled.recognise(whole.dataset)) == ["0", "1", "2"]


@pytest.mark.skipif(not SST2.is_dir(), reason="the sst2 files are not beside this checkout")
@pytest.mark.parametrize("split", ["train", "dev"])
def test_sst2(split):
    lines = (SST2 / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    expected = rows(*((text, int(label)) for text, label in (line.split("\t") for line in lines)))
    found = sources.read(SST2 / f"{split}.tsv", shapes_of_text=False).dataset
    assert found.to_list() == expected
    assert sources.read(SST2, split=split, samples=7).dataset.to_list() == expected[:7]
    layout = labelled.recognise(found, "text,label")
    assert labelled.names(found, layout) == ["0", "1"]


# ---- quotes


def plain(*texts):
    return "text\tlabel\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts))


@pytest.mark.parametrize(
    "texts",
    [
        ['"it is never closed', "b", "c"],
        ["a", '"opened here', 'closed "', "d"],  # read as CSV, these two are one field
        ['"Yes," he said', "b", '"Why not?"', 'and "no" then'],
        ['a "word" in the middle', "b"],
        ['"', "b", '""" three'],
    ],
)
def test_quotes_are_characters_of_the_text(read, texts):
    assert [row["text"] for row in read(plain(*texts))] == texts


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "texts",
    [
        ['she said "no"', "b", '"all of it"'],
        ["two\nlines", "b"],  # what is quoted is one field of two lines
        ["a\ttab", "b", '"\n"\n'],
    ],
)
def test_quotes_that_a_program_wrote_are_taken_off(read, quoting, end, texts):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *((text, i) for i, text in enumerate(texts))])
    assert [row["text"] for row in read(stream.getvalue())] == texts


def test_quoted_files_need_no_header_either(read):
    content = '"a ""fine"" film"\t"1"\n"two\nlines"\t"0"\n'
    assert read(content) == rows(('a "fine" film', 1), ("two\nlines", 0))


def test_a_broken_quote_in_a_quoted_file_is_named(read):
    content = '"text"\t"label"\n"a"\t"1"\n"never closed\t2\n'
    with pytest.raises(DataError, match="line 3: not valid CSV: a quote that is opened here is never closed"):
        read(content)


def test_a_lone_quote_before_a_very_long_text(read):
    texts = ['"' + "x" * 3_000_000, "b"]
    assert [row["text"] for row in read(plain(*texts))] == texts
