"""How a completions endpoint is asked about a sequence: whole, by echo, or position by position; one probe tells which.

T tokens of a sequence, P positions of it, k tokens listed for each. Position t speaks of token t + 1.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_finetuner.errors import ModelError
from llm_finetuner.teachers.endpoint import Endpoint, Refused
from llm_finetuner.teachers.remote_cache import Answer
from llm_finetuner.teachers.remote_reply import Said, Tokens, read_choice

PROBE = 8  # tokens of the request that finds out how an endpoint wants to be asked
TRIES = 3  # for a position: a sampled token that is a piece of a character comes without log-probabilities


@dataclass(frozen=True)
class Form:
    """How an endpoint is asked: whole sequences by `echo`, or one position a request; with fields of its own or not."""

    echo: bool
    own_fields: bool


FORMS = (Form(True, True), Form(True, False), Form(False, True), Form(False, False))


class Asker:
    """Turns sequences into requests and replies into Answers."""

    def __init__(self, endpoint: Endpoint, model: str, tokens: Tokens, k: int):
        self.endpoint, self.model, self.tokens, self.k = endpoint, model, tokens, k
        self.form: Form | None = None  # until the probe

    def payload(self, form: Form, prompts: list[list[int]]) -> dict[str, Any]:
        """Token ids, so that no other tokenizer is at work; temperature 1, as some servers scale by it.

        vLLM: return_tokens_as_token_ids. llama.cpp: n_probs, and cache_prompt, which keeps the common prefix.
        max_tokens is 1: not every server takes 0.
        """
        fields = {"model": self.model, "max_tokens": 1, "temperature": 1.0, "logprobs": self.k}
        if form.echo:
            fields |= {"prompt": prompts, "echo": True}
        else:
            fields |= {"prompt": prompts[0]}
        if form.own_fields:
            fields |= {"return_tokens_as_token_ids": True}
            fields |= {} if form.echo else {"n_probs": self.k, "cache_prompt": True}
        return fields

    def ask(self, form: Form, prompts: list[list[int]], stopped: threading.Event) -> list[list[Said]]:
        """One request: what is said of each prompt."""
        answer = self.endpoint.post(self.payload(form, prompts), stopped)
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != len(prompts):
            raise ModelError(
                f"{self.endpoint.url} answered {len(prompts)} prompts with "
                f"{len(choices) if isinstance(choices, list) else 'no'} choices",
                "it must be an OpenAI-compatible completions endpoint; batch=1 where it takes one prompt a request",
            )
        if all(isinstance(choice, dict) and isinstance(choice.get("index"), int) for choice in choices):
            choices = sorted(choices, key=lambda choice: choice["index"])
        return [read_choice(choice) for choice in choices]

    def probe(self, sequence: np.ndarray) -> None:
        """Find the form that works, by a few tokens of a real sequence. Raises FinetunerError."""
        prompt, stopped, first, echoes = sequence[:PROBE].tolist(), threading.Event(), None, True
        for form in FORMS:
            if form.echo and not echoes:
                continue
            try:
                said = self.ask(form, [prompt], stopped)[0]
            except Refused as error:
                speaks = error.said.lower()
                if "logprob" in speaks and "echo" not in speaks:
                    raise self._capped(error.said) from error
                if error.status not in (400, 422, 500, 501):
                    raise
                first, echoes = first or error, echoes and "echo" not in speaks
                continue
            if form.echo and len(said) < len(prompt):
                echoes = False  # llama.cpp of some versions takes echo and leaves it out
                continue
            # texts that several tokens share are merged by the server, ids are not
            by_id = all(isinstance(name, int) for at in said for name, _ in at.top)
            if form.echo:
                self._spelling(said, sequence[:PROBE])  # finds another tokenizer before time is spent
            elif not by_id:
                self.tokens.spelled_anyhow()
            best = max((len(at.top) for at in said), default=0)
            if best < (self.k if by_id else (self.k + 1) // 2):
                raise self._capped(f"{best} came back")
            self.form = form
            return
        raise first or ModelError(
            f"{self.endpoint.url} gives no log-probabilities", "the server must give top log-probabilities"
        )

    def _capped(self, said: str) -> ModelError:
        return ModelError(
            f"{self.endpoint.url} does not give the k = {self.k} log-probabilities asked for: {said}",
            f"start the server with a higher limit (vLLM: --max-logprobs {self.k}), or lower k",
        )

    def whole(self, sequences: list[np.ndarray], stopped: threading.Event) -> Iterator[tuple[Answer, float]]:
        """One request for several sequences: the answer for all positions of each, and the probability lost [sum]."""
        for sequence, said in zip(
            sequences, self.ask(self.form, [s.tolist() for s in sequences], stopped), strict=True
        ):
            length, table = len(sequence), self._spelling(said, sequence)
            empty = [t for t in range(1, length) if not said[t].top]
            if empty:
                raise ModelError(
                    f"{self.endpoint.url} gave no log-probabilities at position {empty[0]} of {length}",
                    "vLLM before version 1: start it with --no-enable-prefix-caching",
                )
            yield self._answer(
                range(length - 1), [self.tokens.row(at, table, self.k) for at in said[1:length]]
            )

    def _spelling(self, said: list[Said], sequence: np.ndarray) -> dict[str, int] | None:
        """The table to read its texts with. Raises ModelError where it scored something else than what was sent."""
        length = len(sequence)
        if len(said) not in (length, length + 1):  # the token that was generated may be there
            raise ModelError(
                f"{self.endpoint.url} was sent {length} tokens and speaks of {len(said)}",
                "the server must score the prompt as it is, without tokens of its own",
            )
        return self.tokens.table(said[:length], sequence)

    def single(
        self, sequence: np.ndarray, positions: np.ndarray, stopped: threading.Event
    ) -> tuple[Answer, float]:
        """One request a position, in order, so that the server's prefix cache serves the next one."""
        rows = []
        for position in positions.tolist():
            for _ in range(TRIES):
                said = self.ask(self.form, [sequence[: position + 1].tolist()], stopped)[0]
                if said and said[0].top:
                    break
            else:
                raise ModelError(
                    f"{self.endpoint.url} gave no log-probabilities after token {position} of a sequence, "
                    f"in {TRIES} tries",
                    "llama.cpp leaves them out after a piece of a character; a server with echo does not",
                )
            by_id = all(isinstance(name, int) for name, _ in said[0].top)
            table = None if by_id else self.tokens.spelled_anyhow()
            rows.append(self.tokens.row(said[0], table, self.k))
        return self._answer(positions, rows)

    @staticmethod
    def _answer(positions: Any, rows: list[tuple[list[int], list[float], float]]) -> tuple[Answer, float]:
        ids, nats, lost = zip(*rows, strict=True)
        answer = Answer(np.array(positions, np.int32), np.array(ids, np.int32), np.array(nats, np.float32))
        return answer, sum(lost)
