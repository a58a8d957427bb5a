"""Digests that say whether two things are the same: a row, a model's weights, a tokenizer, a chat template."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.data import columns
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError

SIZE = 16  # bytes
NAMES = ("input_ids", "labels", "attention_mask")


class Key(NamedTuple):
    """What a row is found by."""

    whole: bytes  # of its tokens and of which positions count
    content: bytes  # of its tokens alone
    positions: int  # that count
    length: int  # tokens


def key_of(ids: Any, labels: Any, mask: Any) -> Key:
    """Of one row, padded or not. The labels tell which positions count: all but the first, as tasks/causal_lm.py.

    Raises DataError where padding counts.
    """
    labels, mask = np.asarray(labels), np.asarray(mask).astype(bool)
    tokens = np.asarray(ids)[mask].astype("<i4").tobytes()
    counted = labels[mask][1:] != IGNORED
    positions = int((labels[1:] != IGNORED).sum())
    if int(counted.sum()) != positions:
        raise DataError("a label counts where attention_mask is 0", "set the labels of padding to -100")
    content = hashlib.blake2b(tokens, digest_size=SIZE)
    key = content.copy()
    key.update(b"counted" + np.packbits(counted).tobytes())
    return Key(key.digest(), content.digest(), positions, len(tokens) // 4)


def keys_of_batch(batch: dict[str, Tensor]) -> list[Key]:
    """The keys of each row of a collated batch."""
    return [key_of(*row) for row in zip(*(batch[name].cpu().numpy() for name in NAMES), strict=True)]


def keys_of_rows(rows: Any) -> Iterator[Key]:
    """The keys of prepared rows, a list or a dataset, in their order."""
    if isinstance(rows, list):
        for row in rows:
            yield key_of(*(row[name] for name in NAMES))
        return
    lengths = columns.lengths(rows)
    for number, flat in enumerate(zip(*(columns.flat(rows, name) for name in NAMES), strict=True)):
        ends = lengths[number * columns.BATCH : (number + 1) * columns.BATCH].cumsum()[:-1]
        yield from map(key_of, *(np.split(column, ends) for column in flat))


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


def template_digest(tokenizer: Any) -> str:
    """Over the chat template, "none" where there is none."""
    template = tokenizer.chat_template
    return "none" if template is None else _of_json(template)


def of_tokenizer(tokenizer: Any) -> dict[str, str]:
    """What a cache notes of the tokenizer that its rows were made with; nothing where they came prepared."""
    if tokenizer is None:
        return {}
    return {"tokenizer": tokenizer_digest(tokenizer), "template": template_digest(tokenizer)}


def _of_json(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=SIZE).hexdigest()
