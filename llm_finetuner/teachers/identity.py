"""Digests that say whether two things are the same: a row, a model's weights, a tokenizer, a chat template."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.models import labels, vocabulary

SIZE = 16  # bytes


class Key(NamedTuple):
    """What a row is found by."""

    whole: bytes  # of what its answers hang on and of which positions count
    content: bytes  # of what its answers hang on alone: its tokens, mostly
    positions: int  # that count
    length: int  # tokens


def key_of(task: Any, row: Mapping[str, Any]) -> Key:
    """Of one row, padded or not. Raises DataError where padding counts."""
    tokens, more, counted = task.asked(row)
    content = hashlib.blake2b(tokens.astype("<i4").tobytes() + more, digest_size=SIZE)
    key = content.copy()
    key.update(b"counted" + np.packbits(counted).tobytes())
    return Key(key.digest(), content.digest(), int(counted.sum()), len(tokens))


def keys_of_batch(task: Any, batch: dict[str, Any]) -> list[Key]:
    """The keys of each row of a collated batch."""
    near = {name: x.cpu().numpy() if isinstance(x, Tensor) else x for name, x in batch.items()}
    return [key_of(task, row) for row in task.rows_of(near)]


def keys_of_rows(task: Any, rows: Any) -> Iterator[Key]:
    """The keys of prepared rows, a list or a dataset, in their order."""
    return (key_of(task, row) for row in (rows if isinstance(rows, list) else task.by_row(rows)))


def fingerprint(model: nn.Module) -> str:
    """blake2b over name, shape, dtype and bytes of every tensor of the state dict, by name: about 1 s a gigabyte.

    The same weights in another dtype answer differently and have another fingerprint.
    """
    digest = hashlib.blake2b(digest_size=SIZE)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(flat.cpu().numpy().data)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Over every token with its number, and which ones begin, end and stand for unknown text; not the padding."""
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
    return _of_json([sorted(tokenizer.get_vocab().items()), special])


def reading_digest(tokenizer: Any) -> str:
    """Over its tokens and how it cuts texts into them."""
    return _of_json([tokenizer_digest(tokenizer), vocabulary.probe(tokenizer)])


def template_digest(tokenizer: Any) -> str:
    """Over the chat template, "none" where there is none."""
    template = tokenizer.chat_template
    return "none" if template is None else _of_json(template)


def of_run(context: Any) -> dict[str, Any]:
    """What a cache is compared with: how the rows were prepared, by which tokenizer (if it is known), and what for."""
    tokenizer, task = context.tokenizer, context.task.auto.removeprefix("AutoModelFor")
    told = {**context.about, "task": task}
    if tokenizer is not None:
        told |= {"tokenizer": tokenizer_digest(tokenizer), "template": template_digest(tokenizer)}
    return told


def of_answers(name: str, model: nn.Module, teacher: Any, context: Any) -> dict[str, Any]:
    """What a cache notes of its answers: the teacher, the run that they are for, the labels in their order."""
    told = {"teacher": name, "weights": fingerprint(model), **teacher.noted, **of_run(context)}
    return told | ({"labels": labels.names_of(context.student)} if context.task.labels else {})


def _of_json(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=SIZE).hexdigest()
