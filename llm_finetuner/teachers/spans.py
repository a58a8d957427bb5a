"""One text as two tokenizers write it: where both come to an end, and the spans of text in between."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llm_finetuner.models.vocabulary import Pairing, Vocabulary

LONGEST = 16  # tokens of a span, on either side: the probability of a longer one says nothing
BROKEN = re.compile(
    "[\udc80-\udcff]"
)  # a byte that belongs to no whole character, as surrogateescape writes it


@dataclass
class Line:
    """One row as the teacher reads it. Places are bytes of the row's text; a special token counts as one.

    meets: (i, j) where the student's token i and the teacher's j end at the same place, and what comes next can be
    compared. spans: (i, i2, j, j2): the student's tokens i+1..i2 and the teacher's j+1..j2 write the same bytes, and
    are not one and the same token. readable: False where the teacher's tokenizer changes the text.
    """

    ids: list[int] = field(default_factory=list)
    meets: list[tuple[int, int]] = field(default_factory=list)
    spans: list[tuple[int, int, int, int]] = field(default_factory=list)
    readable: bool = True


@dataclass
class _Side:
    """Where each token ends; `blank`: tokens that lost a blank their tokenizer puts before a text."""

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    sizes: list[int] = field(
        default_factory=list
    )  # written so far: less than `ends` where bytes were not shown
    blank: set[int] = field(default_factory=set)

    def add(self, token: int, end: int, size: int) -> None:
        self.ids.append(token)
        self.ends.append(end)
        self.sizes.append(size + (self.sizes[-1] if self.sizes else 0))


def line_up(
    rows: Sequence[list[int]], student: Vocabulary, teacher: Vocabulary, pairing: Pairing
) -> list[Line]:
    """Write the text of each row of the student's tokens anew in the teacher's, and find where the two meet.

    A BOS in front is neither's text: the teacher's is put there where its tokenizer does so by itself, or where the
    student has one and the teacher knows one. Other special tokens become those of the same role or name.
    Bytes that make no whole character (a row may be cut inside one) are not shown to the teacher. It reads a row up to
    the first special token that it does not know, which a student may write of its own accord.
    """
    sides = [_student_side(row, student) for row in rows]
    parts = [_known(_parts(side, student), pairing) for side in sides]
    texts = [text for row in parts for _, text, _ in row if text]
    coded = iter(teacher.encode(texts))
    return [
        _line(side, row, coded, student, teacher, pairing) for side, row in zip(sides, parts, strict=True)
    ]


def _student_side(row: list[int], student: Vocabulary) -> _Side:
    side, at = _Side(), 0
    text_from = 1 if _has_front(row, student) else 0
    for i, token in enumerate(row):
        piece = student.pieces[token] if token < len(student) else None
        size = 0 if i < text_from else 1 if piece is None else len(piece)
        if i == text_from and student.blank and piece is not None and piece[:1] == b" ":
            size -= 1
            side.blank.add(i)
        at += size
        side.add(token, at, size)
    return side


def _has_front(row: list[int], vocabulary: Vocabulary) -> bool:
    return "bos" in vocabulary.roles and row[:1] == [vocabulary.roles["bos"]]


Part = tuple[
    int, str, list[int]
]  # a special token or -1, the text, and where each of its bytes stands (and the end)


def _parts(side: _Side, student: Vocabulary) -> list[Part]:
    """The row's text between special tokens."""
    parts: list[Part] = []
    data, start = b"", 0
    first = 1 if _has_front(side.ids, student) else 0
    for i in range(first, len(side.ids)):
        token, end = side.ids[i], side.ends[i]
        piece = student.pieces[token] if token < len(student) else None
        if piece is None:
            parts += [_part(data, start)] if data else []
            parts.append((token, "", [end - 1, end]))
            data, start = b"", end
        else:
            data += piece[1:] if i in side.blank else piece
    return parts + ([_part(data, start)] if data else [])


def _known(parts: list[Part], pairing: Pairing) -> list[Part]:
    """The parts up to the first special token that the teacher does not know."""
    table = pairing.table
    lost = (n for n, (i, _, _) in enumerate(parts) if i >= len(table) or (i >= 0 and table[i] < 0))
    return parts[: next(lost, None)]


def _part(data: bytes, start: int) -> Part:
    text = data.decode(errors="surrogateescape")
    if not BROKEN.search(text):
        return -1, text, list(range(start, start + len(data) + 1))
    kept, at = [], start
    for letter in text:
        size = len(letter.encode(errors="surrogateescape"))
        if not BROKEN.match(letter):
            kept += range(at, at + size)
        at += size
    return -1, BROKEN.sub("", text), [*kept, kept[-1] + 1 if kept else start]


def _line(
    side: _Side,
    parts: list[Part],
    coded: Iterator[list[int]],
    student: Vocabulary,
    teacher: Vocabulary,
    pairing: Pairing,
) -> Line:
    other, readable, at = _Side(), True, 0
    front = teacher.front
    if front is None and _has_front(side.ids, student):
        front = teacher.roles.get("bos")
    if front is not None:
        other.add(front, 0, 0)
    for special, text, places in parts:
        if special >= 0:
            other.add(pairing.table[special], places[1], 1)
        elif text:
            ids = next(coded)
            written = teacher.write(ids)
            blank = written == b" " + text.encode()
            readable &= blank or written == text.encode()
            at = 0
            for token in ids:
                size = len(teacher.pieces[token] or b"")
                if blank and at == 0 and size:
                    size, blank = size - 1, False
                    other.blank.add(len(other.ids))
                at += size
                other.add(token, places[at] if at < len(places) else -1, size)
    if not readable:
        return Line(other.ids, readable=False)
    return Line(other.ids, *_meet(side, other, pairing))


def _meet(side: _Side, other: _Side, pairing: Pairing) -> tuple[list, list]:
    """Where the two come to an end together, and what lies between."""
    own_at = {end: i for i, end in enumerate(side.ends)}  # of several tokens that end at one place, the last
    other_at = {end: j for j, end in enumerate(other.ends)}
    common = [(i, other_at[end]) for end, i in own_at.items() if end in other_at]
    meets, spans = [], []
    for (i, j), following in zip(common, [*common[1:], None], strict=True):
        has_next = i + 1 < len(side.ids) and j + 1 < len(other.ids)
        if has_next and (i + 1 in side.blank) == (j + 1 in other.blank):
            meets.append((i, j))
        if following is None:
            continue
        i2, j2 = following
        alone = i2 == i + 1 and j2 == j + 1 and pairing.table[side.ids[i2]] == other.ids[j2]
        whole = side.sizes[i2] - side.sizes[i] == other.sizes[j2] - other.sizes[j]
        if whole and not alone and max(i2 - i, j2 - j) <= LONGEST:
            spans.append((i, i2, j, j2))
    return meets, spans
