"""A teacher whose answers were written down (caching.py): no model in memory, found by what a row holds.

A row is found whatever batch, order, padding, process or attempt asks for it. One that is not there is an error that
says what differs. Shapes: n positions that count, R bytes a record, C columns, D hidden width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.layer_maps import spelled
from llm_finetuner.models import labels
from llm_finetuner.output import Columns, Output, Want, moved
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.codec import Exact, Sampled, TopK
from llm_finetuner.teachers.identity import Key, keys_of_batch, keys_of_rows, of_run
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.store import Store, name_of
from llm_finetuner.terms import reads

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
LOGITS = "logits"  # what is kept where answers do not exclude each other; else log-probabilities


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
    path, present, task = store.folder, of_run(context), context.task
    written, settings = store.manifest["about"], store.manifest["settings"]
    why = _other(written, settings, present, task)
    if why:
        raise DataError(
            f"the cache {path} was made {why}",
            "make the cache as this run is, or take the model that the cache was made for",
        )
    order = labels.order_of(context.student, written["labels"], context.seed) if task.labels else None
    width, held = task.vocabulary(context.student), settings["vocabulary"]
    if held > width or (held < width and context.tokenizer is None):
        raise ModelError(
            f"the cache {path} has answers for {held} tokens, and the student has {width} logits",
            "make the cache with this run's student",
        )
    return Cached(store, task, context.device, present, order)


def _other(written: dict[str, Any], settings: dict[str, Any], present: dict[str, Any], task: Any) -> str:
    """With what else than now a cache was made, so that nothing in it can be read; "" where nothing is."""
    if written.get("task", present["task"]) != present["task"] or task.labels != ("labels" in written):
        return f"for another task: {written.get('task', 'not noted')}, and this run is for {present['task']}"
    if (settings.get("answers") == LOGITS) == task.exclusive:
        return f"for {'several labels a text' if task.exclusive else 'one label a text'}, and this run is not"
    if "tokenizer" in present and written.get("tokenizer", present["tokenizer"]) != present["tokenizer"]:
        return "with another tokenizer: the same numbers are other tokens"
    return ""


class Cached(Provider):
    """Answers out of a store. `present` describes this run (tokenizer, template, max_length, loss_on, ...).

    It is compared with what the store says of itself when a row is not found.
    """

    stored = True

    def __init__(
        self,
        store: Store,
        task: Any,
        device: torch.device,
        present: dict[str, Any] | None = None,
        order: Sequence[int] | None = None,
    ):
        """order: which of the stored columns is each of the student's, where they stand otherwise."""
        self.store, self.task, self.present = store, task, dict(present or {})
        self.order = None if order is None else torch.tensor(order, device=device)
        self.settings = store.manifest["settings"]
        self.codec = codec_of(self.settings, store.fitted).to(device)
        self.device = device
        self.width, self.depth = store.manifest["width"], store.manifest["depth"]
        self.layers = tuple(self.settings["layers"])
        columns = store.fitted.get("columns")
        self.columns: Columns = self.settings["vocabulary"] if columns is None else columns.to(device)

    def __call__(self, batch: dict[str, Any], want: Want) -> Output:
        self._check_want(want)
        keys = [key for key in keys_of_batch(self.task, batch) if key.positions]
        for number, key in enumerate(keys):
            if key.whole not in self.store:
                raise DataError(f"row {number} of a batch is not in the cache: {self._why(key)}", HINT)
        names = {layer: name_of(layer, self.task.all_tokens) for layer in want.layers}
        return Output(
            rows=self._read(keys, "records", torch.empty(0, self.codec.record_bytes, dtype=torch.uint8)),
            head=self._answers,
            features={
                layer: self._read(keys, name, torch.empty(0, self.width)).float()
                for layer, name in names.items()
            },
            **moved(self.task.positions(batch), self.device),
        )

    def _answers(self, records_nR: Tensor) -> Tensor:
        answers_nC = self.codec.decode(records_nR)
        return answers_nC if self.order is None else answers_nC[:, self.order]

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
        for number, key in enumerate(keys_of_rows(self.task, rows)):
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
            raise RecipeError(
                f"hidden states of teacher blocks {spelled(missing)} are not in the cache "
                f"{self.store.folder}; stored: {spelled(self.layers) or 'none'}",
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
            same = "loss_on" in written and written["loss_on"] == self.present.get("loss_on")
            of_text = "" if same else f" (loss_on was {_told(written, 'loss_on')})"
            reasons.append(f"its tokens are, but other positions count{of_text}")
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
