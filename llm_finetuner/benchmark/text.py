"""Completions of prompts, and how near they come to references: ROUGE, perplexity, length.

A task says how its models read prompts and write: continuations, or the targets of sources (targets.py).
Shapes: B prompts of a batch, T tokens of the longest.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from rouge_score import rouge_scorer
from torch import nn

from llm_finetuner.benchmark.quality import eval_mode, evaluate
from llm_finetuner.data.columns import evenly
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError
from llm_finetuner.models.mixers import goes_on
from llm_finetuner.recipe import Data

ROUGE = ("rouge1", "rouge2", "rougeL")
GIVEN = "the references given"
FROM_TEACHER = "the teacher's greedy answer to each prompt"
HALVES = "the second half of each prompt, continued from its first half"
TARGETS = 200  # sources of rows whose targets are written for ROUGE
ROUGE_FLOOR = 1e-4  # what `benchmark` reports for "no overlap at all"


@dataclass(frozen=True)
class References:
    """What completions are held against, as tokens and as text, and in words where it comes from."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    against: str
    max_new_tokens: int  # that a completion may have


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """The continuation of each prompt, without the prompt; greedy unless do_sample.

    A prompt that does not fit the model's positions with the new tokens loses tokens on its left; the new tokens
    are never more than half of the positions. The tokenizer and the program's random state are left as they were.
    """
    options = {"do_sample": do_sample, "temperature": temperature, "top_p": top_p, "seed": seed}
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    found = continuations(
        model, tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size, **options
    )
    return [decode(tokenizer, tokens) for tokens, _ended in found]


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Tokens of a prompt; an empty one is the token that begins (or else ends) a text. Raises DataError."""
    ids = list(tokenizer(prompt)["input_ids"])
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not ids and first is None:
        raise DataError(
            "an empty prompt cannot be continued", "the tokenizer has no token that begins a text"
        )
    return ids or [first]


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[tuple[list[int], bool]]:
    """For each prompt the new tokens without the end token, and whether the model ended the text itself."""
    limit = positions(model)
    new = max_new_tokens if limit is None else min(max_new_tokens, limit // 2)
    kept = [ids if limit is None else ids[-(limit - new) :] for ids in prompts]
    ends = end_tokens(model, tokenizer)
    choice = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    # spelled out when greedy, because transformers fills in what the model's own generation_config says
    how = choice if do_sample else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    how |= {"max_new_tokens": new, "num_beams": 1, "repetition_penalty": 1.0, "eos_token_id": ends or None}
    how["suppress_tokens"] = nameless(model, tokenizer) or None
    order = sorted(range(len(kept)), key=lambda index: len(kept[index]))
    found: list = [None] * len(kept)
    devices = [model.device] if model.device.type == "cuda" else []
    with eval_mode(model), torch.random.fork_rng(devices) if do_sample else nullcontext():
        if do_sample:
            torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            for index, tokens in zip(
                picked, _batch(model, tokenizer, [kept[i] for i in picked], how), strict=True
            ):
                end = next((at for at, token in enumerate(tokens) if token in ends), None)
                found[index] = (tokens[:end], end is not None)
    return found


def _batch(model: nn.Module, tokenizer: Any, prompts: list[list[int]], how: dict) -> list[list[int]]:
    """Tokens that follow each prompt, with what comes after an end token still there."""
    width = max(map(len, prompts))
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ids_BT = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask_BT = torch.tensor(
        [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device
    )
    said = model.generate(
        input_ids=ids_BT, attention_mask=mask_BT, pad_token_id=pad, use_cache=goes_on(model), **how
    )
    return said[:, width:].tolist()


def nameless(model: nn.Module, tokenizer: Any) -> list[int]:
    """Columns of the logits that name no token: the vocabulary was padded."""
    known = max(tokenizer.get_vocab().values()) + 1
    return list(range(known, model.get_output_embeddings().weight.shape[0]))


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens that end a text: the tokenizer's, and those of the generation_config that are special tokens.

    A number in a default configuration is not believed when the tokenizer knows it as an ordinary token.
    """
    named = model.generation_config.eos_token_id
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {index for index in (named if isinstance(named, list) else [named]) if index in special}
    return sorted(ends | ({tokenizer.eos_token_id} - {None}))


def positions(model: nn.Module) -> int | None:
    """Most tokens the model can read, or None where its configuration sets no limit (state-space, ALiBi)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measure of ROUGE-1, -2 and -L, Lin 2004, words stemmed.

    The rouge-score package knows words of a-z and 0-9 only: text in other scripts scores 0. Raises DataError.
    """
    if len(predictions) != len(references) or not predictions:
        raise DataError(
            f"{len(predictions)} completions cannot be scored against {len(references)} references"
        )
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(reference, said) for said, reference in zip(predictions, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGE}


def choose_references(
    task: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    references: Sequence[str] | None = None,
    teacher: nn.Module | None = None,
    *,
    data: Data | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
) -> References:
    """The references given; else what the teacher writes, greedily; else the second half of each prompt.

    Where the teacher ends every text at once there is nothing to compare with: the halves are used then, too. A source
    has no second half. data: how sources are read. Raises DataError.
    """
    if not prompts:
        raise DataError("no prompts to benchmark with", "pass at least one text")
    if references is not None and len(references) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts but {len(references)} references", "pass one for each prompt"
        )
    data = data or Data()
    asked, new = task.prompt_ids(prompts, tokenizer, data), max_new_tokens or task.new_tokens(data)
    if references is not None:
        tokens, texts = task.answer_ids(references, tokenizer, data), list(references)
        return References(asked, tokens, texts, GIVEN, _most(task, new, tokens))
    if teacher is not None:
        said = task.write(teacher, tokenizer, asked, max_new_tokens=new, batch_size=batch_size)
        texts = [decode(tokenizer, found) for found, _ended in said]
        # a target is learned with what the tokenizer puts around it
        tokens = [found for found, _ended in said] if task.writes else task.answer_ids(texts, tokenizer, data)
        if any(tokens):
            return References(asked, tokens, texts, FROM_TEACHER, _most(task, new, tokens))
    if not task.writes:
        raise DataError(
            "there is nothing to hold the targets against",
            "pass references, or load one live teacher, whose own targets they are held against",
        )
    halves = [(part[: (len(part) + 1) // 2], part[(len(part) + 1) // 2 :][:new]) for part in asked]
    if not any(second for _first, second in halves):
        raise DataError("every prompt is a single token, which has no second half", "pass references")
    firsts, seconds = ([half[side] for half in halves] for side in (0, 1))
    return References(firsts, seconds, [decode(tokenizer, second) for second in seconds], HALVES, new)


def _most(task: Any, new: int, tokens: list[list[int]]) -> int:
    """Tokens of a completion, at most. A target ends at twice the longest reference: an untrained model never does."""
    return new if task.writes else min(new, 2 * max(map(len, tokens)))


def references_in(task: Any, tokenizer: Any, rows: Any, count: int, data: Data) -> References:
    """The sources and targets of `count` evenly spaced prepared rows, as they are."""
    picked = evenly(rows, count).to_list()
    tokens = [[label for label in row["labels"] if label != IGNORED] for row in picked]
    among = f" of {len(rows):,}, evenly spaced" if len(picked) < len(rows) else ""
    return References(
        prompts=[
            list(compress(row["input_ids"], row["attention_mask"])) for row in picked
        ],  # without padding
        tokens=tokens,
        texts=[decode(tokenizer, part) for part in tokens],
        against=f"the targets of {len(picked):,} rows{among}",
        max_new_tokens=_most(task, task.new_tokens(data), tokens),
    )


def complete(
    task: Any, model: nn.Module, tokenizer: Any, chosen: References, batch_size: int = 8
) -> list[tuple[str, int]]:
    """What the model writes for each prompt, and how many tokens that is, the end token among them."""
    found = task.write(
        model, tokenizer, chosen.prompts, max_new_tokens=chosen.max_new_tokens, batch_size=batch_size
    )
    return [(decode(tokenizer, tokens), len(tokens) + ended) for tokens, ended in found]


def reference_perplexity(
    task: Any, model: nn.Module, references: References, *, batch_size: int = 8
) -> float | None:
    """Perplexity of the references' tokens given their prompts; None when no reference has a token."""
    pairs = zip(references.prompts, references.tokens, strict=True)
    rows = [task.joined(prompt, tokens, positions(model)) for prompt, tokens in pairs if tokens]
    return evaluate(task, model, rows, batch_size=batch_size).perplexity if rows else None


def benchmark(
    task: Any,
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    references: Sequence[str] | None = None,
    teacher: nn.Module | None = None,
    *,
    data: Data | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
) -> tuple[dict[str, float], str]:
    """({metric: value}, what the completions were scored against); see `choose_references`.

    Metrics: rouge1, rouge2, rougeL (0 to 1), perplexity of the references given the prompts (left out when no
    reference has a token), and mean_tokens, the mean length of a completion with its end token. No value is ever
    0, so that two runs can be compared as a ratio: a ROUGE below 0.0001 is reported as 0.0001, which reads "no
    overlap". Raises DataError.
    """
    chosen = choose_references(
        task, tokenizer, prompts, references, teacher, data=data, max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )  # fmt: skip
    said = complete(task, model, tokenizer, chosen, batch_size)
    found = rouge([text for text, _ in said], chosen.texts)
    scores = {name: max(score, ROUGE_FLOOR) for name, score in found.items()}
    perplexity = reference_perplexity(task, model, chosen, batch_size=batch_size)
    if perplexity is not None:
        scores["perplexity"] = perplexity
    scores["mean_tokens"] = sum(count for _, count in said) / len(said)
    return scores, chosen.against
