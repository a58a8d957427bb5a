"""What a completions endpoint sends, read with distrust: tokens back to ids, log-probabilities checked.

Shapes: T tokens of a sequence, k tokens listed for a position.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llm_finetuner.errors import ModelError

TOKEN_ID = re.compile(r"token_id:(\d+)")  # how vLLM names a token when asked for ids
BROKEN = "\ufffd"  # a token that is not whole characters decodes to this, and so do others
LEAST = -9999.0  # what vLLM sends for -inf; llama.cpp sends the lowest float
TOO_MUCH = 1e-2  # how far probabilities may sum above 1: servers round
Name = str | int  # of a token: its text, or its id where the endpoint gives that


@dataclass(frozen=True)
class Said:
    """One position of a reply: the token that stands there, and the most probable ones in its place."""

    token: Name
    top: list[tuple[Name, float]]  # empty for the first token of a sequence, which nothing predicts


def read_choice(choice: Any) -> list[Said]:
    """The positions of one choice, in either shape that servers use for log-probabilities. Raises ModelError.

    vLLM, SGLang and OpenAI: {"tokens": [...], "top_logprobs": [null, {token: nats}, ...]}.
    llama.cpp: {"content": [{"id", "token", "top_logprobs": [{"id", "token", "logprob"}, ...]}, ...]}.
    """
    try:
        found = choice["logprobs"] or {"content": []}
        if "content" in found:
            return [
                Said(_name(at), [(_name(top), float(top["logprob"])) for top in at["top_logprobs"]])
                for at in found["content"] or []
            ]
        tops = [
            [(_id_or_text(t), float(nats)) for t, nats in (top or {}).items()]
            for top in found["top_logprobs"]
        ]
        return [Said(_id_or_text(token), top) for token, top in zip(found["tokens"], tops, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the endpoint's log-probabilities have a shape that is not known ({type(error).__name__}: {error})",
            "known are those of vLLM, SGLang, llama.cpp's server and OpenAI's completions",
        ) from error


def _name(entry: dict) -> Name:
    number = entry.get("id")
    return number if isinstance(number, int) else _id_or_text(entry["token"])


def _id_or_text(text: str) -> Name:
    found = TOKEN_ID.fullmatch(text)
    return int(found[1]) if found else text


class Tokens:
    """From what an endpoint calls a token to its id, exactly: a text that several tokens share names none of them.

    Endpoints give a token's id, its decoded text, or its entry in the vocabulary. The last two are told apart by what
    the endpoint calls the tokens that were sent.
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """Of every id: the decoded text, and the entry in the vocabulary. [V], [V]"""
        if self.tokenizer is None:
            raise ModelError(
                "the endpoint names tokens by text, and there is no tokenizer to read them with",
                "give the student's tokenizer, or an endpoint that gives ids (vLLM, llama.cpp)",
            )
        numbers = list(range(min(self.vocabulary, len(self.tokenizer))))
        texts = [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in numbers]
        return texts, [str(entry) for entry in self.tokenizer.convert_ids_to_tokens(numbers)]

    @cached_property
    def _tables(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Text -> id, of decoded texts, of entries, and of both: unique ones only."""
        texts, entries = self._texts
        both = [pair for t, e in zip(texts, entries, strict=True) for pair in {t, e}]
        owners = [i for i, pair in enumerate(zip(texts, entries, strict=True)) for _ in set(pair)]
        return _unique(texts), _unique(entries), _unique(both, owners)

    def table(self, said: list[Said], sent: np.ndarray) -> dict[str, int] | None:
        """How the endpoint spells, seen on the tokens sent: [T]. None where it gives ids.

        Raises ModelError where it speaks of other tokens than those: then its tokenizer is another one.
        """
        if all(isinstance(at.token, int) for at in said):
            wrong = [t for t, at in enumerate(said) if at.token != sent[t]]
            if wrong:
                raise self._other_tokenizer(wrong[0], int(sent[wrong[0]]), f"token {said[wrong[0]].token}")
            return None
        misses = []
        for spelling, table in zip(self._texts, self._tables[:2], strict=True):
            wrong = [t for t, at in enumerate(said) if not _same(spelling, int(sent[t]), at.token)]
            if not wrong:
                return table
            misses.append(wrong[0])
        raise self._other_tokenizer(misses[0], int(sent[misses[0]]), repr(said[misses[0]].token))

    def spelled_anyhow(self) -> dict[str, int]:
        """For endpoints that repeat nothing of what was sent."""
        return self._tables[2]

    def _other_tokenizer(self, position: int, token: int, said: str) -> ModelError:
        text = f" ({self.tokenizer.decode([token])!r})" if self.tokenizer is not None else ""
        return ModelError(
            f"the endpoint has another tokenizer than the student: token {token}{text} was sent at position "
            f"{position}, and it speaks of {said} there",
            "take a teacher with the student's tokenizer",
        )

    def row(self, said: Said, table: dict[str, int] | None, k: int) -> tuple[list[int], list[float], float]:
        """The k most probable ids, their nats, and the probability of what has no id of ours.

        Raises ModelError where the numbers are not the logarithms of one distribution.
        """
        nats: dict[int, float] = {}
        lost = total = 0.0
        for name, value in said.top:
            if not value <= TOO_MUCH:  # NaN too
                raise _no_distribution(f"{value} is no log-probability")
            p = math.exp(value)
            total += p
            number = name if isinstance(name, int) else (table if table is not None else {}).get(name)
            if number is None or not 0 <= number < self.vocabulary:
                lost += p
            elif number in nats:
                raise _no_distribution(f"token {number} is listed twice")
            else:
                nats[number] = min(max(value, LEAST), 0.0)
        if total > 1 + TOO_MUCH:
            raise _no_distribution(f"the probabilities of a position sum to {total:.3f}")
        best = sorted(nats.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        missing = k - len(best)
        return (
            [number for number, _ in best] + [0] * missing,
            [value for _, value in best] + [-math.inf] * missing,
            lost,
        )


def _unique(texts: list[str], owners: list[int] | None = None) -> dict[str, int]:
    counts = Counter(texts)
    numbered = zip(texts, owners if owners is not None else range(len(texts)), strict=True)
    return {text: number for text, number in numbered if counts[text] == 1}


def _same(spelling: list[str], token: int, said: Name) -> bool:
    """Pieces of characters are spelled differently by different servers: they say nothing about the tokenizer."""
    if isinstance(said, int):
        return said == token
    return token < len(spelling) and (said == spelling[token] or BROKEN in spelling[token])


def _no_distribution(what: str) -> ModelError:
    return ModelError(
        f"the endpoint's numbers are not log-probabilities of one distribution: {what}",
        "ask for them before sampling (vLLM: --logprobs-mode raw_logprobs), without penalties or biases",
    )
