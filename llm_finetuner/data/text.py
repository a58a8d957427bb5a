"""Rows -> token ids and labels: what a model is trained on, and the preview that shows it.

A prepared row has input_ids, attention_mask and labels of one length; labels are -100 where not counted.
The label at position 0 is never met by a prediction (position t predicts t + 1), so it is in no count here.
Weakness: a vocabulary that puts a blank before any text (SentencePiece) puts one before each completion too.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_finetuner.data import chat, shapes
from llm_finetuner.data.examples import IGNORED, Builder, check_options
from llm_finetuner.data.shapes import Shape
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

BATCH = 1000  # rows tokenised at once


@dataclass(frozen=True)
class Prepared:
    """Rows ready for training, how they were read (shape None: they came with input_ids), and counts.

    stats: examples, tokens, counted_tokens (those that a prediction is compared with), truncated, dropped,
    skipped (rows); mean_length, max_length (tokens).
    """

    dataset: "datasets.Dataset"
    shape: Shape | None
    columns: list[str]
    stats: dict[str, float]


def prepare(
    dataset: "datasets.Dataset",
    tokenizer: Any,
    *,
    text_columns: Sequence[str] | str | None = None,
    max_length: int = 512,
    loss_on: str = "completion",
    on_bad_row: str = "stop",
) -> Prepared:
    """Tokenise and mark what is counted: the completion where there is one (loss_on="all": everything).

    EOS is added and counted, BOS stands in front once if the tokenizer does so by itself. Plain text is cut
    into blocks of `max_length`; else the prompt is cut on the left, then the completion on the right.
    Rows that have input_ids are checked and taken as they are (`max_length` does not cut them).
    Raises DataError for bad rows (on_bad_row="skip" leaves them out) and if nothing is left.
    """
    if loss_on not in ("completion", "all"):
        raise DataError(f"loss_on is {loss_on!r}", "it is 'completion' or 'all'")
    check_options(dataset, max_length, on_bad_row)
    builder = Builder()
    if "input_ids" in dataset.column_names:
        _take_ready(dataset, builder)
        return Prepared(builder.dataset(), None, ["input_ids"], builder.stats())
    head = dataset.select(range(min(shapes.SAMPLE, len(dataset)))).to_list()
    shape = shapes.recognise(dataset.column_names, head, text_columns)
    special = _special(tokenizer)
    for rows in _good_batches(dataset, shape, on_bad_row, builder):
        if shape.kind == "chat":
            coded = _encode_chats(rows, shape, tokenizer, loss_on, on_bad_row, builder)
        else:
            coded = _encode_parts([row for _, row in rows], shape, tokenizer, loss_on, special[1])
        for ids, counted, lead in coded:
            _fit(ids, counted, lead, shape.kind == "text", special[0], max_length, builder)
        builder.flush()
    return Prepared(builder.dataset(), shape, list(shape.columns), builder.stats())


def split(
    dataset: "datasets.Dataset", fraction: float, seed: int
) -> tuple["datasets.Dataset", "datasets.Dataset"]:
    """(train, held out): `fraction` of the rows drawn with `seed`, at least one on each side, in order."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}", "it lies between 0 and 1")
    rows = len(dataset)
    if rows < 2:
        raise DataError(
            f"{rows} row cannot be split into training and held-out data", "give two rows or more"
        )
    held = set(random.Random(seed).sample(range(rows), min(rows - 1, max(1, round(rows * fraction)))))
    return dataset.select([i for i in range(rows) if i not in held]), dataset.select(sorted(held))


def preview(
    dataset: "datasets.Dataset", tokenizer: Any, n: int = 2, **options: Any
) -> list[list[tuple[str, bool]]]:
    """The first `n` examples as [(text, counted)], decoded from the very ids and labels of `prepare`."""
    head = dataset.select(range(min(len(dataset), 10 * n)))
    rows = prepare(head, tokenizer, **options).dataset
    return [_segments(row, tokenizer) for row in rows.select(range(min(n, len(rows))))]


def prompts(
    dataset: "datasets.Dataset", tokenizer: Any, text_columns: Sequence[str] | str | None = None
) -> list[tuple[str, str | None]]:
    """[(prompt, reference or None)] of the rows that can be used, to generate from and to compare with.

    A chat's prompt is all before the assistant's last turn, in the template. Tokenise with `prompt_ids`.
    """
    head = dataset.select(range(min(shapes.SAMPLE, len(dataset)))).to_list()
    shape = shapes.recognise(dataset.column_names, head, text_columns)
    pairs = []
    for row in dataset.select_columns(list(shape.columns)).with_format(None):
        if shapes.problem(row, shape):
            continue
        if shape.kind != "chat":
            pairs.append(shapes.references(row, shape))
            continue
        turns, reference = shapes.last_turn(shapes.messages(row, shape))
        if turns:
            pairs.append((chat.template(turns, tokenizer, ask=reference is not None), reference))
    return pairs


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """The ids of a prompt as in training: BOS in front once (a chat template may have written it), no EOS."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return _with_bos(list(ids), _special(tokenizer)[0])


# ---- encoding


def _special(tokenizer: Any) -> tuple[int | None, int | None]:
    """(BOS if the tokenizer adds it by itself, EOS if it has one)."""
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    return (bos if adds else None), tokenizer.eos_token_id


def _with_bos(ids: list[int], bos: int | None) -> list[int]:
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _good_batches(
    dataset: "datasets.Dataset", shape: Shape, on_bad_row: str, builder: Builder
) -> Iterator[list[tuple[int, dict]]]:
    """Batches of (1-based number, row) without the bad rows."""
    number = 0
    for batch in dataset.select_columns(list(dict.fromkeys(shape.columns))).with_format(None).iter(BATCH):
        good = []
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            if reason := shapes.problem(row, shape):
                builder.refuse(
                    number, DataError(reason, "leave such rows out: on_bad_row='skip'"), on_bad_row
                )
            else:
                good.append((number, row))
        yield good


def _encode_parts(
    rows: list[dict], shape: Shape, tokenizer: Any, loss_on: str, eos: int | None
) -> Iterator[tuple[list[int], list[bool], int]]:
    """(ids, counted, how many belong to the prompt) a row; parts are tokenised apart, as they are in use."""
    parts = [shapes.to_parts(row, shape) for row in rows]
    texts = [text for row in parts for text, _ in row]
    coded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
    for row in parts:
        ids: list[int] = []
        counted: list[bool] = []
        lead = 0
        for _, learned in row:
            piece = next(coded)
            ids.extend(piece)
            counted.extend([learned or loss_on == "all"] * len(piece))
            lead += 0 if learned else len(piece)
        if eos is not None and ids[-1:] != [eos]:  # data may have written it already
            ids.append(eos)
            counted.append(True)
        yield ids, counted, lead


def _encode_chats(
    rows: list[tuple[int, dict]],
    shape: Shape,
    tokenizer: Any,
    loss_on: str,
    on_bad_row: str,
    builder: Builder,
) -> Iterator[tuple[list[int], list[bool], int]]:
    for number, row in rows:
        try:
            examples = chat.encode(shapes.messages(row, shape), tokenizer, loss_on)
        except DataError as error:
            builder.refuse(number, error, on_bad_row)
            continue
        for ids, counted in examples:
            yield ids, counted, counted.index(True) if any(counted) else len(counted)


def _fit(
    ids: list[int],
    counted: list[bool],
    lead: int,
    plain: bool,
    bos: int | None,
    limit: int,
    builder: Builder,
) -> None:
    """Add the row as one example, or plain text as blocks, of at most `limit` tokens."""
    if bos is not None and ids[:1] == [bos]:
        ids, counted, lead = ids[1:], counted[1:], max(0, lead - 1)
    front = [] if bos is None else [bos]
    over = len(front) + len(ids) - limit
    if plain:
        ids, counted = front + ids, [bool(counted)] * len(front) + counted
        start = 0
        while start < len(ids):
            # A last block of one token would teach nothing: its neighbour gives it one more.
            end = start + limit - (len(ids) - start == limit + 1)
            builder.add(ids[start:end], counted[start:end])
            start = end
        return
    if over > 0:
        cut = min(over, lead)
        ids, counted = ids[cut:][: limit - len(front)], counted[cut:][: limit - len(front)]
        builder.truncated += 1
    builder.add(front + ids, [False] * len(front) + counted)


def _take_ready(dataset: "datasets.Dataset", builder: Builder) -> None:
    """Rows that came with input_ids: fill in what is missing, check lengths, drop rows that teach nothing."""
    names = [name for name in ("input_ids", "attention_mask", "labels") if name in dataset.column_names]
    for number, row in enumerate(dataset.select_columns(names).with_format(None), 1):
        ids = row["input_ids"]
        if not isinstance(ids, list) or not all(isinstance(token, int) and token >= 0 for token in ids):
            raise DataError(f"row {number}: input_ids is no list of token ids", "prepare the dataset again")
        mask = row.get("attention_mask")
        mask = [1] * len(ids) if mask is None else mask
        labels = row.get("labels")
        labels = ids if labels is None else labels
        if not len(ids) == len(mask) == len(labels):
            lengths = f"{len(ids)} input_ids, {len(mask)} attention_mask, {len(labels)} labels"
            raise DataError(f"row {number}: lengths differ: {lengths}", "prepare the dataset again")
        # padding never counts, also where labels were copied from input_ids
        builder.add_labels(
            ids, mask, [label if seen else IGNORED for label, seen in zip(labels, mask, strict=True)]
        )
        if number % BATCH == 0:
            builder.flush()
    builder.flush()


def _segments(row: dict, tokenizer: Any) -> list[tuple[str, bool]]:
    ids, counted = row["input_ids"], [label != IGNORED for label in row["labels"]]
    edges = [i for i in range(1, len(ids)) if counted[i] != counted[i - 1]] + [len(ids)]
    segments, start, before = [], 0, ""
    for end in edges:
        # Decoded from the first token on, for some vocabularies drop a blank at the start of a text.
        so_far = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = so_far.startswith(before)
        text = so_far[len(before) :] if whole else tokenizer.decode(ids[start:end])
        segments.append((text, counted[start]))
        start, before = end, so_far
    return segments
