"""Texts with classes: columns recognised, names of classes, and the rows a classifier is trained on."""

import datasets
import pytest
from conftest import SHARED, WORDS
from datasets import ClassLabel, Features, List, Value
from transformers import BertTokenizerFast

from llm_finetuner.data import labelled
from llm_finetuner.data.labelled import Labelled
from llm_finetuner.errors import DataError

# columns of one row, what the user named, and what is read
COLUMNS = [
    ({"Text": "t", "label": 1}, None, "single", ("Text",), "label"),
    ({"idx": 3, "sentence": "s", "Label": "a"}, None, "single", ("sentence",), "Label"),
    ({"title": "t", "content": "c", "category": "a"}, None, "single", ("content",), "category"),
    ({"label": True, "document": "d"}, None, "single", ("document",), "label"),
    ({"review": "r", "sentiment": "good"}, None, "single", ("review",), "sentiment"),
    ({"text": "t", "stars": 4.0}, None, "single", ("text",), "stars"),
    ({"text": "t"}, None, "single", ("text",), None),
    ({"text": "t", "label": {"a": 1}}, None, "single", ("text",), None),
    ({"text": "t", "labels": [1, 0]}, None, "multi", ("text",), "labels"),
    ({"text": "t", "labels": ["a"], "rating": 3}, None, "multi", ("text",), "labels"),
    ({"sentence1": "a", "sentence2": "b", "label": 0}, None, "single", ("sentence1", "sentence2"), "label"),
    ({"hypothesis": "h", "premise": "p", "label": 0}, None, "single", ("premise", "hypothesis"), "label"),
    ({"sentence": "s", "question": "q", "label": 0}, None, "single", ("question", "sentence"), "label"),
    ({"question1": "a", "question2": "b"}, None, "single", ("question1", "question2"), None),
    ({"text1": "a", "text2": "b", "class": 0}, None, "single", ("text1", "text2"), "class"),
    ({"text": "a", "text_pair": "b", "target": 0}, None, "single", ("text", "text_pair"), "target"),
    ({"a": "x", "b": "y", "label": 0}, "B,Label", "single", ("b",), "label"),
    ({"a": "x", "b": "y", "label": 0}, ["b"], "single", ("b",), "label"),
    ({"a": "x", "b": "y", "label": 0}, ["b", "a"], "single", ("b", "a"), "label"),
    ({"a": "x", "b": "y", "grade": 0}, ["a", "b", "grade"], "single", ("a", "b"), "grade"),
    ({"a": "x", "b": "y", "verdict": "good"}, ["a", "verdict"], "single", ("a",), "verdict"),
    (
        {"premise": "x", "hypothesis": "y"},
        ["premise", "hypothesis"],
        "single",
        ("premise", "hypothesis"),
        None,
    ),
    ({"a": "x", "b": "y"}, "a", "single", ("a",), None),
]


@pytest.mark.parametrize(("row", "named", "kind", "text", "label"), COLUMNS)
def test_recognise(row, named, kind, text, label):
    layout = labelled.recognise(datasets.Dataset.from_list([row]), named)
    assert layout == Labelled(kind, text, label)
    sentence = labelled.describe(layout)
    assert all(f"'{column}'" in sentence for column in (*text, *([label] if label else [])))


@pytest.mark.parametrize(
    ("row", "named", "message"),
    [
        ({"a": "x", "b": "y", "label": 0}, None, "no column of text .*: a, b, label"),
        ({"text": "", "label": 0}, None, "no column of text"),
        ({"text": "t", "label": 0}, "texd,label", "no column 'texd'; did you mean 'text'"),
        ({"text": "t", "label": 0}, "label,text", "'label' is not named last"),
        ({"text": "t", "label": {"a": 1}}, "text,label", "'label' holds struct"),
        ({"n": 1, "label": 0}, "n,label", "'n' holds int64, no text"),
        ({"a": "t", "b": "t", "c": "t", "label": 0}, "a,b,c,label", "3 columns of text"),
    ],
)
def test_not_recognised(row, named, message):
    with pytest.raises(DataError, match=message) as caught:
        labelled.recognise(datasets.Dataset.from_list([row]), named)
    assert caught.value.hint


def rows_of(values, feature=None):
    """A dataset of one short text for each label."""
    features = Features({"text": Value("string"), "label": feature}) if feature else None
    texts = [f"the {WORDS[i % len(WORDS)]} sees" for i in range(len(values))]
    return datasets.Dataset.from_dict({"text": texts, "label": values}, features=features)


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        ([10, 2, 2, -1, None], None, ["2", "10"]),
        (["10", "2", " 9", ""], None, ["2", "9", "10"]),
        (["b", "a", "10", None], None, ["10", "a", "b"]),
        ([3.0, 1.0, float("nan"), 2.5], None, ["1", "3"]),
        ([True, True], None, ["False", "True"]),
        ([1, -1], ClassLabel(names=["neg", "pos"]), ["neg", "pos"]),
        ([[2], [0, 11], []], None, ["0", "2", "11"]),
        ([["joy", "awe"], None, ["joy"]], None, ["awe", "joy"]),
        ([[1]], List(ClassLabel(names=["z", "a"])), ["z", "a"]),
        ([[0, 1, 1], [0, 0, 0], [-1, -1, -1]], None, ["0", "1", "2"]),
        ([[0.5, 0.1], [1.0, 0.0]], None, ["0", "1"]),
        ([None, None], None, []),
    ],
)
def test_names(values, feature, expected):
    rows = rows_of(values, feature)
    assert labelled.names(rows, labelled.recognise(rows)) == expected


def test_names_of_measurements():
    rows = rows_of([0.5, 2.5])
    with pytest.raises(DataError, match="measurements, not classes"):
        labelled.names(rows, labelled.recognise(rows))


# ---- prepared rows


@pytest.fixture(scope="module")
def bert():
    """A WordPiece tokenizer with [CLS] and [SEP], which tells the two texts of a pair apart."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})


def prepare(values, bert, labels, feature=None, **options):
    return labelled.prepare(rows_of(values, feature), bert, labels=labels, **options)


def test_single(bert):
    made = prepare(["pos", "", "neg", None], bert, ["neg", "pos"])
    assert made.dataset["labels"][:] == [[1], [-100], [0], [-100]]
    row = made.dataset[0]
    assert bert.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "the", "sees", "[SEP]"]
    assert row["attention_mask"] == [1] * 5 and row["token_type_ids"] == [0] * 5
    assert made.shape == Labelled("single", ("text",), "label") and made.columns == ["text", "label"]
    assert made.stats == {
        "examples": 4, "tokens": 20, "counted_tokens": 2, "truncated": 0, "dropped": 0, "skipped": 0,
        "mean_length": 5.0, "max_length": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "feature", "labels", "expected"),
    [
        ([1, 0, -1], None, ["0", "1"], [1, 0, -100]),
        ([1, 0, -1], None, ["LABEL_0", "LABEL_1"], [1, 0, -100]),
        (["1", "LABEL_0", "-1"], None, ["LABEL_0", "LABEL_1"], [1, 0, -100]),
        ([1, 0, -1], None, ["-1", "0", "1"], [2, 1, 0]),  # a model that has such a class
        ([5.0, float("nan")], None, ["1", "5"], [1, -100]),
        ([True, False], None, ["0", "1"], [1, 0]),
        ([True, False], None, ["True", "False"], [0, 1]),
        ([0, 1, -1], ClassLabel(names=["neg", "pos"]), ["pos", "neg"], [1, 0, -100]),  # by name
        ([0, 1], ClassLabel(names=["neg", "pos"]), ["LABEL_0", "LABEL_1"], [0, 1]),
        ([None, None], None, ["a", "b"], [-100, -100]),
    ],
)
def test_class_numbers(bert, values, feature, labels, expected):
    assert prepare(values, bert, labels, feature).dataset["labels"][:] == [[number] for number in expected]


@pytest.mark.parametrize(
    ("values", "feature", "labels", "expected"),
    [
        ([["c", "a"], [], None, [""]], None, ["a", "b", "c"], [[1, 0, 1], [0, 0, 0], None, None]),
        ([[2], [0, 2], [-1]], None, ["0", "1", "2"], [[0, 0, 1], [1, 0, 1], None]),
        ([[0, 1]], List(ClassLabel(names=["z", "a"])), ["a", "z"], [[1, 1]]),
        ([[0, 1], [1, 0]], None, ["a", "b", "c"], [ValueError]),  # numbers, and the model has only names
        ([[0, 1, 1], [0, 0, 0], [-1, -1, -1]], None, ["a", "b", "c"], [[0, 1, 1], [0, 0, 0], None]),
        ([[0.25, 1.0], None, [-100.0, -100.0]], None, ["a", "b"], [[0.25, 1.0], None, None]),
        ([[True, False]], None, ["a", "b"], [[1, 0]]),
    ],
)
def test_multi(bert, values, feature, labels, expected):
    if expected == [ValueError]:
        with pytest.raises(DataError, match="row 1: label '0' in column 'label' is not known"):
            prepare(values, bert, labels, feature)
        return
    made = prepare(values, bert, labels, feature)
    full = [[-100.0] * len(labels) if row is None else row for row in expected]
    assert made.dataset["labels"][:] == full
    assert made.dataset.features["labels"].feature.dtype == "float32"
    assert made.stats["counted_tokens"] == sum(row is not None for row in expected)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (["a", "c"], ["a", "b"], "row 2: label 'c' in column 'label' is not known; known are 'a', 'b'"),
        ([0, 1], ["negative", "positive"], "row 1: label '0' .* known are 'negative', 'positive'"),
        ([1.0, 1.5], ["1"], "row 2: label 1.5 is not a whole number"),
        ([[0], [1, 1]], ["0", "1"], "row 2: a list of labels names a class twice"),
        ([["a"], ["a", None]], ["a", "b"], "row 2: a list of labels has an empty member"),
        ([[0.5, 0.5], [0.5]], ["a", "b"], "row 2: 1 values where there are 2 classes"),
        ([[0.5, 0.5], [0.5, 3.0]], ["a", "b"], "row 2: .* no values between 0 and 1"),
    ],
)
def test_bad_labels(bert, values, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare(values, bert, labels)
    assert caught.value.hint
    if "row 2" in message:
        made = prepare(values, bert, labels, on_bad_row="skip")
        assert made.stats["skipped"] == 1 and len(made.dataset) == 1


def test_bad_texts(bert):
    rows = datasets.Dataset.from_dict({"text": ["the cat", " ", None], "label": [0, 1, 1]})
    with pytest.raises(DataError, match="row 2: column 'text' is blank"):
        labelled.prepare(rows, bert, labels=["0", "1"])
    with pytest.raises(DataError, match="row 1: column 'text' is null"):
        labelled.prepare(rows.select([2, 0]), bert, labels=["0", "1"])
    made = labelled.prepare(rows, bert, labels=["0", "1"], on_bad_row="skip")
    assert len(made.dataset) == 1 and made.stats["skipped"] == 2
    with pytest.raises(DataError, match="2 bad rows left out"):
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
        labelled.prepare(rows, bert, labels=["0"], on_bad_row="skip")


def test_pairs_and_truncation(bert):
    rows = datasets.Dataset.from_dict(
        {"premise": ["the cat", "the cat"], "hypothesis": ["a dog sees", "a dog " * 20], "label": [0, 1]}
    )
    made = labelled.prepare(rows, bert, labels=["0", "1"], max_length=10)
    short, long = made.dataset
    assert bert.decode(short["input_ids"]) == "[CLS] the cat [SEP] a dog sees [SEP]"
    assert short["token_type_ids"] == [0] * 4 + [1] * 4
    assert (
        bert.decode(long["input_ids"]) == "[CLS] the cat [SEP] a dog a dog a [SEP]"
    )  # the longer one is cut
    assert made.stats["truncated"] == 1 and made.stats["max_length"] == 10
    fits = labelled.prepare(rows, bert, labels=["0", "1"], max_length=8)  # the first fills it without a cut
    assert fits.stats["truncated"] == 1 and fits.stats["tokens"] == 16
    with pytest.raises(DataError, match="max_length is 4"):
        labelled.prepare(rows, bert, labels=["0", "1"], max_length=4)


def test_unlabelled_text(bert):
    rows = datasets.Dataset.from_dict({"text": ["the cat", "a dog"]})
    made = labelled.prepare(rows, bert, labels=["a", "b"])
    assert made.dataset["labels"][:] == [[-100]] * 2 and made.stats["counted_tokens"] == 0
    assert made.stats["examples"] == 2 and made.columns == ["text"]
    several = labelled.prepare(rows, bert, labels=["a", "b"], kind="multi").dataset
    assert several["labels"][:] == [[-100.0, -100.0]] * 2
    one = prepare([1, -1], bert, ["0", "1", "2"], kind="multi").dataset  # one class a row, for such a model
    assert one["labels"][:] == [[0, 1, 0], [-100] * 3]
    assert datasets.concatenate_datasets([several, prepare([[1]], bert, ["0", "1"]).dataset]).num_rows == 3
    with pytest.raises(DataError, match="holds lists of labels, and this model gives each text one class"):
        prepare([["a"]], bert, ["a"], kind="single")


def test_tokenizer_without_segments(tokenizer, bert):
    plain = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, model_input_names=["input_ids", "attention_mask"]
    )
    made = prepare([0, 1], plain, ["0", "1"])
    assert made.dataset.column_names == ["input_ids", "attention_mask", "texts", "labels"]
    assert plain.decode(made.dataset[0]["input_ids"]) == "the the sees"


def test_texts_are_kept_in_arrow_and_a_column_of_that_name_may_be_something_else(bert):
    import datasets
    import pyarrow as pa

    made = labelled.prepare(
        datasets.Dataset.from_dict({"sentence1": ["the cat"], "sentence2": ["x ."]}), bert, labels=["a", "b"]
    )
    assert made.dataset["texts"][0] == ["the cat", "x ."]
    assert made.dataset.features.arrow_schema.field("texts").type.value_type == pa.string()
    for other in ("the cat", 3, [1, 2]):
        ready = datasets.Dataset.from_dict({"input_ids": [[2, 5, 3]], "labels": [0], "texts": [other]})
        assert "texts" not in labelled.prepare(ready, bert, labels=["a", "b"]).dataset.column_names


def test_ready_rows(bert):
    for values, labels in ([0, 1, -1], ["0", "1"]), ([[0], [], [0, 1]], ["0", "1"]):
        made = prepare(values, bert, labels)
        again = labelled.prepare(made.dataset, bert, labels=labels)
        assert again.dataset.to_list() == made.dataset.to_list() and again.stats == made.stats
        assert again.dataset.features == made.dataset.features and again.shape is None
    ids = [[3, 4], [5]]
    plain = datasets.Dataset.from_dict({"input_ids": ids, "label": [1, None]})
    made = labelled.prepare(plain, bert, labels=["a", "b"]).dataset
    assert made.to_list()[1] == {"input_ids": [5], "attention_mask": [1], "labels": [-100]}
    for extra, message in [
        ({"labels": [[1], [2]]}, r"row 2: labels \[2\] are no class number below 2"),
        ({"labels": [[1, 0], [0]]}, "row 2: 1 values where there are 2 classes"),
        ({"attention_mask": [[1, 1], [1, 1]]}, "row 2: lengths differ: 1 input_ids, 2 attention_mask"),
    ]:
        bad = datasets.Dataset.from_dict({"input_ids": ids, **extra})
        with pytest.raises(DataError, match=message):
            labelled.prepare(bad, bert, labels=["a", "b"])
        assert labelled.prepare(bad, bert, labels=["a", "b"], on_bad_row="skip").stats["skipped"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_row": "drop"}, "on_bad_row is 'drop'"),
        ({"kind": "both"}, "kind of labels is 'both'"),
        ({"labels": []}, "names of the classes"),
        ({"labels": ["a", "a"]}, "names of the classes"),
    ],
)
def test_wrong_options(bert, options, message):
    with pytest.raises(DataError, match=message):
        labelled.prepare(rows_of([0]), bert, **{"labels": ["0"], **options})
    with pytest.raises(DataError, match="no rows"):
        labelled.prepare(rows_of([0]).select([]), bert, labels=["0"])


def test_real_sentiment(bert):
    path = SHARED / "data" / "sst2" / "dev.tsv"
    if not path.is_file():
        pytest.skip("real data not at hand: ../shared/data/sst2")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    rows = datasets.Dataset.from_dict({"sentence": [a for a, _ in lines], "label": [b for _, b in lines]})
    layout = labelled.recognise(rows)
    assert layout == Labelled("single", ("sentence",), "label")
    assert labelled.names(rows, layout) == ["0", "1"]
    made = labelled.prepare(rows, bert, labels=["0", "1"], max_length=64)
    assert made.stats["examples"] == made.stats["counted_tokens"] == 872
    assert made.dataset["labels"][:] == [[int(label)] for _, label in lines]
    assert sum(label for (label,) in made.dataset["labels"]) == 444
