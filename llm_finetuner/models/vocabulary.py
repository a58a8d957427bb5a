"""A tokenizer seen as bytes: what each token writes, and which tokens of two vocabularies are the same one.

Letters: V tokens of a vocabulary (ids without a token included), C tokens that two vocabularies share.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_finetuner.errors import ModelError

BLANK = "\u2581"  # how SentencePiece writes a blank
ROLES = ("eos", "bos", "pad")  # the order in which special tokens find their partner
PROBED = 1000  # tokens of a vocabulary, about
STRANGE = "Na\u00efve  \u00c5NGSTR\u00d6M\t\u4e2d\u6587's"  # accents, blanks, a script without blanks


class Vocabulary:
    """The bytes that every token stands for, read from the tokenizer's own decoder, never by decoding prefixes.

    pieces: [V] bytes, or None for special tokens and ids without a token. roles: eos, bos, pad -> id. front: the BOS
    that the tokenizer puts before a text by itself, or None. blank: whether it also puts a blank there.
    Raises ModelError for tokenizers whose tokens do not stand for bytes of the text (WordPiece, slow ones).
    """

    def __init__(self, tokenizer: Any):
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} does not tell the bytes of its tokens", "take its fast version"
            )
        from tokenizers import Tokenizer

        self.core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.core.encode_special_tokens = True  # "</s>" written in a text is text
        self.core.no_truncation()
        self.core.no_padding()
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        strings = tokenizer.get_vocab()
        self.strings: list[str | None] = [None] * (max(strings.values()) + 1)
        for string, i in strings.items():
            self.strings[i] = string
        read = _reader(self.core)
        self.pieces: list[bytes | None] = [
            None
            if string is None or (i in special and not _is_byte(string))
            else string.encode()
            if i in added and not _is_byte(string)
            else read(string)
            for i, string in enumerate(self.strings)
        ]
        ids = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id}
        self.roles = {role: i for role, i in ids.items() if i is not None}
        bos = self.roles.get("bos")
        self.front = bos if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else None
        self.blank = self.write(self.encode(["x"])[0])[:1] == b" "

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, nothing put around them."""
        return [coded.ids for coded in self.core.encode_batch(list(texts), add_special_tokens=False)]

    def write(self, ids: Sequence[int]) -> bytes:
        """The bytes of ordinary tokens side by side; what stands for no bytes is left out."""
        return b"".join(self.pieces[i] or b"" for i in ids)

    def name(self, i: int) -> str:
        return repr(self.strings[i]) if i < len(self) and self.strings[i] is not None else f"number {i}"

    def beginnings(self, texts: Sequence[bytes]) -> list[int | None]:
        """The token with which each text begins where it follows other text; None where that cannot be told.

        A line break goes in front, for some tokenizers treat the start of a text otherwise.
        """
        coded = self.encode(["\n" + (_decoded(text) or "") for text in texts])
        found: list[int | None] = []
        for text, ids in zip(texts, coded, strict=True):
            written = self.write(ids)
            start = len(written) - len(text)
            at, first = 0, None
            for i in ids if written in (b"\n" + text, b" \n" + text) else ():
                if at == start and self.pieces[i]:
                    first = i
                    break
                at += len(self.pieces[i] or b"")
            found.append(first)
        return found


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:  # a token may hold a part of a character
        return None


def _is_byte(string: str) -> bool:
    """<0x0A>: a byte of a character that SentencePiece has no token for."""
    return len(string) == 6 and string.startswith("<0x") and string.endswith(">")


def _reader(core: Any):
    """How the decoder reads a token: str -> bytes."""
    decoder = json.loads(core.decoder.__getstate__()) if core.decoder is not None else {"type": "nothing"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        table = byte_letters()
        return lambda string: (
            bytes(table[c] for c in string) if all(c in table for c in string) else string.encode()
        )
    swaps = [step for step in steps if step["type"] == "Replace" and step["content"] == " "]
    if "Metaspace" not in kinds and not any(step["pattern"] == {"String": BLANK} for step in swaps):
        raise ModelError(
            f"a tokenizer that decodes by {', '.join(sorted(kinds))} does not tell the bytes of its tokens",
            "byte-level and SentencePiece tokenizers do",
        )
    by_bytes = "ByteFallback" in kinds

    def read(string: str) -> bytes:
        if by_bytes and _is_byte(string):
            return bytes([int(string[3:5], 16)])
        return string.replace(BLANK, " ").encode()

    return read


def byte_letters() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones are themselves, the others follow from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


@dataclass(frozen=True)
class Pairing:
    """Which tokens of two vocabularies are the same one.

    table: [V student] the teacher's id, or -1. shared: the C student ids that have one, ascending.
    """

    table: list[int]
    shared: list[int]


def pair(student: Vocabulary, teacher: Vocabulary) -> Pairing:
    """Special tokens by role (eos, bos, pad), then by name; others by their bytes, of equal name first. One to one."""
    table, taken = [-1] * len(student), set()

    def join(ours: int, theirs: int | None) -> None:
        if theirs is not None and table[ours] < 0 and theirs not in taken:
            table[ours] = theirs
            taken.add(theirs)

    for role in ROLES:
        if role in student.roles and role in teacher.roles:
            join(student.roles[role], teacher.roles[role])
    by_name = {string: i for i, string in enumerate(teacher.strings) if string is not None}
    for i, string in enumerate(student.strings):
        other = by_name.get(string)
        if other is not None and student.pieces[i] == teacher.pieces[other]:
            join(i, other)
    by_bytes: dict[bytes, int] = {}
    for i, piece in enumerate(teacher.pieces):
        if piece and i not in taken:
            by_bytes.setdefault(piece, i)
    for i, piece in enumerate(student.pieces):
        if piece and table[i] < 0:
            join(i, by_bytes.get(piece))
    return Pairing(table, [i for i, other in enumerate(table) if other >= 0])


def homes(student: Vocabulary, teacher: Vocabulary, pairing: Pairing) -> tuple[list[int], list[int]]:
    """Which of C + 1 places each token of either vocabulary belongs to: [V student], [V teacher], in 0..C.

    Shared tokens have a place each. Another token belongs to the shared one with which the other tokenizer would begin
    its text, and where that one is not shared, to the longest shared token that its bytes begin with: when the teacher
    expects " hello" and the student writes " hel" + "lo", then " hel" is what the student has to say next. An
    approximation, for what is written may depend on what follows (exact for BPE: Phan et al. 2025, arXiv 2512.14954).
    Place C holds what is left over. Ids without a token have -1.
    """
    own, theirs = [-1] * len(student), [-1] * len(teacher)
    for place, ours in enumerate(pairing.shared):
        own[ours] = theirs[pairing.table[ours]] = place
    by_bytes = {student.pieces[ours]: own[ours] for ours in pairing.shared if student.pieces[ours]}
    rest = len(pairing.shared)
    return (
        _settle(student, own, teacher, theirs, by_bytes, rest),
        _settle(teacher, theirs, student, own, by_bytes, rest),
    )


def _settle(
    one: Vocabulary,
    places: list[int],
    other: Vocabulary,
    others: list[int],
    by_bytes: dict[bytes, int],
    rest: int,
) -> list[int]:
    """The places of all tokens of `one`, from those of the shared tokens."""
    alone = [i for i, string in enumerate(one.strings) if places[i] < 0 and string is not None]
    texts = [one.pieces[i] or b"" for i in alone]
    settled = list(places)
    for i, text, first in zip(alone, texts, other.beginnings(texts), strict=True):
        if first is not None and others[first] >= 0:
            settled[i] = others[first]
        else:
            settled[i] = _longest(text if first is None else other.pieces[first], by_bytes, rest)
    return settled


def _longest(text: bytes, by_bytes: dict[bytes, int], rest: int) -> int:
    """The place of the longest shared token that the text begins with; `rest` where there is none."""
    for end in range(len(text), 0, -1):
        if text[:end] in by_bytes:
            return by_bytes[text[:end]]
    return rest


def probe(tokenizer: Any) -> list[list[int]]:
    """How a tokenizer cuts texts made of its own tokens, in each case, strange ones, and a pair.

    Two of one vocabulary that lower the case, drop accents or set special tokens otherwise differ in it.
    """
    words = sorted(tokenizer.get_vocab())
    text = " ".join(words[:: max(1, len(words) // PROBED)])
    texts = [(each,) for each in (text, text.lower(), text.upper(), text.title(), STRANGE)]
    return [list(tokenizer(*each, verbose=False)["input_ids"]) for each in (*texts, (STRANGE, text))]
