"""Prepared ids and labels against rows put together by hand, token by token."""

from pathlib import Path

import data_tokenizer
import datasets
import pytest
from data_tokenizer import CHATML, TALK, built, ids, prepared, rows_of

from llm_finetuner.data import sources, text
from llm_finetuner.errors import DataError

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
PAIR = {"prompt": "Question: how many?", "completion": " seven and two"}


@pytest.mark.parametrize("pad", [None, "<eos>", "<pad>"])
def test_completions_only_and_eos_counts_even_as_padding(pad):
    tokenizer = data_tokenizer.build(pad=pad)
    eos = tokenizer.eos_token_id
    expected = built(tokenizer, (PAIR["prompt"], False), (PAIR["completion"], True), (eos, True))
    assert prepared(tokenizer, PAIR) == [expected]
    assert expected[1][-1] == eos
    whole = built(tokenizer, (PAIR["prompt"], True), (PAIR["completion"], True), (eos, True))
    assert prepared(tokenizer, PAIR, loss_on="all") == [whole]


def test_bos_stands_in_front_once():
    adds = data_tokenizer.build(bos="<bos>", adds_bos=True)
    bos, eos = adds.bos_token_id, adds.eos_token_id
    pieces = ((PAIR["prompt"], False), (PAIR["completion"], True), (eos, True))
    assert prepared(adds, PAIR) == [built(adds, (bos, False), *pieces)]
    assert prepared(adds, {**PAIR, "prompt": "<bos>" + PAIR["prompt"]}) == [
        built(adds, (bos, False), *pieces)
    ]
    plain = built(adds, (bos, True), ("the fox", True), (eos, True))
    assert prepared(adds, {"text": "the fox"}) == [plain]
    knows = data_tokenizer.build(bos="<bos>")  # it has one, but does not put it in front by itself
    assert prepared(knows, PAIR) == [built(knows, *pieces)]
    assert text.prompt_ids("hello", adds) == text.prompt_ids("<bos>hello", adds) == [bos, *ids(adds, "hello")]


def test_without_eos_nothing_is_added():
    tokenizer = data_tokenizer.build(eos=None)
    assert prepared(tokenizer, {"text": "the fox"}) == [built(tokenizer, ("the fox", True))]


@pytest.mark.parametrize("limit", [4, 5, 6, 7, 16, 1000])
def test_blocks_lose_no_token(limit):
    tokenizer = data_tokenizer.build(bos="<bos>", adds_bos=True)
    for words in range(1, 30):
        line = "the quick fox " * words
        blocks = prepared(tokenizer, {"text": line}, max_length=limit)
        joined = [token for block, _ in blocks for token in block]
        assert joined == [tokenizer.bos_token_id, *ids(tokenizer, line), tokenizer.eos_token_id]
        assert all(labels == block and 2 <= len(block) <= limit for block, labels in blocks)
        assert all(len(block) >= limit - 1 for block, _ in blocks[:-1])


def test_the_prompt_is_cut_first_from_the_left_and_then_the_completion():
    tokenizer = data_tokenizer.build(bos="<bos>", adds_bos=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prompt, said = ids(tokenizer, PAIR["prompt"]), ids(tokenizer, PAIR["completion"])
    full = 1 + len(prompt) + len(said) + 1
    assert len(said) > 4
    for limit in range(4, full + 1):
        (tokens, labels), *_ = prepared(tokenizer, PAIR, max_length=limit)
        room = limit - 1 - len(said) - 1  # what is left for the prompt
        if room >= 0:
            kept = prompt[len(prompt) - room :]
            assert tokens == [bos, *kept, *said, eos]
            assert labels == [-100] * (1 + room) + [*said, eos]
        else:
            cut = [*said, eos][: limit - 1]
            assert tokens == [bos, *cut] and labels == [-100, *cut]
            assert eos not in labels
        assert len(tokens) == limit
    stats = text.prepare(rows_of(PAIR, PAIR), tokenizer, max_length=full - 1).stats
    assert stats["truncated"] == 2
    assert text.prepare(rows_of(PAIR), tokenizer, max_length=full).stats["truncated"] == 0


def test_stats_count_what_predictions_meet():
    tokenizer = data_tokenizer.build()
    said = ids(tokenizer, PAIR["completion"])
    result = text.prepare(rows_of(PAIR, PAIR), tokenizer)
    length = len(ids(tokenizer, PAIR["prompt"])) + len(said) + 1
    assert result.columns == ["prompt", "completion"]
    assert result.stats == {
        "examples": 2,
        "tokens": 2 * length,
        "counted_tokens": 2 * (len(said) + 1),
        "truncated": 0,
        "dropped": 0,
        "skipped": 0,
        "mean_length": length,
        "max_length": length,
    }
    # The first token of a text has nothing before it: no prediction meets its label.
    assert text.prepare(rows_of({"text": "fox"}), tokenizer).stats["counted_tokens"] == len(
        ids(tokenizer, "fox")
    )


def test_rows_without_anything_to_learn():
    tokenizer = data_tokenizer.build(template=CHATML)
    silent = {"messages": TALK[:1]}
    assert text.prepare(rows_of(silent, {"messages": TALK}), tokenizer).stats["dropped"] == 1
    with pytest.raises(DataError, match="nothing to learn: 1 rows without a counted token"):
        prepared(tokenizer, silent)
    assert len(prepared(tokenizer, silent, loss_on="all")) == 1
    with pytest.raises(DataError, match="row 2: column 'completion' is blank"):
        prepared(tokenizer, PAIR, {**PAIR, "completion": " "})
    assert (
        text.prepare(rows_of(PAIR, {**PAIR, "completion": ""}), tokenizer, on_bad_row="skip").stats["skipped"]
        == 1
    )
    for options in (
        {"max_length": 3},
        {"loss_on": "prompt"},
        {"on_bad_row": "ignore"},
        {"text_columns": ["x"]},
    ):
        with pytest.raises(DataError):
            prepared(tokenizer, PAIR, **options)
    with pytest.raises(DataError, match="no rows"):
        text.prepare(rows_of(PAIR).select([]), tokenizer)


def test_rows_that_come_with_ids():
    tokenizer = data_tokenizer.build()
    data = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]], "extra": ["a", "b"]})
    result = text.prepare(data, tokenizer)
    assert result.shape is None and result.stats["dropped"] == 1
    assert result.dataset.to_list() == [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [5, 6, 7]}
    ]
    masked = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7, 0]], "attention_mask": [[1, 1, 1, 0]]})
    assert text.prepare(masked, tokenizer).dataset["labels"][:] == [[5, 6, 7, -100]]
    uneven = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[5]]})
    with pytest.raises(DataError, match="row 1: lengths differ"):
        text.prepare(uneven, tokenizer)
    with pytest.raises(DataError, match="row 1: input_ids is no list"):
        text.prepare(datasets.Dataset.from_dict({"input_ids": ["text"]}), tokenizer)
    again = text.prepare(text.prepare(rows_of(PAIR), tokenizer).dataset, tokenizer)
    assert again.dataset.to_list() == text.prepare(rows_of(PAIR), tokenizer).dataset.to_list()


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_preview_shows_what_is_trained(loss_on):
    tokenizer = data_tokenizer.build(bos="<bos>", adds_bos=True)
    data = rows_of({**PAIR, "prompt": "h\u00f6w \u2014 many? \U0001f98a"}, PAIR)
    trained = text.prepare(data, tokenizer, loss_on=loss_on).dataset
    for row, shown in zip(trained, text.preview(data, tokenizer, loss_on=loss_on), strict=True):
        assert "".join(piece for piece, _ in shown) == tokenizer.decode(row["input_ids"])
        counted = [
            token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
        ]
        assert "".join(piece for piece, flag in shown if flag) == tokenizer.decode(counted)
        assert all(a[1] != b[1] for a, b in zip(shown, shown[1:], strict=False))


def test_split_is_deterministic_and_never_empty():
    data = rows_of(*({"text": str(i)} for i in range(20)))
    train, held = text.split(data, 0.1, seed=3)
    assert (len(train), len(held)) == (18, 2)
    assert sorted([*train["text"], *held["text"]]) == sorted(data["text"])
    assert text.split(data, 0.1, seed=3)[1]["text"][:] == held["text"][:]
    assert any(text.split(data, 0.1, seed=s)[1]["text"][:] != held["text"][:] for s in range(4, 8))
    for fraction, sizes in ((0.001, (1, 1)), (0.999, (1, 1))):
        assert tuple(map(len, text.split(data.select([0, 1]), fraction, seed=0))) == sizes
    with pytest.raises(DataError, match="cannot be split"):
        text.split(data.select([0]), 0.5, seed=0)
    with pytest.raises(DataError, match="between 0 and 1"):
        text.split(data, 1.0, seed=0)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the gsm8k files are not beside this checkout")
def test_gsm8k_completions_come_back_word_for_word():
    tokenizer = data_tokenizer.build()
    data = sources.read(GSM8K, samples=200).dataset
    result = text.prepare(data, tokenizer, max_length=4096)
    assert result.stats["examples"] == 200 and result.stats["truncated"] == 0
    for row, raw in zip(result.dataset, data, strict=True):
        learned = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(learned) == " " + raw["answer"] + "<eos>"
