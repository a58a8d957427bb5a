"""A teacher whose answers were written down (caching.py): no model in memory, found by what a row holds.

A row is found whatever batch, order, padding, process or attempt asks for it. One that is not there is an error that
says what differs. Shapes: B sequences, N positions that count, R bytes a record, C columns, D hidden width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.output import Columns, Output, Want
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.codec import Exact, Sampled, TopK
from llm_finetuner.teachers.identity import (
    Key,
    keys_of_batch,
    keys_of_rows,
    of_tokenizer,
)
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.store import Store
from llm_finetuner.terms import reads

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def cached(spec: Any, context: Context, *, path: str = "") -> "Cached":
    """The answers in the folder `path`. Raises DataError where it is not whole, or is of another tokenizer."""
    if not path:
        raise RecipeError("a cached teacher needs the folder of its cache", "give teacher.options.path")
    teacher = answers_in(Store.open(Path(path).expanduser()), context)
    named = teacher.store.manifest["about"].get("teacher")
    if spec.name and named not in (None, spec.name):
        context.note(f"the cache {path} holds the answers of {named}; {spec.name} is not loaded")
    return teacher


def answers_in(store: Store, context: Context) -> "Cached":
    """The teacher that a store is, for a student. Raises DataError, ModelError."""
    path, present = store.folder, of_tokenizer(context.tokenizer)
    teacher = Cached(store, context.device, {**present, **context.about})
    width, held = context.task.vocabulary(context.student), teacher.settings["vocabulary"]
    if held > width or (held < width and context.tokenizer is None):
        raise ModelError(
            f"the cache {path} has answers for {held} tokens, and the student has {width} logits",
            "make the cache with this run's student",
        )
    written = teacher.store.manifest["about"]
    if present and "tokenizer" in written and written["tokenizer"] != present["tokenizer"]:
        raise DataError(
            f"the cache {path} was made with another tokenizer: the same numbers are other tokens",
            "make the cache with this run's tokenizer, or take the model that the cache was made for",
        )
    return teacher


class Cached(Provider):
    """Answers out of a store. `present` describes this run (tokenizer, template, max_length, loss_on, ...).

    It is compared with what the store says of itself when a row is not found.
    """

    stored = True

    def __init__(self, store: Store, device: torch.device, present: dict[str, Any] | None = None):
        self.store, self.present = store, dict(present or {})
        self.settings = store.manifest["settings"]
        self.codec = codec_of(self.settings, store.fitted).to(device)
        self.device = device
        self.width, self.depth = store.manifest["width"], store.manifest["depth"]
        self.layers = tuple(self.settings["layers"])
        columns = store.fitted.get("columns")
        self.columns: Columns = self.settings["vocabulary"] if columns is None else columns.to(device)

    def __call__(self, batch: dict[str, Tensor], want: Want) -> Output:
        self._check_want(want)
        keys = [key for key in keys_of_batch(batch) if key.positions]
        for number, key in enumerate(keys):
            if key.whole not in self.store:
                raise DataError(f"row {number} of a batch is not in the cache: {self._why(key)}", HINT)
        mask_BT = batch["labels"][:, 1:] != IGNORED
        return Output(
            rows=self._read(keys, "records", torch.empty(0, self.codec.record_bytes, dtype=torch.uint8)),
            head=self.codec.decode,
            features={
                layer: self._read(keys, f"layer_{layer}", torch.empty(0, self.width)).float()
                for layer in want.layers
            },
            targets=batch["labels"][:, 1:][mask_BT].to(self.device),
            examples=mask_BT.nonzero()[:, 0].to(self.device),
        )

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        self._check_want(want)
        why = self.unfit(terms)
        if why:
            raise RecipeError(why, "take forward_kl at temperature 1, or make the cache with mode top_k")

    def unfit(self, terms: Sequence[Term]) -> str | None:
        """Why these terms cannot learn from what is stored, or None.

        Shares of draws estimate the teacher's probabilities without bias, so a loss must be linear in them.
        """
        if not isinstance(self.codec, Sampled):
            return None
        for term in terms:
            linear = term.objective == "forward_kl" and term.options.get("temperature", 1.0) == 1
            if "teacher" in reads(term) and not linear:
                return (
                    f"{term.objective} with {term.options or 'its defaults'} is biased on sampled answers: "
                    "only forward_kl at temperature 1 is linear in the teacher's probabilities"
                )
        return None

    def check(self, rows: Any) -> None:
        missing, first, total = 0, "", 0
        for number, key in enumerate(keys_of_rows(rows)):
            total += 1
            if key.positions and key.whole not in self.store:
                first = first or f"row {number}: {self._why(key)}"
                missing += 1
        if missing:
            where = self.store.folder
            raise DataError(f"{missing} of {total} rows are not in the cache {where}; {first}", HINT)

    def _read(self, keys: list[Key], name: str, none: Tensor) -> Tensor:
        parts = [self.store.read(key.whole, name) for key in keys]
        return torch.cat([none.to(parts[0].dtype) if parts else none, *parts]).to(self.device)

    def _check_want(self, want: Want) -> None:
        missing = [layer for layer in want.layers if layer not in self.layers]
        if missing:
            stored = ", ".join(map(str, self.layers)) or "none"
            raise RecipeError(
                f"hidden states of teacher blocks {', '.join(map(str, missing))} are not in the cache "
                f"{self.store.folder}; stored: {stored}",
                "name stored blocks in layers, or make a cache with these",
            )
        if want.attention or want.states or want.embeddings:
            raise RecipeError(
                "a cache holds no attention, queries, keys, values or embeddings", "take a live teacher"
            )

    def _why(self, key: Key) -> str:
        """What of this run differs from what the cache was made of, as far as can be told."""
        written = self.store.manifest["about"]
        reasons = [
            f"{name} was {written[name]!r}, is {value!r}"
            for name, value in self.present.items()
            if name in written and written[name] != value
        ]
        if key.content in self.store.contents:
            reasons.append(
                f"its tokens are, but other positions count (loss_on was {_told(written, 'loss_on')})"
            )
        elif key.length > self.store.longest:
            reasons.append(
                f"it has {key.length} tokens, the longest cached row {self.store.longest} "
                f"(max_length was {_told(written, 'max_length')})"
            )
        return "; ".join(reasons) or (
            f"the settings are the same, so these are other rows than the {len(self.store.places)} in the cache"
        )


HINT = (
    "prepare the data as for the cache, or run the cache command on these data: what is there already is kept "
    "(data of another kind are less accurate there: give them a folder of their own)"
)


def _told(about: dict[str, Any], name: str) -> str:
    return repr(about[name]) if name in about else "not noted"


def codec_of(settings: dict[str, Any], fitted: dict[str, Tensor]) -> TopK | Sampled | Exact:
    """The codec that a manifest names."""
    mode, vocabulary = settings["mode"], settings["vocabulary"]
    if mode == "top_k":
        return TopK(settings["k"], vocabulary, fitted["levels"], fitted["log_shapes"])
    if mode == "sampled":
        return Sampled(settings["draws"], vocabulary, settings["seed"])
    return Exact(vocabulary, DTYPES[mode])
