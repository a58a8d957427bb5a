"""What is hidden of a text: the same for the same row, in the right shares, and with the text as its labels."""

import random

import datasets
import numpy as np
import pytest
from label_tokenizers import bert, t5

from llm_finetuner.data import masked, rows
from llm_finetuner.errors import DataError


def texts(count: int, seed: int = 0, most: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(str(draw.randrange(300)) for _ in range(draw.randint(1, most))) for _ in range(count)]


def rows_of(lines: list[str]):
    return datasets.Dataset.from_dict({"text": lines})


def prepared(lines: list[str], **options) -> list[dict]:
    return masked.prepare(rows_of(lines), bert(), **options).dataset.to_list()


def original(row: dict) -> list[int]:
    return [
        shown if label == -100 else label
        for shown, label in zip(row["input_ids"], row["labels"], strict=True)
    ]


def test_the_text_comes_back_and_special_tokens_stay():
    tokenizer, lines = bert(), texts(60)
    for line, row in zip(lines, prepared(lines), strict=True):
        assert original(row) == tokenizer(line)["input_ids"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        assert row["labels"][0] == row["labels"][-1] == -100
        chosen = sum(label != -100 for label in row["labels"])
        exact = 0.15 * (len(row["labels"]) - 2)
        assert chosen in (max(1, int(exact)), max(1, int(exact) + 1))


def test_a_row_is_masked_by_the_seed_and_its_number_alone(monkeypatch):
    lines = texts(30)
    whole = prepared(lines)
    assert prepared(lines) == whole
    assert prepared(lines[:11]) == whole[:11]
    monkeypatch.setattr(rows, "BATCH", 7)
    assert prepared(lines) == whole
    others = texts(10, seed=5) + lines[10:]
    assert prepared(others)[10:] == whole[10:]
    gap = [*lines[:3], "  ", *lines[4:]]  # a bad row keeps its number
    assert prepared(gap, on_bad_row="skip") == whole[:3] + whole[4:]
    assert prepared(lines, seed=1) != whole
    same = prepared([lines[0]] * 8)
    assert len({tuple(row["input_ids"]) for row in same}) > 1


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_shares_are_right_within_five_sigma(share):
    tokenizer = bert()
    lines = [line + " 1 2 3 4 5 6 7" for line in texts(1500, most=30)]
    found = prepared(lines, share=share)
    labels = np.concatenate([row["labels"] for row in found])
    shown = np.concatenate([row["input_ids"] for row in found])
    chosen = labels != -100
    places = len(labels) - 2 * len(found)
    # the drawn fraction of a token has a variance of at most 1/4 in a row
    assert abs(chosen.sum() - share * places) < 5 * np.sqrt(len(found) / 4)

    count = chosen.sum()
    pool = len(tokenizer.get_vocab()) - 5
    hidden = shown[chosen] == tokenizer.mask_token_id
    stayed = shown[chosen] == labels[chosen]
    swapped = shown[chosen & (shown != labels) & (shown != tokenizer.mask_token_id)]
    for got, wanted in (
        (hidden.sum(), 0.8), (stayed.sum(), 0.1 + 0.1 / pool), (len(swapped), 0.1 * (1 - 1 / pool))
    ):  # fmt: skip
        assert abs(got - wanted * count) < 5 * np.sqrt(wanted * (1 - wanted) * count)
    assert set(swapped).isdisjoint(tokenizer.all_special_ids) and len(set(swapped)) > pool / 2
    assert set(labels[chosen]).isdisjoint(tokenizer.all_special_ids)


def test_every_place_is_chosen_equally_often():
    found = prepared(["1 2 3 4 5 6 7 8 9 10"] * 2000, share=0.3)
    often = np.sum([np.array(row["labels"])[1:-1] != -100 for row in found], axis=0)
    assert np.all(abs(often - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7))


def test_special_tokens_in_a_text_are_never_chosen():
    tokenizer = bert()
    row = prepared(["[CLS] the [MASK] cat [SEP] qqqq"], share=1.0)[0]
    assert tokenizer.convert_ids_to_tokens(original(row)) == [
        "[CLS]", "[CLS]", "the", "[MASK]", "cat", "[SEP]", "[UNK]", "[SEP]",
    ]  # fmt: skip
    assert [label != -100 for label in row["labels"]] == [i in (2, 4) for i in range(8)]


def test_long_texts_become_blocks_and_lose_nothing():
    tokenizer = bert()
    line = " ".join(map(str, range(100)))
    done = masked.prepare(rows_of([line, "the cat"]), tokenizer, max_length=16)
    *blocks, last = done.dataset.to_list()
    assert len(blocks) == 8 and all(len(row["input_ids"]) <= 16 for row in blocks)
    assert all(any(label != -100 for label in row["labels"]) for row in blocks)
    joined = [token for row in blocks for token in original(row)[1:-1]]
    assert joined == tokenizer(line, add_special_tokens=False)["input_ids"]
    assert all((original(row)[0], original(row)[-1]) == (2, 3) for row in blocks)
    assert original(last) == tokenizer("the cat")["input_ids"]
    assert done.stats["examples"] == 9 and done.stats["truncated"] == 0
    counted = sum(label != -100 for row in done.dataset for label in row["labels"])
    assert done.stats["counted_tokens"] == counted


def test_rows_without_a_plain_token_are_dropped():
    done = masked.prepare(rows_of(["[MASK] [SEP]", "the cat", "\u200b"]), bert(), on_bad_row="skip")
    assert (done.stats["examples"], done.stats["dropped"]) == (1, 2)
    with pytest.raises(DataError, match="nothing to learn: 1 rows"):
        prepared(["[MASK]"])


def test_all_text_of_a_row_is_read():
    tokenizer = bert()
    pair = datasets.Dataset.from_list([{"first": "the cat", "second": "sees dog", "label": 1}])
    done = masked.prepare(pair, tokenizer, text_columns="first,second")
    assert original(done.dataset[0]) == tokenizer("the cat sees dog")["input_ids"]
    assert done.columns == ["first", "second"]
    assert "'first' and 'second'" in masked.describe(done.shape)
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sees dog"}]
    chat = masked.prepare(datasets.Dataset.from_list([{"messages": talk}]), tokenizer)
    assert original(chat.dataset[0]) == tokenizer("the cat sees dog")["input_ids"]


def test_bad_rows_are_named_by_number():
    with pytest.raises(DataError, match="row 2: column 'text' is blank"):
        prepared(["the cat", " "])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"share": 0.0}, "share is 0.0"), ({"share": 1.5}, "share is 1.5"),
        ({"max_length": 3}, "max_length is 3"), ({"on_bad_row": "no"}, "on_bad_row is 'no'"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        prepared(["the cat"], **options)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(DataError, match="this tokenizer has none") as error:
        masked.prepare(rows_of(["the cat"]), t5())
    assert "causal_lm" in error.value.hint and "seq2seq_lm" in error.value.hint


def test_prepared_rows_are_taken_as_they_are():
    first = masked.prepare(rows_of(texts(5)), bert())
    again = masked.prepare(first.dataset, bert(), seed=9)
    assert again.shape is None and again.stats == first.stats and again.dataset[:] == first.dataset[:]
    with pytest.raises(DataError, match="rows with input_ids and no labels"):
        masked.prepare(first.dataset.remove_columns("labels"), bert())
