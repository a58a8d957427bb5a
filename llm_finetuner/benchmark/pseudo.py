"""Pseudo-perplexity of a model that fills in: each token hidden in turn (Salazar et al. 2020, arXiv 1910.14659).

    exp(-(1 / N) sum over texts and their tokens of log p(token | all other tokens of the text))

N: the tokens of all texts but special ones ([CLS], [SEP], [UNK]), which are not hidden here either. It costs a forward
pass of the whole text for every token. Not to be compared with the perplexity of a model that reads from left to right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.data.masked import plain_tokens, uncovered


def pseudo_perplexity(
    task: Any, model: nn.Module, tokenizer: Any, rows: Sequence[dict], *, batch_size: int = 8
) -> float:
    """Of prepared rows, whatever is hidden in them. Raises DataError where no token can be hidden."""
    turns = _Turns(rows, plain_tokens(tokenizer), tokenizer.mask_token_id)
    return evaluate(task, model, turns, batch_size=batch_size).perplexity


class _Turns(Sequence):
    """The examples, one for each token, made when they are asked for: a text of T tokens gives T lists of T."""

    def __init__(self, rows: Sequence[dict], plain: np.ndarray, mask: int):
        self.mask = mask
        self.texts = [(uncovered(row), list(row["attention_mask"])) for row in rows]
        self.places = [
            (number, at)
            for number, (ids, seen) in enumerate(self.texts)
            for at in np.flatnonzero(plain[ids] & np.array(seen, bool)).tolist()
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        text, at = self.places[number]
        ids, seen = self.texts[text]
        shown, labels = list(ids), [IGNORED] * len(ids)
        shown[at], labels[at] = self.mask, ids[at]
        return {"input_ids": shown, "attention_mask": seen, "labels": labels}
