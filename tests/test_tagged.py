"""Tags at the first token of each word, against rows written by hand."""

import datasets
import pytest
from label_tokenizers import bert

from llm_finetuner.data import rows, tagged
from llm_finetuner.errors import DataError

LABELS = ["O", "PER", "LOC"]
ROW = {"tokens": ["the", "playing", "cat", "Berlin"], "ner_tags": ["O", "PER", None, "LOC"]}


def rows_of(*found, tags: str = "ner_tags"):
    return datasets.Dataset.from_list([{"tokens": words, tags: given} for words, given in found])


def prepare(*found, labels=LABELS, **options):
    return tagged.prepare(rows_of(*found), bert(), labels=labels, **options)


def pieces(row: dict) -> list[str]:
    return bert().convert_ids_to_tokens(row["input_ids"])


def test_the_tag_stands_at_the_first_token_of_its_word():
    done = prepare(tuple(ROW.values()))
    row = done.dataset[0]
    assert pieces(row) == ["[CLS]", "the", "play", "##ing", "cat", "ber", "##lin", "[SEP]"]
    assert row["labels"] == [-100, 0, 1, -100, -100, 2, -100, -100]
    assert row["attention_mask"] == [1] * 8
    assert done.shape.columns == ("tokens", "ner_tags") == tuple(done.columns)
    assert done.stats == {
        "examples": 1, "tokens": 8, "counted_tokens": 3, "truncated": 0, "dropped": 0, "skipped": 0,
        "mean_length": 8.0, "max_length": 8,
    }  # fmt: skip


def test_two_words_alike_in_a_row_are_two_words():
    row = prepare((["playing", "playing"], ["PER", "LOC"])).dataset[0]
    assert row["labels"] == [-100, 1, -100, 2, -100, -100]


@pytest.mark.parametrize(
    "limit, labels",
    [(4, [0, 1]), (5, [0, 1, -100]), (7, [0, 1, -100, -100, 2]), (8, [0, 1, -100, -100, 2, -100])],
)
def test_long_rows_are_cut_and_keep_their_special_tokens(limit, labels):
    done = prepare(tuple(ROW.values()), max_length=limit)
    row = done.dataset[0]
    assert row["labels"] == [-100, *labels, -100] and len(row["input_ids"]) == limit
    assert pieces(row)[0] == "[CLS]" and pieces(row)[-1] == "[SEP]"
    assert done.stats["truncated"] == (limit < 8)
    assert done.stats["counted_tokens"] == sum(label != -100 for label in labels)


def test_numbers_without_names_are_those_of_labels_without_names():
    dataset = rows_of((["the", "cat", "dog", "x"], [2, -1, -100, 0]))
    assert tagged.names(dataset, tagged.recognise(dataset)) == ["0", "1", "2"]
    for labels in (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]):
        made = tagged.prepare(dataset, bert(), labels=labels).dataset[0]
        assert made["labels"] == [-100, 2, -100, -100, 0, -100]
    with pytest.raises(DataError, match=r"the tag 2 of word 1 \('the'\).*\n.*data.label_names"):
        prepare((["the", "cat", "dog", "x"], [2, -1, -100, 0]))  # nobody said which of the names is 2


def test_class_label_numbers_are_read_by_name():
    names = ["LOC", "O", "PER"]
    kinds = datasets.Features(
        {
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    dataset = datasets.Dataset.from_dict(
        {"words": [["the", "cat", "berlin"]], "tags": [["O", "PER", "LOC"]]}, features=kinds
    )
    assert dataset[0]["tags"] == [1, 2, 0]
    shape = tagged.recognise(dataset)
    assert tagged.names(dataset, shape) == names
    same = tagged.prepare(dataset, bert(), labels=names).dataset[0]["labels"]
    assert same == [-100, 1, 2, 0, -100, -100]
    other = tagged.prepare(dataset, bert(), labels=LABELS).dataset[0]["labels"]  # another order of labels
    assert other == [-100, 0, 1, 2, -100, -100]
    with pytest.raises(DataError, match=r"row 1: the tag 2 of word 2 \('cat'\)"):
        tagged.prepare(dataset, bert(), labels=["O", "LOC"])


def test_names_of_text_tags_begin_with_outside():
    dataset = rows_of((["the", "cat"], ["PER", "O"]), (["x", "dog"], ["LOC", None]))
    assert tagged.names(dataset, tagged.recognise(dataset)) == ["O", "LOC", "PER"]


@pytest.mark.parametrize(
    "words, tags, message",
    [
        (["the", "cat"], ["O"], "row 2: 2 words in 'tokens', 1 tags"),
        (
            ["the"],
            ["ORG"],
            r"row 2: the tag 'ORG' of word 1 \('the'\) is not among the 3 labels: O, PER, LOC",
        ),
        (["the", None], ["O", "O"], "row 2: word 2 is None, not text"),
        (None, ["O"], "row 2: column 'tokens' is null"),
        (["the"], None, "row 2: column 'ner_tags' is null"),
    ],
)
def test_bad_rows_stop_by_number_or_are_left_out(words, tags, message):
    good = (["cat"], ["O"])
    with pytest.raises(DataError, match=message):
        prepare(good, (words, tags), good)
    done = prepare(good, (words, tags), good, on_bad_row="skip")
    assert (done.stats["examples"], done.stats["skipped"]) == (2, 1)


def test_numbers_outside_the_labels_are_refused():
    for bad in (3, -2):
        with pytest.raises(DataError, match=f"row 1: the tag {bad} of word 1"):
            prepare((["the"], [bad]))


def test_rows_without_a_tag_are_dropped():
    done = prepare(([], []), (["the"], ["O"]), (["cat"], [None]))
    assert (done.stats["examples"], done.stats["dropped"]) == (1, 2)
    with pytest.raises(DataError, match="nothing to learn: 1 rows without a counted label"):
        prepare((["the", "cat", "dog"], [None, None, "O"]), max_length=4)  # the one tag is cut off


@pytest.mark.parametrize("words", tagged.WORDS)
@pytest.mark.parametrize("tags", tagged.TAGS)
def test_columns_are_recognised(words, tags):
    dataset = datasets.Dataset.from_list([{"id": "a", words.upper(): ["the"], tags: ["O"]}])
    shape = tagged.recognise(dataset)
    assert shape.columns == (words.upper(), tags)
    assert f"'{words.upper()}'" in tagged.describe(shape) and f"'{tags}'" in tagged.describe(shape)


def test_columns_can_be_named():
    dataset = datasets.Dataset.from_list([{"forms": ["the"], "heads": ["O"], "ner_tags": ["O"], "n": 1}])
    assert tagged.recognise(dataset, "forms,heads").columns == ("forms", "heads")
    with pytest.raises(DataError, match="there is no column 'form'; did you mean 'forms'"):
        tagged.recognise(dataset, ["form", "heads"])
    with pytest.raises(DataError, match="column 'n' holds no list of tags"):
        tagged.recognise(dataset, ["forms", "n"])
    with pytest.raises(DataError, match=r"1 column\(s\) named"):
        tagged.recognise(dataset, "forms")
    with pytest.raises(DataError, match="no words with their tags among the columns found: forms"):
        tagged.recognise(dataset)


def test_a_batch_of_bad_rows_alone_is_no_end(monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 1)
    done = prepare((["the"], ["O", "O"]), (["cat"], ["O"]), on_bad_row="skip")
    assert done.stats["examples"] == 1


def test_a_slow_tokenizer_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(DataError, match="CanineTokenizer does not say which word"):
        tagged.prepare(rows_of((["the"], ["O"])), CanineTokenizer(), labels=LABELS)


def test_prepared_rows_are_taken_as_they_are():
    first = prepare(tuple(ROW.values()))
    again = tagged.prepare(first.dataset, bert(), labels=LABELS)
    assert again.shape is None and again.stats == first.stats and again.dataset[:] == first.dataset[:]
    with pytest.raises(DataError, match="lengths differ: 2 input_ids, 2 attention_mask, 1 labels"):
        tagged.prepare(
            datasets.Dataset.from_list([{"input_ids": [1, 2], "labels": [1]}]), bert(), labels=LABELS
        )
