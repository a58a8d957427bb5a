"""Every term that reads logits, over the positions of a batch.

Shapes: N positions that count, n a slice of them, b a block of those, V vocabulary, C columns that both models know.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from llm_finetuner.chunks import chunked
from llm_finetuner.kernels import response as kernel
from llm_finetuner.objectives.several_labels import binary_cross_entropy
from llm_finetuner.output import Output, at_least_float32
from llm_finetuner.ranges import check_number
from llm_finetuner.registry import OBJECTIVES, resolve
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.terms import kind_of, names_of, reads_teacher

# Numbers that a CPU works on at a time: two models' logits and their gradient stay in its cache.
BLOCK = 2**19

# Of each term, unweighted and detached: its sum over the positions that it speaks of, and how many these are, [2].
Sums = dict[str, Tensor]


def over_rows(
    own: Output,
    teacher: Output | None,
    provider: Provider,
    listed: Sequence[Term],
    objectives: Mapping[str, Callable] = MappingProxyType({}),
) -> tuple[Tensor, Sums]:
    """The weighted loss summed over the N positions, and the unweighted sums of every term that reads logits.

    A term against targets speaks of positions whose target is known, one against a teacher of those that it answers.
    With a teacher whose logits a term reads the second also holds teacher_nll (summed nats) and agreement (positions
    of equal top token). objectives: what stands for an objective that a term names, where the answers ask for it.
    """
    terms = [
        (term, name) for term, name in zip(listed, names_of(listed), strict=True) if kind_of(term) == "logits"
    ]
    names = [name for _, name in terms]
    response = _Response(own, teacher, provider, [term for term, _ in terms], objectives)
    if response.measures:
        names += ["teacher_nll", "agreement"]
    if not names:
        return own.rows.sum() * 0, {}
    total, sums_K2 = chunked(own.rows, own.head.layer, response.score)
    return total, dict(zip(names, sums_K2.unbind(), strict=True))


class _Given(NamedTuple):
    """What the terms read beside the student's logits, of a chunk or a block; the last three of the teacher."""

    targets: Tensor
    answers: Tensor | None = None
    places: Tensor | None = None  # of the targets among the answers
    known: Tensor | None = None

    def at(self, block: slice) -> "_Given":
        return _Given(*(None if x is None else x[block] for x in self))


class _Response:
    """Scores chunks of logits: by the kernel where it can, block by block through autograd otherwise."""

    def __init__(
        self,
        own: Output,
        teacher: Output | None,
        provider: Provider,
        terms: Sequence[Term],
        objectives: Mapping[str, Callable],
    ):
        self.own, self.teacher, self.provider, self.terms = own, teacher, provider, terms
        self.calls = [
            (term, objectives.get(term.objective) or resolve(OBJECTIVES, term.objective), reads_teacher(term))
            for term in terms
        ]
        self.asks = teacher is not None and any(asks for _, _, asks in self.calls)
        self.measures = self.asks and not own.numbers  # which have no likelihood and agree to no last digit
        self.for_kernel = (
            not objectives and own.head.transform is None and all(_in_kernel(term) for term in terms)
        )
        self.for_kernel &= len({term.objective for term in terms}) == len(terms)

    def score(self, logits_nV: Tensor, piece: slice, learn: bool) -> tuple[Tensor, Tensor]:
        """As chunks.Score."""
        given = _Given(self.own.targets[piece])
        if self.asks:
            known = None if self.teacher.known is None else self.teacher.known[piece]
            answers, places = self.teacher.head(self.teacher.rows[piece]), self.provider.place(given.targets)
            given = _Given(given.targets, answers, places, known)
        if self.for_kernel and self._reaches(logits_nV) and kernel.available():
            loss, values_K = self._by_kernel(logits_nV, given)
        else:
            loss, values_K = self._by_blocks(logits_nV, given, learn)
        return loss, torch.stack([values_K, self._counts(given).to(values_K)], 1)

    def _counts(self, given: _Given) -> Tensor:
        """How many positions each value speaks of: [K]."""
        told = ~given.targets.isnan().any(1) if self.own.numbers else _are_known(given.targets)
        heard = torch.ones_like(told) if given.known is None else given.known
        spoken = [heard if asks else told for _, _, asks in self.calls]
        if self.measures:
            spoken += [_are_known(given.places) & heard, heard]
        return torch.stack(spoken).sum(1)

    def _by_blocks(self, logits_nV: Tensor, given: _Given, learn: bool) -> tuple[Tensor, Tensor]:
        loss, values = 0.0, 0.0
        count, width = logits_nV.shape
        size = max(1, BLOCK // width if logits_nV.device.type == "cpu" else count)
        for start in range(0, max(count, 1), size):
            block = slice(start, start + size)
            leaf = logits_nV[block].detach().requires_grad_(learn)
            with torch.set_grad_enabled(learn):
                value, seen = self._terms(leaf, given.at(block))
            if learn:
                logits_nV[block] = torch.autograd.grad(value, leaf)[0] if value.requires_grad else 0
            loss, values = loss + value.detach(), values + seen
        return loss, values

    def _terms(self, logits_bV: Tensor, given: _Given) -> tuple[Tensor, Tensor]:
        if self.own.head.transform:
            logits_bV = self.own.head.transform(logits_bV)
        shared_bC = self.provider.view(logits_bV) if self.asks else None
        loss, values = at_least_float32(logits_bV).new_zeros(()), []
        for term, objective, asks in self.calls:
            value = objective(
                *((shared_bC, given.answers) if asks else (logits_bV, given.targets)), **term.options
            )
            if asks and given.known is not None:
                value = torch.where(given.known, value, 0)
            if term.weight:  # at a ramp's end, where the term itself may be infinite
                loss = loss + term.weight * value.sum()
            values.append(value.detach().sum())
        if self.measures:
            values += _measures(shared_bC.detach(), given)
        return loss, torch.stack([v.to(loss.dtype) for v in values])

    # ---- the kernel

    def _reaches(self, logits_nV: Tensor) -> bool:
        """Whether the kernel can read these logits, and the teacher speaks of their first columns."""
        if logits_nV.dtype != torch.float32 or logits_nV.device.type != "cpu":
            return False
        if not self.asks:
            return True
        shared = self.provider.view(logits_nV[:0])  # [0, C]
        return shared.untyped_storage().data_ptr() == logits_nV.untyped_storage().data_ptr()

    def _by_kernel(self, logits_nV: Tensor, given: _Given) -> tuple[Tensor, Tensor]:
        if self.asks:
            shape = len(logits_nV), self.provider.view(logits_nV[:0]).shape[1]
            assert given.answers.shape == shape, (
                f"a teacher's head gave {tuple(given.answers.shape)} answers, not {shape}"
            )
        weights = {term.objective: term.weight for term in self.terms}
        temperature = next((t.options.get("temperature", 1.0) for t, _, asks in self.calls if asks), 1.0)
        check_number("temperature", temperature, 0)
        sums = kernel.cross_entropy_and_forward_kl_(
            logits_nV,
            given.answers.float().contiguous() if self.asks else None,
            given.targets,
            given.places,
            given.known,
            temperature=temperature,
            w_ce=weights.get("cross_entropy", 0.0),
            w_kl=weights.get("forward_kl", 0.0),
        )
        of = dict(zip(("cross_entropy", "forward_kl"), sums[:2], strict=True))
        values = torch.stack([of[term.objective] for term in self.terms])
        loss = sum(
            (term.weight * of[term.objective] for term in self.terms if term.weight), sums.new_zeros(())
        )
        return loss, torch.cat([values, sums[2:]]) if self.asks else values


def _in_kernel(term: Term) -> bool:
    plain = {"cross_entropy": {"label_smoothing": 0.0}, "forward_kl": {"temperature": None}}.get(
        term.objective
    )
    return plain is not None and all(
        name in plain and plain[name] in (None, value) for name, value in term.options.items()
    )


def _are_known(targets: Tensor) -> Tensor:
    """Whether the right answer of each position is known, or that to any of its labels: [n] or [n, C] -> [n]."""
    return targets >= 0 if targets.dim() == 1 else (targets >= 0).any(1)


def _measures(shared_bC: Tensor, given: _Given) -> list[Tensor]:
    """Summed NLL of the targets under the teacher, and how often the two answer the same."""
    answers_bC, places, known = at_least_float32(given.answers), given.places, given.known
    if given.targets.dim() == 2:  # each label for itself
        agree = ((shared_bC > 0) == (answers_bC > 0)).to(answers_bC.dtype).mean(-1)
        return [binary_cross_entropy(answers_bC, given.targets).sum(), agree.sum()]
    if known is not None:
        places = torch.where(known, places, -100)
    # the student's logit at the teacher's top token is its largest; one argmax less, which is slow on a CPU
    at_top = shared_bC.gather(-1, answers_bC.argmax(-1, keepdim=True))
    agree = (at_top == shared_bC.amax(-1, keepdim=True))[:, 0]
    agree = agree if known is None else agree & known
    nll = torch.nn.functional.cross_entropy(answers_bC, places, reduction="sum")
    return [nll, agree.sum()]
