"""Targets that models with an encoder and a decoder write for sources, greedily.

Shapes: B sources of a batch, T tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from llm_finetuner.benchmark.quality import eval_mode
from llm_finetuner.benchmark.text import end_tokens, nameless
from llm_finetuner.data import transform
from llm_finetuner.models.loading import entry_device, positions_of


def write(
    model: nn.Module,
    tokenizer: Any,
    sources: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 8,
) -> list[tuple[list[int], bool]]:
    """For each source the target's tokens without the end token, and whether the model ended it itself.

    The most probable token each time, whatever penalties, beams or least lengths the model's generation_config names.
    Kept is how a target begins: forced_bos_token_id (mBART: the language), or else what the tokenizer puts before every
    target. Padding is masked, so that a source is answered as it would be alone. There are never more tokens than the
    decoder has positions. Raises DataError for a tokenizer without an end of text.
    """
    frame = transform.target_frame(tokenizer)
    ends = sorted({*end_tokens(model, tokenizer), *frame.back[:1]})
    plain = _greedy(model, tokenizer, frame.front, ends, max_new_tokens)
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    found: list = [None] * len(sources)
    with eval_mode(model), _configured(model, plain):
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            for index, tokens in zip(picked, _batch(model, [sources[i] for i in picked]), strict=True):
                end = next((at for at, token in enumerate(tokens) if token in ends), None)
                found[index] = (tokens[:end], end is not None)
    return found


def _batch(model: nn.Module, sources: list[list[int]]) -> list[list[int]]:
    """Tokens of each target, with what comes behind an end token still there."""
    width = max(map(len, sources))
    pad = model.generation_config.pad_token_id
    ids_BT = torch.tensor([ids + [pad] * (width - len(ids)) for ids in sources])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sources])
    device = entry_device(model)
    # an empty cache grows with the decoder; the one that transformers makes for a T5 is as deep as its encoder
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    said = model.generate(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), past_key_values=cache
    )
    return said[:, 1:].tolist()  # the first is what the decoder starts from


def _greedy(
    model: nn.Module, tokenizer: Any, front: list[int], ends: list[int], max_new_tokens: int
) -> GenerationConfig:
    limit, config = positions_of(model), model.config
    first = model.generation_config.forced_bos_token_id
    pad = config.pad_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens if limit is None else min(max_new_tokens, limit),
        decoder_start_token_id=config.decoder_start_token_id,
        forced_bos_token_id=first if first is not None else next(iter(front), None),
        eos_token_id=ends,
        pad_token_id=pad,
        suppress_tokens=[*nameless(model, tokenizer), *({pad} - {*ends})]
        or None,  # Marian's head knows padding
    )


@contextmanager
def _configured(model: nn.Module, plain: GenerationConfig) -> Iterator[None]:
    """While it lasts the model writes by this config alone: transformers fills what a call leaves open from its own."""
    own, model.generation_config = model.generation_config, plain
    try:
        yield
    finally:
        model.generation_config = own
