"""A teacher that has the student's tokens under other numbers, as OPT has GPT-2's.

Shapes: B sequences, T the student's tokens, N positions that count, V vocabulary, C tokens that both know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.data import columns
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models import loading
from llm_finetuner.models.vocabulary import Vocabulary, pair
from llm_finetuner.output import Columns, Output, Want, select
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context, Provider

IGNORE = -100
END = 2**31  # behind the last position of any row
MOST = 0.95  # of the larger vocabulary: the few others are masked, so what is masked must be little
SAMPLE = 200  # rows whose text is written by both tokenizers
ACROSS = "take the teacher with kind: across, which needs no common tokens"


@dataclass(frozen=True)
class Alignment:
    """Which of the teacher's tokens is which of the student's.

    table: [V student] the teacher's number, or -1. shared: C. same: every token of the student's has the same number.
    """

    student: Vocabulary
    teacher: Vocabulary
    table: Tensor
    sentence: str

    @property
    def shared(self) -> int:
        return int((self.table >= 0).sum())

    @property
    def same(self) -> bool:
        return bool((self.table == torch.arange(len(self.table))).all())

    @property
    def columns(self) -> Columns:
        """The student's columns that are shared: a count where they are the first ones, else the numbers [C]."""
        ids = (self.table >= 0).nonzero()[:, 0]
        return len(ids) if len(ids) == 0 or int(ids[-1]) == len(ids) - 1 else ids

    def labels_shared(self, rows: Any) -> float:
        """Share of the counted labels that the teacher knows."""
        known = counted = 0
        for labels in columns.flat(rows, "labels"):
            labels = labels[labels != IGNORE]
            known += int((self.table.numpy()[labels[labels < len(self.table)]] >= 0).sum())
            counted += len(labels)
        return known / max(1, counted)

    def disagreement(self, rows: Any) -> str | None:
        """A text of the rows that the two tokenizers cut otherwise, or None: equal tokens may be merged otherwise."""
        every = max(1, len(rows) // SAMPLE)
        sample = rows.select(range(0, len(rows), every)).with_format(None)["input_ids"]
        texts = [self.student.write(ids).decode(errors="ignore") for ids in sample]
        ours, theirs = self.student.encode(texts), self.teacher.encode(texts)
        for text, own, other in zip(texts, ours, theirs, strict=True):
            if self.table[torch.tensor(own, dtype=torch.long)].tolist() != other:
                return text
        return None


def align(student_tokenizer: Any, teacher_tokenizer: Any) -> Alignment:
    """Compare two tokenizers token by token: special tokens by role, others by their bytes. Raises ModelError."""
    student, teacher = Vocabulary(student_tokenizer), Vocabulary(teacher_tokenizer)
    pairing = pair(student, teacher)
    known, moved = len(pairing.shared), sum(pairing.table[i] != i for i in pairing.shared)
    ours = sum(string is not None for string in student.strings)
    return Alignment(
        student, teacher, torch.tensor(pairing.table),
        f"the teacher knows {known:,} of the student's {ours:,} tokens, {moved:,} of them under other numbers",
    )  # fmt: skip


def aligned_teacher(model: nn.Module, tokenizer: Any, name: str, context: Context) -> "Aligned":
    """A live model that has the student's tokens under other numbers. Raises ModelError."""
    if context.tokenizer is None or tokenizer is None:
        raise ModelError("tokens are aligned by name", "give both models with their tokenizers")
    loading.check_head(model, name)
    alignment = align(context.tokenizer, tokenizer)
    if alignment.shared < MOST * max(len(alignment.student), len(alignment.teacher)):
        raise ModelError(f"student and teacher have different tokens: {alignment.sentence}", ACROSS)
    context.note(alignment.sentence)
    return Aligned(Live(context.task, model), alignment)


class Aligned(Provider):
    """`inner` reads the student's rows in its own numbers, and answers in the student's order of tokens.

    A BOS is put in front of a row where the teacher's tokenizer does so by itself and the row has none; the student's
    becomes the teacher's, and is left out where the teacher knows none. The positions that count stay the same.
    Tokens that only one of the two knows are masked on both sides, as padded columns are. Rows of the data hold none
    (`check`); where the student writes one itself, the teacher has no answer from there on.
    """

    def __init__(self, inner: Provider, alignment: Alignment):
        """inner: answers in all of the teacher's own columns."""
        self.inner, self.alignment = inner, alignment
        self.columns = alignment.columns
        self.ids_C = alignment.table[alignment.table >= 0]
        self.numbers = {ours: theirs for ours, theirs in enumerate(alignment.table.tolist()) if theirs >= 0}
        self.width, self.depth, self.parameters = inner.width, inner.depth, inner.parameters
        self.positions = inner.positions

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        student, teacher = self.alignment.student, self.alignment.teacher
        dropped = student.front is not None and "bos" not in teacher.roles
        if want.attention and (teacher.front is not None or dropped):
            raise RecipeError(
                "attention maps of a teacher that reads another BOS have one token more or less",
                "choose another objective, or a teacher with the student's tokenizer",
            )
        self.inner.prepare(want, terms)

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        home = batch["input_ids"].device
        translated, until_B = self._translated(batch)
        said = self.inner({name: x.to(home) for name, x in translated.items()}, want)

        def head(rows_nD: Any) -> Tensor:
            logits_nV = said.head(rows_nD)
            return select(logits_nV, self.ids_C.to(logits_nV.device))

        counted_BT = batch["labels"][:, 1:] != IGNORE
        read_BT = torch.arange(counted_BT.shape[1], device=home) < until_B.to(home)[:, None]
        return replace(said, head=head, known=None if read_BT.all() else read_BT[counted_BT])

    def check(self, rows: Any) -> None:
        """Raises DataError for tokens that the teacher does not know, and where it would cut the text otherwise."""
        student, table = self.alignment.student, self.alignment.table.numpy()
        size = max(len(table), 1 + max(int(ids.max()) for ids in columns.flat(rows, "input_ids")))
        counts = sum(np.bincount(ids, minlength=size) for ids in columns.flat(rows, "input_ids"))
        lost = np.flatnonzero((counts > 0) & (np.pad(table, (0, size - len(table)), constant_values=-1) < 0))
        lost = [int(i) for i in lost if int(i) != student.roles.get("bos")]
        if lost:
            named = ", ".join(student.name(i) for i in sorted(lost, key=lambda i: -counts[i])[:3])
            raise DataError(
                f"the teacher does not know {len(lost)} tokens that the rows hold "
                f"{int(counts[lost].sum()):,} times: {named}",
                ACROSS,
            )
        self._check_front(rows)
        text = self.alignment.disagreement(rows)
        if text is not None:
            raise DataError(
                f"the two tokenizers know the same tokens but cut a text otherwise: {text[:80]!r}", ACROSS
            )
        self._check_inner(rows)

    def _check_front(self, rows: Any) -> None:
        bos = self.alignment.student.roles.get("bos")
        if bos is None or "bos" in self.alignment.teacher.roles:
            return
        ids, labels = (np.concatenate(list(columns.flat(rows, name))) for name in ("input_ids", "labels"))
        sizes = columns.lengths(rows)
        starts = (np.cumsum(sizes) - sizes)[sizes > 1]
        if ((ids[starts] == bos) & (labels[starts + 1] != IGNORE)).any():
            raise DataError(
                "the first token after BOS counts, but the teacher knows no BOS to predict it from",
                "count completions only (loss_on: completion)",
            )

    def _check_inner(self, rows: Any) -> None:
        """Let the teacher check the longest row, in its own numbers; its numbers all exist."""
        import datasets

        row = rows[int(columns.lengths(rows).argmax())]
        batch = {name: torch.tensor([list(row[name])]) for name in ("input_ids", "attention_mask", "labels")}
        translated, _ = self._translated(batch)
        self.inner.check(datasets.Dataset.from_dict({name: x.tolist() for name, x in translated.items()}))

    def _translated(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The rows in the teacher's numbers, and up to where in each it can answer, in the student's positions: [B]."""
        teacher, bos = self.alignment.teacher, self.alignment.student.roles.get("bos")
        rows, until = [], []
        for ids, mask, labels in zip(
            *(batch[name].tolist() for name in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            labels[0] = IGNORE  # nothing predicts it, also where something is put in front
            begun = ids[0] == bos
            told = [self.numbers.get(i, -1) for i in ids[: sum(mask)]]
            if begun:
                told[0] = teacher.roles.get("bos", -1)
            if begun and told[0] < 0 and labels[1:2] == [IGNORE]:
                told, mask, labels = told[1:], mask[1:], labels[1:]
                until.append(_first(told) + 1)
            else:
                until.append(_first(told))
                if teacher.front is not None and not begun:
                    told, mask, labels = [teacher.front, *told], [1, *mask], [IGNORE, *labels]
            rows.append(([max(i, 0) for i in told], mask, labels))
        width = max(2, *(len(mask) for _, mask, _ in rows))

        def padded(which: int, value: int) -> Tensor:
            return torch.tensor([row[which] + [value] * (width - len(row[which])) for row in rows])

        ids_BT, mask_BT, labels_BT = padded(0, 0), padded(1, 0), padded(2, IGNORE)
        # "packed" says where the student's rows stand, and these have other lengths
        rest = {name: x for name, x in batch.items() if name != "packed"}
        said = {**rest, "input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        return said, torch.tensor(until)


def _first(told: list[int]) -> int:
    """Where the first token stands that the teacher does not know; behind everything where it knows all."""
    return told.index(-1) if -1 in told else END
