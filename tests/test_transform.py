"""Source and target as two texts of their own: columns, the end of the target, cuts."""

import datasets
import pytest
from label_tokenizers import bert, t5

from llm_finetuner.data import transform
from llm_finetuner.errors import DataError

PAIR = {"source": "the cat sees", "target": "dog play"}
SUMMARIES = [
    (source, target)
    for source in ("article", "document", "dialogue", "text", "report")
    for target in ("highlights", "summary", "abstract")
]


def rows_of(*found: dict):
    return datasets.Dataset.from_list(list(found))


def prepared(tokenizer, *found: dict, **options) -> list[dict]:
    return transform.prepare(rows_of(*found), tokenizer, **options).dataset.to_list()


def test_source_and_target_are_tokenised_apart_and_end_with_eos():
    tokenizer = t5()
    done = transform.prepare(rows_of(PAIR), tokenizer)
    row = done.dataset[0]
    assert row == {
        "input_ids": tokenizer("the cat sees")["input_ids"],
        "attention_mask": [1] * 4,
        "labels": tokenizer("dog play")["input_ids"],
    }
    assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.eos_token_id
    assert done.stats == {
        "examples": 1, "tokens": 4, "counted_tokens": 3, "truncated": 0, "dropped": 0, "skipped": 0,
        "mean_length": 4.0, "max_length": 4,
    }  # fmt: skip


@pytest.mark.parametrize("long", ["source", "target"])
def test_eos_is_the_last_token_of_what_was_cut(long):
    tokenizer = t5()
    line = " ".join(map(str, range(40)))
    done = transform.prepare(rows_of({**PAIR, long: line}), tokenizer, max_length=10)
    cut = done.dataset[0]["input_ids" if long == "source" else "labels"]
    assert cut == [*tokenizer(line)["input_ids"][:9], tokenizer.eos_token_id]
    assert done.stats["truncated"] == 1
    exact = transform.prepare(rows_of({**PAIR, long: line}), tokenizer, max_length=41)
    assert (
        exact.stats["truncated"] == 0
        and transform.prepare(rows_of({**PAIR, long: line}), tokenizer, max_length=40).stats["truncated"]
    )


def test_eos_that_is_in_the_data_stands_there_once():
    tokenizer = t5()
    marked = {name: f"{value}</s>" for name, value in PAIR.items()}
    assert prepared(tokenizer, marked) == prepared(tokenizer, PAIR)


def test_a_tokenizer_that_adds_no_eos_gets_it_behind_targets_alone():
    tokenizer = t5(eos=None)
    with pytest.raises(DataError, match="no end-of-text token"):
        prepared(tokenizer, PAIR)
    tokenizer.eos_token = "</s>"
    (row,) = prepared(tokenizer, PAIR)
    assert row["input_ids"] == tokenizer("the cat sees")["input_ids"]
    assert row["labels"] == [*tokenizer("dog play")["input_ids"], tokenizer.eos_token_id]


def test_an_encoder_s_tokenizer_ends_targets_with_its_separator():
    (row,) = prepared(bert(), PAIR)
    assert row["labels"] == bert()("dog play")["input_ids"] and row["labels"][-1] == bert().sep_token_id


def test_the_prefix_stands_before_every_source():
    tokenizer = t5()
    found = prepared(tokenizer, PAIR, {**PAIR, "source": "dog"}, prefix="summarize: ")
    assert [row["input_ids"] for row in found] == [
        tokenizer(f"summarize: {source}")["input_ids"] for source in ("the cat sees", "dog")
    ]
    assert found[0]["labels"] == tokenizer("dog play")["input_ids"]


@pytest.mark.parametrize(
    "given, target",
    [
        *(((source,), target) for source, target in SUMMARIES),
        (("source",), "target"),
        (("input",), "output"),
        (("instruction", "input"), "output"),
        (("instruction",), "response"),
        (("prompt",), "completion"),
        (("prompt",), "response"),
        (("question",), "answer"),
        (("question", "context"), "answer"),
    ],
)
def test_columns_are_recognised(given, target):
    row = {"id": "17", target.upper(): "dog", **{name: f"the {i}" for i, name in enumerate(given)}, "n": 3}
    shape = transform.recognise(rows_of(row))
    assert shape.columns == (*given, target.upper())
    assert all(f"'{name}'" in transform.describe(shape) for name in shape.columns)
    tokenizer = t5()
    source = "\n".join(row[name] for name in given)
    expected = {"input_ids": tokenizer(source)["input_ids"], "labels": tokenizer("dog")["input_ids"]}
    (found,) = prepared(tokenizer, row)
    assert {name: found[name] for name in expected} == expected
    again = transform.recognise(rows_of(row), list(shape.columns))
    assert again == shape


def test_a_blank_second_source_is_left_out():
    tokenizer = t5()
    found = prepared(
        tokenizer,
        {"instruction": "the cat", "input": "sees", "output": "dog"},
        {"instruction": "the cat", "input": "", "output": "dog"},
        {"instruction": "the cat", "input": None, "output": "dog"},
    )
    assert found[1] == found[2]
    assert [row["input_ids"] for row in found[:2]] == [
        tokenizer(source)["input_ids"] for source in ("the cat\nsees", "the cat")
    ]


def test_translations_go_from_the_first_language_to_the_second():
    tokenizer = t5()
    row = {"translation": {"de": "the cat", "en": "dog"}}
    shape = transform.recognise(rows_of(row))
    assert shape.columns == ("translation.de", "translation.en")
    assert prepared(tokenizer, row)[0]["labels"] == tokenizer("dog")["input_ids"]
    back = prepared(tokenizer, row, text_columns="Translation.en, translation.de")[0]
    assert back["input_ids"] == tokenizer("dog")["input_ids"]
    assert back["labels"] == tokenizer("the cat")["input_ids"]
    with pytest.raises(DataError, match="'translation' has no language 'fr'"):
        transform.recognise(rows_of(row), "translation.fr,translation.de")
    with pytest.raises(DataError, match="3 languages: de, en, fr"):
        transform.recognise(rows_of({"translation": {"de": "x", "en": "x", "fr": "x"}}))
    with pytest.raises(DataError, match=r"row 2: the target is blank: translation.en"):
        prepared(tokenizer, row, {"translation": {"de": "the cat", "en": None}})
    with pytest.raises(DataError, match="row 2: the source is blank"):
        prepared(tokenizer, row, {"translation": None})


def test_columns_can_be_named():
    row = {"title": "the", "body.text": "cat", "short": "dog", "n": 1}
    assert transform.recognise(rows_of(row), "body.text,short").columns == ("body.text", "short")
    tokenizer = t5()
    (found,) = prepared(tokenizer, row, text_columns=["title", "body.text", "short"])
    assert found["input_ids"] == tokenizer("the\ncat")["input_ids"]
    with pytest.raises(DataError, match="there is no column 'shor'; did you mean 'short'"):
        transform.recognise(rows_of(row), "title,shor")
    with pytest.raises(DataError, match="only one column is named: short"):
        transform.recognise(rows_of(row), "short")
    with pytest.raises(DataError, match="no source and target among the columns found: title"):
        transform.recognise(rows_of(row))
    with pytest.raises(DataError, match="row 1: column 'n' holds int, not text"):
        prepared(tokenizer, row, text_columns="title,n")


@pytest.mark.parametrize("target", ["", "  ", None])
def test_an_empty_target_is_refused(target):
    bad = {**PAIR, "target": target}
    with pytest.raises(DataError, match="row 2: the target is blank"):
        prepared(t5(), PAIR, bad)
    done = transform.prepare(rows_of(PAIR, bad, PAIR), t5(), on_bad_row="skip")
    assert (done.stats["examples"], done.stats["skipped"]) == (2, 1)


def test_a_target_without_a_token_is_dropped():
    done = transform.prepare(rows_of(PAIR, {**PAIR, "target": "</s>"}), t5())
    assert (done.stats["examples"], done.stats["dropped"]) == (1, 1)


def test_prepared_rows_are_taken_as_they_are():
    first = transform.prepare(rows_of(PAIR), t5())
    again = transform.prepare(first.dataset, t5(), prefix="summarize: ")
    assert again.shape is None and again.stats == first.stats and again.dataset[:] == first.dataset[:]
