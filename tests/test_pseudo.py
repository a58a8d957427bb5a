"""Pseudo-perplexity: against each token hidden by hand, whatever the batch, the padding and what a row hides itself."""

import math

import datasets
import pytest
import torch
from label_tokenizers import bert
from test_in_place import config
from transformers import BertForMaskedLM

from llm_finetuner.benchmark.pseudo import pseudo_perplexity
from llm_finetuner.errors import DataError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.tasks.in_place import MaskedLM

TEXTS = ["the cat sees the dog", "dog", "x sees the cat playing", "the dog sees qqq the cat - .", "cat cat"]


@pytest.fixture(scope="module")
def tokenizer():
    return bert()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sized = config(16, 2)
    sized.vocab_size = len(tokenizer)
    return BertForMaskedLM(sized).double().eval()


def rows_of(tokenizer, texts=TEXTS) -> list[dict]:
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(ids)}
        for ids in tokenizer(texts)["input_ids"]
    ]


@torch.no_grad()
def by_hand(model, tokenizer, texts=TEXTS) -> tuple[float, int]:
    """One token at a time, each text alone."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for at, token in enumerate(ids):
            if token in tokenizer.all_special_ids:  # a word that the tokenizer does not know, too
                continue
            hidden = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]])
            total -= model(hidden).logits[0, at].log_softmax(-1)[token].item()
            count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_is_each_token_given_all_others(model, tokenizer, batch_size):
    wanted, count = by_hand(model, tokenizer)
    assert count == 5 + 1 + 6 + 7 + 2
    found = pseudo_perplexity(MaskedLM(), model, tokenizer, rows_of(tokenizer), batch_size=batch_size)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_what_a_row_hides_itself_and_padding_change_nothing(model, tokenizer):
    wanted, _ = by_hand(model, tokenizer)
    rows = rows_of(tokenizer)
    for number, row in enumerate(rows):
        for at in range(1, len(row["input_ids"]) - 1, 2):
            row["labels"][at] = row["input_ids"][at]
            row["input_ids"][at] = tokenizer.mask_token_id if number % 2 else 9  # hidden, or another token
        row["input_ids"] += [7] * number  # tokens that nobody reads
        row["attention_mask"] += [0] * number
        row["labels"] += [-100] * number
    found = pseudo_perplexity(MaskedLM(), model, tokenizer, rows, batch_size=4)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_an_evaluation_gives_it_of_evenly_spaced_rows(model, tokenizer, tmp_path):
    tuner = LLMFineTuner(model, tmp_path / "out", task="masked_lm", tokenizer=tokenizer, device="cpu")
    tuner.load_model("full")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    whole = tuner.evaluate(rows)
    assert whole["pseudo_perplexity"] == pytest.approx(by_hand(model, tokenizer)[0], rel=1e-12)
    assert whole["pseudo_perplexity_rows"] == 5 and whole["perplexity"] != whole["pseudo_perplexity"]
    some = tuner.evaluate(rows, sample=2)
    picked = [TEXTS[0], TEXTS[2]]
    assert some["pseudo_perplexity"] == pytest.approx(by_hand(model, tokenizer, picked)[0], rel=1e-12)
    assert some["pseudo_perplexity_rows"] == 2 and some["perplexity"] == whole["perplexity"]
    assert "pseudo_perplexity" not in tuner.evaluate(rows, sample=0)


def test_rows_without_a_plain_token_have_none(model, tokenizer):
    with pytest.raises(DataError, match="no token of these rows counts"):
        pseudo_perplexity(MaskedLM(), model, tokenizer, rows_of(tokenizer, ["[MASK]"]))
