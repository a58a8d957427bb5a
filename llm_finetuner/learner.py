"""The one module that the engine wraps: the student, what is trained beside it, and the terms of the loss.

Shapes: N positions that count, n a slice of them, D hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner import terms
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.layer_maps import POOLED, Pairs, check_exits, layer_pairs
from llm_finetuner.models import activations
from llm_finetuner.models.anatomy import final_norm_of
from llm_finetuner.output import Output, Want
from llm_finetuner.registry import OBJECTIVES, resolve
from llm_finetuner.response import Sums, over_rows
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.terms import PAIRED, PROJECTED, kind_of, names_of, reads, reads_teacher, scaled


class Learner(nn.Module):
    """Runs the student and adds up the terms.

    The loss is computed inside forward, so that DDP sees every use of the head's weight.
    """

    def __init__(
        self,
        task,
        student: nn.Module,
        scheme: Scheme,
        provider: Provider | None = None,
        peers: Sequence[nn.Module] = (),
        penalty: Callable[[], Tensor] | None = None,
    ):
        """provider: gives the answers that `forward` is handed. peers: models that learn beside the student."""
        super().__init__()
        scheme = task.translate(scheme, student)
        self.task, self.student, self.scheme, self.penalty = task, student, scheme, penalty
        self.peers = nn.ModuleList(peers)
        self.fused = activations.Fused(student, *peers)
        self.provider = provider or Provider()
        for term in (*scheme.terms, *scheme.exit_terms, *scheme.peer_terms):
            terms.check_options(term)
            if term.objective in task.unfit:
                raise RecipeError(
                    f"{term.objective} does not fit: the answers here are {task.answers}",
                    "take mse and output_mse" if task.numbers else "take cross_entropy or forward_kl",
                )
        self.pairs: list[Pairs] = [self._pairs(term) for term in scheme.terms]
        self.exits = _exits(task, student, scheme)
        self.want = self._want(0, tuple(int(block) for block in self.exits))
        asks = any(reads_teacher(t) and kind_of(t) in ("logits", "spans") for t in scheme.terms)
        self.teacher_want = self._want(1, answers=asks)
        self.projections = nn.ModuleDict(self._projections())

    def forward(
        self, batch: dict[str, Tensor], teacher: Output | None = None, progress: float = 0.0
    ) -> tuple[Tensor, Sums]:
        """Return the weighted loss summed over the N positions, and the unweighted detached sums of every term.

        progress: how far the run is, 0 to 1, for weights and temperatures that change. The second also holds the loss
        itself, and with a teacher teacher_nll (summed nats) and agreement (positions of equal top-1).
        """
        with self.fused:
            return self._forward(batch, teacher, progress)

    def _forward(
        self, batch: dict[str, Tensor], teacher: Output | None, progress: float
    ) -> tuple[Tensor, Sums]:
        student = self.task.run(self.student, batch, self.want)
        own = [terms.at(term, progress) for term in self.scheme.terms]
        if self.peers:
            total, sums = self._among_peers(batch, student, own, progress)
        else:
            total, sums = over_rows(student, teacher, self.provider, own, self.task.objectives)
        for term, name, pairs in zip(own, names_of(own), self.pairs, strict=True):
            if kind_of(term) != "logits":
                over = self._over_pairs if pairs else self._over_spans
                value = over(term, pairs, student, teacher)
                total = total + term.weight * value
                known = None if teacher is None else teacher.known
                sums[name] = _summed(value, len(student.rows) if known is None else known.sum())
        for block in self.exits:
            loss, seen = self._over_exit(block, student, progress)
            total, sums = total + loss, {**sums, **seen}
        if self.penalty is not None:  # a mean per step, as the other terms are after the division
            value = self.penalty() * len(student.rows)
            total = total + value
            sums["orthogonality"] = _summed(value, len(student.rows))
        return total, {"loss": _summed(total, len(student.rows)), **sums}

    # ---- what is read

    def _pairs(self, term: Term) -> Pairs:
        kind = kind_of(term)
        states = kind in ("features", "hidden")
        if term.tokens == "first" and not (states and term.layers != "pooled" and self.task.all_tokens):
            raise RecipeError(
                f"tokens: first has nothing to pick for {term.objective}: it is for hidden states of blocks, of tasks "
                "whose models are read at all tokens of a text",
                "leave tokens out",
            )
        if kind in ("logits", "spans"):
            return ()
        if not self.provider.depth:
            raise RecipeError(
                f"{term.objective} compares hidden states, and this teacher gives answers only",
                "take response terms, or a live teacher (a cache can hold hidden states of chosen layers)",
            )
        if kind == "embeddings":
            return ((0, 0),)
        if term.layers == "pooled" and not (self.task.pooled and states):
            raise RecipeError(
                f"layers: pooled is the vector that a classifier reads a text's label off: {term.objective} has none",
                "name blocks",
            )
        return layer_pairs(term.layers, self.task.depth(self.student), self.provider.depth)

    def _want(self, side: int, layers: tuple[int, ...] = (), answers: bool = True) -> Want:
        """What the terms read of the student (side 0) or of the teacher (side 1)."""
        blocks: dict[str, set[int]] = {kind: set() for kind in PAIRED}
        for term, pairs in zip(self.scheme.terms, self.pairs, strict=True):
            if pairs:
                blocks[kind_of(term)] |= {pair[side] for pair in pairs}
        hidden = blocks["features"] | blocks["hidden"] | set(layers)
        return Want(
            layers=tuple(sorted(hidden)), attention=tuple(sorted(blocks["attention"])),
            states=tuple(sorted(blocks["states"])), embeddings=bool(blocks["embeddings"]),
            answers=answers or POOLED in hidden,
        )  # fmt: skip

    def _projections(self) -> dict[str, nn.Module]:
        """A learned map to the teacher's width where a term compares number by number and widths differ, or asks."""
        made: dict[str, nn.Module] = {}
        width = self.task.width(self.student)
        for term, pairs in zip(self.scheme.terms, self.pairs, strict=True):
            kind = kind_of(term)
            if kind not in PROJECTED or (self.provider.width == width and term.projection != "identity"):
                continue
            dtype = torch.promote_types(self.student.get_input_embeddings().weight.dtype, torch.float32)
            for name in sorted({_key(kind, block) for block, _ in pairs} - made.keys()):
                made[name] = self.task.projection(self.student, self.provider.width, term.projection, dtype)
        return made

    # ---- the terms

    def _over_pairs(self, term: Term, pairs: Pairs, student: Output, teacher: Output) -> Tensor:
        """Mean over the layer pairs of the sum over positions; where texts count, of their means over tokens."""
        kind, objective = kind_of(term), resolve(OBJECTIVES, term.objective)
        known = teacher.known
        groups, shares, tokens = _belonging(student, pairs, term.tokens)
        extra = {"examples": _those(groups, known)} if "examples" in reads(term) else {}
        values = []
        for s, t in pairs:
            own = _those(_read(student, term, kind, s), known)
            if _key(kind, s) in self.projections and kind in PROJECTED:
                projection = self.projections[_key(kind, s)]
                own = projection(own.to(projection.weight.dtype))
            told = _those(_read(teacher, term, kind, t), known)
            if len(own) != len(told):
                raise ModelError(
                    f"{term.objective} compares {len(own)} states of the student with {len(told)} of the teacher: they "
                    "cut what they read differently",
                    "give both the same patch_length and stride, or leave the weight at 0",
                )
            given = {f"student_{kind}": own, f"teacher_{kind}": told, **extra}
            loss = objective(**given, **term.options)
            values.append((loss * _those(shares, known) / _those(tokens, known)).sum())
        return torch.stack(values).mean()

    def _over_spans(self, term: Term, _pairs: Pairs, student: Output, teacher: Output) -> Tensor:
        """The sum over texts of several tokens, of a teacher with another tokenizer."""
        objective = resolve(OBJECTIVES, term.objective)
        if teacher.spans is None:
            raise RecipeError(
                f"{term.objective} compares texts that two tokenizers cut differently; this teacher has no such",
                "teacher.kind=across, not shuffled",
            )
        own = teacher.spans.student(student.rows, student.head)
        return objective(own, teacher.spans.teacher(), **term.options).sum()

    def _over_exit(self, block: str, student: Output, progress: float) -> tuple[Tensor, Sums]:
        """The terms of one exit, taught by the end; the weights make it a mean over the exits."""
        listed = [scaled(terms.at(term, progress), 1 / len(self.exits)) for term in self.scheme.exit_terms]
        here = replace(student, rows=_normed(self.exits[block], student.features[int(block)]))
        loss, seen = over_rows(
            here, _frozen(student, self.provider), self.provider, listed, self.task.objectives
        )
        return loss, {
            f"exit_{block}_{name}": value for name, value in seen.items() if name in names_of(listed)
        }

    def _among_peers(
        self, batch: dict[str, Tensor], student: Output, own: list[Term], progress: float
    ) -> tuple[Tensor, Sums]:
        """Every model hears the others in turn; its loss and its figures are the means over them."""
        said = [student, *(self.task.run(peer, batch, Want()) for peer in self.peers)]
        total, sums = 0.0, {}
        for i, model in enumerate(said):
            listed = own if i == 0 else [terms.at(term, progress) for term in self.scheme.peer_terms]
            others = [_frozen(other, self.provider) for j, other in enumerate(said) if j != i]
            if not any(reads_teacher(term) for term in listed):
                others = [None]  # it learns from the data alone
            for other in others:
                heard = [scaled(term, 1 / len(others)) for term in listed]
                loss, seen = over_rows(model, other, self.provider, heard, self.task.objectives)
                total = total + loss
                for name, value in seen.items():
                    if i == 0 or name in names_of(listed):
                        name = f"peer_{i}_{name}" if i else name
                        sums[name] = sums.get(name, 0.0) + value / len(others)
        return total, sums


def _belonging(output: Output, pairs: Pairs, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of each compared vector: its sequence, that sequence's positions that count, and its compared vectors.

    So a sequence counts as in the other terms, whatever its length. Where a text has one vector, pooled or of its
    first token, these are compared within the batch.
    """
    ones = torch.ones_like(output.examples)
    if output.tokens is None:
        return output.examples, ones, ones
    if pairs == ((POOLED, POOLED),):
        return torch.zeros_like(output.examples) if output.together is None else output.together, ones, ones
    tokens = output.tokens.bincount()
    shares = output.examples.bincount(minlength=len(tokens))
    if which == "first":
        texts = output.tokens[output.first_tokens]
        return torch.zeros_like(texts), shares[texts], torch.ones_like(texts)
    return output.tokens, shares[output.tokens], tokens[output.tokens]


def _summed(value: Tensor, count: int | Tensor) -> Tensor:
    """A sum and the positions that it goes over, as in Sums."""
    return torch.stack([value.detach(), torch.as_tensor(count, dtype=value.dtype, device=value.device)])


def _key(kind: str, block: int) -> str:
    """The projection's name in checkpoints."""
    return kind if kind == "embeddings" else str(block)


def _read(output: Output, term: Term, kind: str, block: int) -> Tensor | dict[str, Tensor]:
    """What a term compares of one block."""
    if kind == "embeddings":
        return output.embeddings
    found = {"attention": output.attention, "states": output.states}.get(kind, output.features)[block]
    return found[output.first_tokens.to(found.device)] if term.tokens == "first" else found


def _those(value: Any, known_N: Tensor | None) -> Any:
    """The positions that the teacher has an answer for: a relation to another one would mean nothing."""
    if known_N is None:
        return value
    return {key: x[known_N] for key, x in value.items()} if isinstance(value, dict) else value[known_N]


def _frozen(output: Output, provider: Provider) -> Output:
    """A student's own answer as a teacher's: of the columns that name a token, and nothing flows back through it."""

    def head(rows_nD: Tensor) -> Tensor:
        with torch.no_grad():
            return provider.view(output.head(rows_nD))

    return replace(output, rows=output.rows.detach(), head=head)


def _normed(norm: nn.Module, x_ND: Tensor) -> Tensor:
    """The norm in its own precision, the answer in that of the model."""
    return norm(x_ND.to(next(norm.parameters()).dtype)).to(x_ND.dtype)


def _exits(task, student: nn.Module, scheme: Scheme) -> nn.ModuleDict:
    """A norm of its own for every exit, begun as the final one; the head is shared. Raises RecipeError."""
    if scheme.exits is None:
        return nn.ModuleDict()
    if not task.writes:
        raise RecipeError(
            "early exits are for models that continue texts", "self_distillation by: average fits all"
        )
    depth = task.depth(student)
    check_exits(scheme.exits, depth)
    blocks = scheme.exits or [(depth - 1) // 2]
    return nn.ModuleDict({str(block): _in_float32(final_norm_of(student)) for block in sorted(set(blocks))})


def _in_float32(norm: nn.Module) -> nn.Module:
    """Half precision swallows small steps."""
    for weight in norm.parameters():
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    return norm
