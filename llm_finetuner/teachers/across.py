"""A teacher with another tokenizer: it reads the same text, and is heard where both tokenizers come to an end.

Shapes: B sequences, T the student's tokens, U the teacher's, N positions that count, M positions of the teacher that
are read, D hidden width, V vocabulary, G places that the tokens of both are brought to.

Where both end at the same byte, the distributions over what comes next are compared, each token brought to the place
of a shared one (models/vocabulary.py:homes), with one place for what is left over. Between such places the probability
of the whole span of text is compared (objectives/across.py:span_kl). Other positions are not known: they count 0 in
the sum and 1 in the denominator, so that a term's weight means the same with every pair of tokenizers.
A temperature acts on the distribution over the places, as it does on cached top-k targets: with equal tokenizers it is
the usual one, else what is brought together softens together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_finetuner.data import columns
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models import loading
from llm_finetuner.models.vocabulary import Vocabulary, homes, pair
from llm_finetuner.named_models import load_teacher
from llm_finetuner.objectives.across import fold, uld
from llm_finetuner.output import Output, Want, at_least_float32
from llm_finetuner.recipe import Teacher
from llm_finetuner.registry import OBJECTIVES, resolve
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.reading import IGNORE, plan
from llm_finetuner.teachers.spans import line_up
from llm_finetuner.terms import reads

SAMPLE = 200  # rows of a report
UNREADABLE = 0.05  # of these rows, at most
COMPARISONS = ("shared", "sorted")


def across(spec: Teacher, context: Context, *, compare: str = "shared") -> "Across":
    """The model that a recipe names, with its tokenizer. Raises FinetunerError."""
    model = load_teacher(spec, context.device)
    return across_teacher(model, loading.load_tokenizer(spec.name), spec.name, context, compare=compare)


def across_teacher(
    model: torch.nn.Module, tokenizer: Any, name: str, context: Context, *, compare: str = "shared"
) -> "Across":
    """A live model whose tokenizer is not the student's. Raises FinetunerError.

    compare: "shared" brings both to the tokens that they share; "sorted" hands out the plain logits of both, for uld.
    """
    if compare not in COMPARISONS:
        raise RecipeError(f"compare must be one of {', '.join(COMPARISONS)}, got {compare!r}")
    if context.tokenizer is None or tokenizer is None:
        whose = "student" if context.tokenizer is None else "teacher"
        raise ModelError(
            f"text is compared across tokenizers, and the {whose}'s was not given",
            "give both models with their tokenizers",
        )
    loading.check_head(model, name)
    provider = Across(
        Live(context.task, model), Vocabulary(context.tokenizer), Vocabulary(tokenizer),
        compare=compare, positions=loading.positions_of(model),
    )  # fmt: skip
    context.note(provider.sentence)
    return provider


class Across(Provider):
    """`live` answers in its own tokens; what comes out is in terms of both."""

    mixes = False

    def __init__(
        self,
        live: Provider,
        student: Vocabulary,
        teacher: Vocabulary,
        *,
        compare: str = "shared",
        positions: int | None = None,
    ):
        """positions: the most tokens that the teacher can read; what lies behind is not known."""
        self.live, self.student, self.teacher = live, student, teacher
        self.compare, self.positions = compare, positions
        self.width, self.depth, self.parameters = live.width, live.depth, live.parameters
        self.pairing = pair(student, teacher)
        own, theirs = homes(student, teacher, self.pairing)
        self.count = max(*own, *theirs) + 1
        self.own, self.theirs = torch.tensor(own), torch.tensor(theirs)
        self.sentence = (
            f"the tokenizers share {len(self.pairing.shared):,} tokens: "
            f"{len(self.pairing.shared) / len(student):.0%} of the student's {len(student):,}, "
            f"{len(self.pairing.shared) / len(teacher):.0%} of the teacher's {len(teacher):,}"
        )

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        if want.attention:
            raise RecipeError(
                "attention maps of a teacher with another tokenizer look at other tokens",
                "choose another objective, or a teacher with the student's tokenizer",
            )
        for term in terms:
            sorts = resolve(OBJECTIVES, term.objective, "objective") is uld
            if "teacher" in reads(term) and sorts != (self.compare == "sorted"):
                fitting = "sorted" if sorts else "shared"
                raise RecipeError(
                    f"{term.objective} cannot be told from compare: {self.compare}",
                    f"give the teacher compare: {fitting}",
                )
        self.live.prepare(want, terms)

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        home = batch["input_ids"].device
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]
        lines = line_up(rows, self.student, self.teacher, self.pairing)
        reading = plan(lines, rows, batch["labels"], self.positions)
        said = self.live(reading.batch(lines, self.positions, home), want)
        at_N = reading.at_N.to(home)

        def pick(x_MD: Tensor) -> Tensor:
            return x_MD[at_N.to(x_MD.device)]

        counted_BT = batch["labels"][:, 1:] != IGNORE
        examples, targets = counted_BT.nonzero()[:, 0], batch["labels"][:, 1:][counted_BT]
        if "sampled" in batch:  # what the student wrote itself is no ground truth
            targets = torch.where(batch["sampled"][examples], IGNORE, targets)
        return Output(
            rows=pick(said.rows),
            head=lambda rows_nD: self._heard(said.head(rows_nD)),
            features={block: pick(x) for block, x in said.features.items()},
            states={block: {role: pick(x) for role, x in of.items()} for block, of in said.states.items()},
            embeddings=None if said.embeddings is None else pick(said.embeddings),
            targets=targets,
            examples=examples,
            known=reading.known_N.to(home),
            spans=reading.spans(said, home, len(self.student), len(self.teacher)),
        )

    def view(self, logits_nV: Tensor) -> Tensor:
        """The student's side of the comparison: [n, G] by place, or [n, V] as they are."""
        return self._seen(logits_nV, self.own)

    def _heard(self, logits_nV: Tensor) -> Tensor:
        return self._seen(logits_nV, self.theirs)

    def _seen(self, logits_nV: Tensor, places_V: Tensor) -> Tensor:
        places_V = places_V.to(logits_nV.device)
        if self.compare == "shared":
            return fold(logits_nV, places_V, self.count)
        width = max(len(self.student), len(self.teacher))
        named = torch.where(places_V >= 0, at_least_float32(logits_nV)[:, : len(places_V)], -torch.inf)
        return torch.nn.functional.pad(named, (0, width - named.shape[1]), value=-torch.inf)

    def place(self, targets_n: Tensor) -> Tensor:
        """The places of the student's target tokens; -100 for none, and where columns name no token of both."""
        if self.compare == "sorted":
            return torch.full_like(targets_n, IGNORE)
        places_V = self.own.to(targets_n.device)
        inside = (targets_n >= 0) & (targets_n < len(places_V))
        return torch.where(inside, places_V[targets_n.clamp(0, len(places_V) - 1)], IGNORE)

    def check(self, rows: Any) -> None:
        """Raises DataError for special tokens that the teacher lacks and for text that it cannot read."""
        counts = np.zeros(len(self.student), dtype=np.int64)
        for ids in columns.flat(rows, "input_ids"):
            counts += np.bincount(ids, minlength=len(counts))[: len(counts)]
        table = np.asarray(self.pairing.table)
        special = np.asarray([piece is None for piece in self.student.pieces])
        front = np.asarray([i == self.student.roles.get("bos") for i in range(len(counts))])
        lost = np.flatnonzero((counts > 0) & special & ~front & (table < 0))
        if len(lost):
            named = ", ".join(self.student.name(int(i)) for i in lost[:3])
            raise DataError(
                f"the teacher has none of {len(lost)} special tokens that the rows hold "
                f"{int(counts[lost].sum()):,} times: {named}",
                "train on text without them, or take a teacher with the same markup",
            )
        told = report(self, rows)
        if told["unreadable"] > UNREADABLE:
            raise DataError(
                f"the teacher's tokenizer changes the text of {told['unreadable']:.0%} of the rows",
                "it drops or rewrites characters (case, accents, unknown signs): take another teacher",
            )
        if not told["aligned"]:
            raise DataError(
                f"the two tokenizers never meet where a position counts; {self.sentence}",
                "take another teacher",
            )


def report(provider: Across, rows: Any) -> dict[str, Any]:
    """How far the two tokenizers go together on a sample of prepared rows.

    shared: tokens; labels: share of the counted labels that are shared tokens; aligned: share of the counted positions
    where both are compared; spans: spans of several tokens a row; unreadable: share of rows; sentence: all of it.
    """
    every = max(1, len(rows) // SAMPLE)
    sample = rows.select(range(0, len(rows), every)).with_format(None)[:]
    labels = sample["labels"]
    ids = [row[: sum(m)] for row, m in zip(sample["input_ids"], sample["attention_mask"], strict=True)]
    lines = line_up(ids, provider.student, provider.teacher, provider.pairing)
    table = provider.pairing.table
    counted = [[i for i in range(len(row) - 1) if row[i + 1] != IGNORE] for row in labels]
    total = max(1, sum(map(len, counted)))
    shared = sum(table[row[i + 1]] >= 0 for row, places in zip(labels, counted, strict=True) for i in places)
    met = [{i for i, _ in line.meets} for line in lines]
    aligned = sum(i in places for places, of in zip(met, counted, strict=True) for i in of)
    told: dict[str, Any] = {
        "shared": len(provider.pairing.shared),
        "student_tokens": len(provider.student),
        "teacher_tokens": len(provider.teacher),
        "labels": shared / total,
        "aligned": aligned / total,
        "spans": sum(len(line.spans) for line in lines) / max(1, len(lines)),
        "unreadable": sum(not line.readable for line in lines) / max(1, len(lines)),
    }
    told["sentence"] = (
        f"{provider.sentence}; {told['labels']:.0%} of the labels are shared tokens, and at {told['aligned']:.0%} "
        "of the positions that count both tokenizers come to an end (the others learn nothing from the teacher)"
    )
    return told
