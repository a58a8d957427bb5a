"""A teacher behind a completions endpoint (vLLM, SGLang, llama.cpp): its top k log-probabilities, kept on disk.

Shapes: B sequences, T tokens, N positions that count, n a slice of them, k tokens listed a position, V vocabulary.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_finetuner.errors import FinetunerError, ModelError, RecipeError
from llm_finetuner.output import Output, Want
from llm_finetuner.recipe import Model
from llm_finetuner.recipe_sections import check_range
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.endpoint import Endpoint
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.remote_asker import Asker
from llm_finetuner.teachers.remote_cache import Answer, Answers, default_root
from llm_finetuner.teachers.remote_reply import Tokens
from llm_finetuner.teachers.sparse import spread

IGNORE = -100
LOST = 0.01  # mean probability of tokens that cannot be told apart, above which nothing is learned from them
LOST_AFTER = 64  # positions, before which that mean says little


def connect(
    spec: Model,
    context: Context,
    *,
    url: str,
    k: int,
    timeout: float,
    retries: int,
    concurrency: int,
    batch: int,
    key_variable: str,
    cache: str,
) -> "Remote":
    """The provider that kinds.py describes. Raises FinetunerError."""
    if not spec.name:
        raise RecipeError(
            "a remote teacher needs a name", "give teacher.name: the model as the endpoint calls it"
        )
    check_range("timeout", timeout, 0, None, open_low=True)
    for name, value, least in (
        ("k", k, 1),
        ("retries", retries, 0),
        ("concurrency", concurrency, 1),
        ("batch", batch, 1),
    ):
        check_range(name, value, least, None)
    endpoint = Endpoint(url, key_variable, timeout, int(retries))
    width = context.task.vocabulary(context.student)
    known = max(context.tokenizer.get_vocab().values()) + 1 if context.tokenizer is not None else width
    tokens = Tokens(context.tokenizer, min(known, width))
    k = min(int(k), tokens.vocabulary)
    asked = {"url": endpoint.url, "model": spec.name, "k": k, "vocabulary": tokens.vocabulary}
    answers = Answers(Path(cache).expanduser() if cache else default_root(), asked)
    if endpoint.exposes_key():
        context.note(f"the key travels unencrypted to {endpoint.url}: use https where others can listen")
    built = Remote(Asker(endpoint, spec.name, tokens, k), answers, int(concurrency), int(batch), context.note)
    built.columns = None if tokens.vocabulary == width else tokens.vocabulary
    return built


@dataclass
class Rows:
    """ids and log-probabilities, each [N, k]; indexed by a slice or a tensor of positions."""

    ids: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, piece: slice | Tensor) -> "Rows":
        return Rows(self.ids[piece], self.log_probs[piece])


class Remote(Provider):
    """Asks for what the cache does not hold; the head spreads k log-probabilities over the vocabulary, tail kept."""

    def __init__(self, asker: Asker, answers: Answers, concurrency: int, batch: int, note: Any):
        self.asker, self.answers, self.note = asker, answers, note
        self.concurrency, self.batch = concurrency, batch
        self.lost, self.heard = (
            0.0,
            0,
        )  # of what was asked now: probability without a token of ours; positions

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        """Raise RecipeError where a term reads more than probabilities."""
        if want != Want():
            raise RecipeError(
                "a remote teacher gives probabilities only, no hidden states or attention",
                "leave feature and relation terms out, or take a live teacher",
            )

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        self.prepare(want, ())
        mask_BT = batch["labels"][:, 1:] != IGNORE
        asked = [
            (np.asarray(ids[: int(on.sum())], np.int32), np.flatnonzero(counted))
            for ids, on, counted in zip(
                batch["input_ids"].cpu().numpy(), batch["attention_mask"].cpu().numpy(), mask_BT.cpu().numpy(),
                strict=True,
            )
            if counted.any()
        ]  # fmt: skip
        k = self.asker.k
        picked = [(np.empty((0, k), np.int32), np.empty((0, k), np.float32)), *self._pick(asked)]
        device = batch["labels"].device
        ids_Nk, log_probs_Nk = (
            torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*picked, strict=True)
        )
        vocabulary = self.asker.tokens.vocabulary
        return Output(
            rows=Rows(ids_Nk, log_probs_Nk),
            head=lambda rows: spread(rows.ids, rows.log_probs, vocabulary),
            targets=batch["labels"][:, 1:][mask_BT],
            examples=mask_BT.nonzero()[:, 0],
        )

    def check(self, rows: Any) -> None:
        """Probe the endpoint where answers are missing, and tell what they will cost. Raises FinetunerError."""
        missing, positions, total = [], 0, 0
        for row in rows.with_format("numpy"):
            counted = np.flatnonzero(row["labels"][1:] != IGNORE)
            if len(counted):
                tokens, total = row["input_ids"][: int(row["attention_mask"].sum())], total + 1
                if not self.answers.has(tokens):
                    missing.append(tokens)
                    positions += len(counted)
        if not missing:
            self.note(
                f"the remote teacher's answers to all {total} sequences are kept: nothing will be asked"
            )
            return
        self._probe(missing[0])
        requests = -(-len(missing) // self.batch) if self.asker.form.echo else positions
        self.note(
            f"the remote teacher will be asked about {len(missing)} of {total} sequences: {requests} requests or more"
        )

    def _probe(self, tokens: np.ndarray) -> None:
        if self.asker.form is None:
            self.asker.probe(np.asarray(tokens))
            if not self.asker.form.echo:
                self.note(
                    f"{self.asker.endpoint.url} does not score prompts (no echo): every position is a request of its "
                    f"own, hundreds for a sequence; vLLM and SGLang take {self.batch} whole sequences a request"
                )

    def _pick(self, asked: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """ids and log_probs of the positions of each sequence, from the cache or the endpoint."""
        kept = {i: self.answers.read(tokens) for i, (tokens, _) in enumerate(asked)}
        missing = {}  # number in `asked` -> the positions to ask for
        for i, (_, positions) in enumerate(asked):
            lacking = positions if kept[i] is None else kept[i].lacks(positions)
            if len(lacking):
                missing[i] = lacking
        if missing:
            self._probe(asked[min(missing)][0])
            kept |= self._fetch({i: (asked[i][0], lacking) for i, lacking in missing.items()})
        return [kept[i].pick(positions) for i, (_, positions) in enumerate(asked)]

    def _fetch(self, missing: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[int, Answer]:
        """Ask, several requests at a time; each answer is kept as it comes, so that a kill loses none."""
        echo, numbers = self.asker.form.echo, list(missing)
        size = self.batch if echo else 1
        stopped, causes = threading.Event(), []

        def fetch(group: list[int]) -> list[tuple[int, Answer, float, int]]:
            try:
                if echo:
                    found = self.asker.whole([missing[i][0] for i in group], stopped)
                else:
                    found = [self.asker.single(*missing[i], stopped) for i in group]
                return [
                    (i, self.answers.write(missing[i][0], answer), lost, len(answer.positions))
                    for i, (answer, lost) in zip(group, found, strict=True)
                ]
            except FinetunerError as error:
                if not stopped.is_set():
                    causes.append(error)  # the others fail because of it
                stopped.set()  # here, before this thread takes the next group
                raise

        pool, kept = ThreadPoolExecutor(self.concurrency), {}
        futures = [pool.submit(fetch, numbers[at : at + size]) for at in range(0, len(numbers), size)]
        try:
            for future in as_completed(futures):
                for i, answer, lost, heard in future.result():
                    kept[i] = answer
                    self._count(lost, heard)
        except FinetunerError:
            if causes:
                raise causes[0] from causes[0].__cause__
            raise
        finally:  # after Ctrl-C too: no thread goes on asking, and nobody waits for one that is
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return kept

    def _count(self, lost: float, positions: int) -> None:
        """Raise ModelError when too much probability belongs to tokens that the reply does not tell apart."""
        self.lost, self.heard = self.lost + lost, self.heard + positions
        if self.heard >= LOST_AFTER and self.lost > LOST * self.heard:
            raise ModelError(
                f"{self.lost / self.heard:.1%} of the remote teacher's probability is of tokens that its answers do "
                "not tell apart, or that the student does not have",
                "take an endpoint that gives token ids (vLLM, llama.cpp), or a teacher with the student's tokenizer",
            )
