"""The kinds of teachers that the conformance table tries, each built for real, and what each ought to say.

Letters: n positions that count, k listed tokens, V vocabulary.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import conformance_paths  # noqa: F401
import conformance_reference as ref
import torch
from conformance_step import Bench
from endpoint_server import CompletionsServer
from torch import Tensor, nn

from llm_finetuner.models.vocabulary import Vocabulary
from llm_finetuner.output import Want
from llm_finetuner.recipe import Teacher
from llm_finetuner.registry import TEACHERS, resolve
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.across import Across
from llm_finetuner.teachers.aligned import aligned_teacher
from llm_finetuner.teachers.average import Average
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.filling import fill
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.store import Store

TASK, CPU, K = CausalLM(), torch.device("cpu"), 50


def context(bench: Bench, student: nn.Module | None = None) -> Context:
    return Context(TASK, student or bench.student(), bench.tokenizer, CPU, lambda text: None)


def alive(bench: Bench, model: nn.Module, student: nn.Module | None = None) -> Provider:
    return live_teacher(model, bench.tokenizer, "t", context(bench, student))


def cached(bench: Bench, model: nn.Module, rows, **settings) -> Cached:
    """The model's answers to these rows, written and read again."""
    folder = bench.new_folder()
    live = alive(bench, model)
    write_cache(live, TASK, rows, folder, vocabulary=bench.vocabulary, about={}, **{"k": K, **settings})
    return Cached(Store.open(folder), TASK, CPU)


def renumbered(bench: Bench) -> tuple[Any, list[int]]:
    """The same tokens under other numbers, and the number of each."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(bench.tokenizer.backend_tokenizer.to_str())
    numbers = list(range(1, bench.vocabulary))
    random.Random(0).shuffle(numbers)
    table = [0, *numbers]  # the end of text stays
    state["model"]["vocab"] = {token: table[i] for token, i in state["model"]["vocab"].items()}
    core = Tokenizer.from_str(json.dumps(state))
    special = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special, pad_token=special), table


def moved(model: nn.Module, table: list[int]) -> nn.Module:
    """A copy that knows token i by the number table[i]; columns beyond the table stay."""
    model = copy.deepcopy(model)
    order = torch.tensor([*table, *range(len(table), model.get_input_embeddings().num_embeddings)])
    layers = {id(layer): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for parameter in {id(p): p for layer in layers.values() for p in layer.parameters()}.values():
        values = parameter.detach().clone()
        parameter.data[order] = values
    return model


@dataclass(frozen=True)
class Kind:
    """A kind of teacher. build: (bench, model, rows, student) -> a Provider, or a context of one.

    members: further models, mixed by their probabilities or logits.
    exact: its answers are the whole distribution; others are compared with what they themselves say of single rows.
    registered: its line in the table of teachers.
    """

    name: str
    registered: str
    build: Callable
    exact: bool = True
    members: int = 0
    mix: str = "probabilities"

    @contextmanager
    def open(
        self, bench: Bench, model: nn.Module, rows, student: nn.Module | None = None
    ) -> Iterator[Provider]:
        built = self.build(bench, model, rows, student)
        if isinstance(built, Provider):
            yield built
        else:
            with built as provider:
                yield provider

    def answer(self, bench: Bench, model: nn.Module, provider: Provider):
        """What it ought to say, for the reference: (ids, positions) -> logits or log-probabilities [n, V]."""
        if not self.exact:
            return lambda ids, at: alone(provider, ids, at)
        told = ref.heard(model)
        if not self.members:
            return told
        second = ref.heard(bench.teacher(seed=2))

        def mixed(ids: list[int], at: list[int]) -> Tensor:
            both = [z[:, : bench.vocabulary] for z in (told(ids, at), second(ids, at))]
            if self.mix == "logits":
                return sum(both) / 2
            return (sum(torch.softmax(z, -1) for z in both) / 2).log()

        return mixed


def alone(provider: Provider, ids: list[int], at: list[int]) -> Tensor:
    """A provider's answers to one row without padding: [n, V]."""
    labels = [-100] * len(ids)
    for t in at:
        labels[t + 1] = ids[t + 1]
    batch = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "labels": [labels]}
    said = provider({name: torch.tensor(x) for name, x in batch.items()}, Want())
    return said.head(said.rows[:]).double().detach()


def _ensemble(mixture: str):
    def build(bench: Bench, model: nn.Module, rows, student) -> Provider:
        members = [alive(bench, m, student) for m in (model, bench.teacher(seed=2))]
        return Ensemble(members, None, mixture)

    return build


def _aligned(bench: Bench, model: nn.Module, rows, student) -> Provider:
    tokenizer, table = renumbered(bench)
    return aligned_teacher(moved(model, table), tokenizer, "t", context(bench, student))


def _across(bench: Bench, model: nn.Module, rows, student) -> Provider:
    tokenizer, table = renumbered(bench)
    return Across(Live(TASK, moved(model, table)), Vocabulary(bench.tokenizer), Vocabulary(tokenizer))


def _remote(k: int):
    @contextmanager
    def build(bench: Bench, model: nn.Module, rows, student) -> Iterator[Provider]:
        server = CompletionsServer(copy.deepcopy(model), bench.tokenizer)
        try:
            yield resolve(TEACHERS, "remote")(
                Teacher("big", kind="remote"), context(bench, student), url=server.url, k=k,
                cache=str(bench.new_folder()), batch=16, concurrency=1,
            )  # fmt: skip
        finally:
            server.close()

    return build


def _filling(bench: Bench, model: nn.Module, rows, student) -> Provider:
    given = model, bench.tokenizer
    return fill(Teacher("t"), context(bench, student), path=str(bench.new_folder() / "cache"), given=given)


KINDS = (
    Kind("live", "live", lambda bench, model, rows, student: alive(bench, model, student)),
    Kind("cached, k = V", "cached", lambda bench, model, rows, _: cached(bench, model, rows, k=bench.vocabulary)),
    Kind("cached, k = 50", "cached", lambda bench, model, rows, _: cached(bench, model, rows), exact=False),
    Kind(
        "ensemble of one", "ensemble",
        lambda bench, model, rows, student: Ensemble([alive(bench, model, student)], None, "probabilities"),
    ),
    Kind("ensemble of two", "ensemble", _ensemble("probabilities"), members=1),
    Kind("ensemble of two, logits", "ensemble", _ensemble("logits"), members=1, mix="logits"),
    Kind("remote, k = V", "remote", _remote(10**6)),
    Kind("remote, k = 50", "remote", _remote(K), exact=False),
    Kind("average", "average", lambda bench, model, rows, _: Average(TASK, model, 0.9)),
    Kind("aligned by token", "live", _aligned),
    Kind("across, same tokens", "across", _across),
    Kind("live, filling a cache", "live_cached", _filling),
)  # fmt: skip
FULL = ("cached, k = V", "ensemble of one", "remote, k = V")  # say what a live teacher says


def full_kinds() -> list[Kind]:
    return [kind for kind in KINDS if kind.name in FULL]


def renormalised(answer, k: int):
    """The k best alone, as if there were no others."""

    def cut(ids: list[int], at: list[int]) -> Tensor:
        told = answer(ids, at)
        worst_kept = told.topk(k).values[:, -1:]
        return torch.where(
            told >= worst_kept, told, told - 80
        )  # e^-80, so that reverse divergences are finite

    return cut


def tail_error(provider: Provider, model: nn.Module, rows, k: int) -> float:
    """How far the mass outside of the k best is from the model's, on average over the positions, as a share of it."""
    gap, mass, answer = 0.0, 0.0, ref.heard(model)
    for row in rows:
        ids = row["input_ids"]
        at = list(range(len(ids) - 1))
        want, got = (torch.softmax(z, -1) for z in (answer(ids, at), alone(provider, ids, at)))
        best = want.topk(k).indices
        tails = [1 - p.gather(1, best).sum(1) for p in (want, got)]
        gap, mass = gap + float((tails[0] - tails[1]).abs().sum()), mass + float(tails[0].sum())
    return gap / mass
