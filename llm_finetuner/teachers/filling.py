"""A live teacher that writes its answers down as it gives them, and is let go of once all rows have one.

What an epoch writes is read from the next epoch on: so the first epoch learns from live answers whatever is being
written meanwhile, and a run that was killed and resumed answers each step as it would have been answered.
Shapes: N positions that count, n a slice of them, R bytes a record, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import check_kept, kept_blocks, spelled
from llm_finetuner.named_models import load_teacher
from llm_finetuner.output import Output, Want
from llm_finetuner.run import whole_path
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.cached import DTYPES, Cached, answers_in
from llm_finetuner.teachers.caching import (
    NUMBERS,
    SHARD_BYTES,
    Job,
    check_same,
    entries_of,
    open_or_begin,
    settings_of,
)
from llm_finetuner.teachers.held import Batch, Held
from llm_finetuner.teachers.identity import Key, keys_of_batch, keys_of_rows, of_answers
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.measures import Error, keep_figures, scores_of
from llm_finetuner.teachers.places import MANIFEST, check_place, weight_files, writing_to
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.store import Store, locked

MODES = ("top_k", *DTYPES)
FIT_ROWS, FIT_BATCH = 64, 8
BLOCK = 2**21  # numbers: memory of this size is used again and again, more of it would be new each time
MEASURED_EVERY = 16  # positions: the error is taken from some of them, without another pass of the teacher


def fill(
    spec: Any,
    context: Context,
    *,
    path: str,
    k: int = 50,
    mode: str = "top_k",
    keep_layers: Sequence[int | str] | None = None,
    given: tuple[Any, Any] | None = None,
) -> "Filling":
    """The teacher that fills the folder `path`; given: its model and tokenizer, else spec.name is loaded when needed.

    Raises RecipeError, DataError, ModelError.
    """
    if not path:
        raise RecipeError("a teacher that fills a cache needs its folder", "give teacher.options.path")
    if mode not in MODES:
        raise RecipeError(
            f"mode of a cache that a run fills is {mode!r}", f"choose one of: {', '.join(MODES)}"
        )
    layers = kept_blocks(keep_layers)
    check_place(path)

    def load() -> tuple[Provider, dict[str, Any]]:
        model, tokenizer = given or (
            load_teacher(spec, context.device, context.task.auto),
            context.task.tokenizer(spec.name),
        )
        context.task.check_stored(model)
        teacher = live_teacher(model, tokenizer, spec.name, context)
        return teacher, of_answers(spec.name, model, teacher, context)

    files = weight_files(spec.name) if given is None else None  # before they are read
    return Filling(Path(path).expanduser(), spec.name, load, context, (mode, k, layers), files)


class Filling(Provider):
    """Answers a batch from the store where it holds all of its rows, else by the model, and stores what is new."""

    stored = True  # what a student writes is not to be kept

    def __init__(
        self,
        folder: Path,
        name: str,
        load: Callable[[], tuple[Provider, dict[str, Any]]],
        context: Context,
        settings: tuple[str, int, Sequence[int]],
        files: dict[str, list[int]] | None = None,
    ):
        """settings: mode, k and the numbers of the blocks whose hidden states are kept, in order.

        files: the weights on the disk (places.py) that the cache may be known by; None for a model given as an object.
        """
        self.folder, self.name, self.load, self.context = folder, name, load, context
        self.files, self.sure = files, False  # sure: the weights are those that the cache is of
        self.mode, self.k, self.layers = settings[0], settings[1], tuple(settings[2])
        self.live: Provider | None = None
        self.cache: Cached | None = None
        self.about: dict[str, Any] = {}
        self.want, self.terms, self.begun = Want(), (), False
        self.stays = False  # whether the model is needed even where all is stored
        self.lacking: set[bytes] = set()  # keys of the run's rows that are not on the disk
        self.visible = -1  # the last shard that this epoch reads
        self.stale = False  # whether an epoch ended since
        self.batch: Batch | None = None
        self.held, self.error = Held(), None  # error: of what is written in this epoch
        if (folder / MANIFEST).exists():
            self._use(Store.open(folder, to_write=True))
        else:
            self._need_live()

    # ---- before the first step

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        kept = set(want.layers) <= set(self.layers)
        self.stays = not kept or want.attention or want.states or want.embeddings
        self.want, self.terms, self.begun, self.sure = want, terms, True, False
        if self.live is not None:
            self._prepare_live()
        if self.stays:
            self.context.note(
                "the losses read more of the teacher than the cache keeps, so it stays and answers in every epoch"
                + ("" if kept else f"; to keep its hidden states: keep_layers=[{spelled(want.layers)}]")
            )

    def check(self, rows: Any) -> None:
        """Load the model where a row has no answer yet; where a run begins, fit what all records share."""
        begun, self.begun = self.begun, False
        keys = [key.whole for key in keys_of_rows(self.context.task, rows) if key.positions]
        if self.cache is not None:
            check_same(self.cache.store, self._settings(lambda kind, record: None), {})
        lacks = self.cache is None or not all(key in self.cache.store for key in keys)
        if not (lacks or self.stays or self._may_be_another()):
            return
        self._need_live()
        self.live.check(rows)
        if self.cache is not None:
            check_same(self.cache.store, self._settings(lambda kind, record: None), self.about)
            self.sure = True
        if not begun:
            return  # somebody looks at other rows: they are answered, and not written down
        settings = self._settings(lambda kind, record: self.context.note(record["text"]))
        job = Job(self.live, self.context.task, rows, settings, FIT_BATCH, self.context.device)
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with writing_to(self.folder), locked(self.folder):  # one process fits, the others read what it fitted
            about = self.about | ({"files": self.files} if self.files is not None else {})
            self._use(open_or_begin(self.folder, settings, about, job, FIT_ROWS))
        self.lacking = {key for key in keys if key not in self.cache.store}
        self._settle()

    def _use(self, store: Store) -> None:
        self.cache, self.visible = answers_in(store, self.context), store.newest
        self.error = self._new_error()
        self.columns, self.width, self.depth = self.cache.columns, self.cache.width, self.cache.depth

    def _need_live(self) -> None:
        if self.live is not None:
            return
        self.live, self.about = self.load()
        self.columns, self.width, self.depth = self.live.columns, self.live.width, self.live.depth
        self.parameters, self.positions = self.live.parameters, self.live.positions
        check_kept(self.layers, self.depth, self.context.task.pooled, self.name)
        self._prepare_live()

    def _prepare_live(self) -> None:
        layers = tuple(sorted({*self.want.layers, *self.layers}))
        self.live.prepare(replace(self.want, layers=layers), self.terms)

    def _settings(self, say: Callable[[str, dict], None]) -> dict[str, Any]:
        columns = len(self.columns) if isinstance(self.columns, Tensor) else self.columns
        task = self.context.task
        vocabulary = columns or task.vocabulary(self.live.model)
        return settings_of(task, self.mode, self.k, 1, 0, self.layers, vocabulary, say)

    def _new_error(self) -> Error:
        return Error(self.context.task, self.cache.settings)

    def _may_be_another(self) -> bool:
        """Whether the model has to be loaded to tell: it has another name, or its files are not the noted ones."""
        about = self.cache.store.manifest["about"]
        if self.sure:
            return False
        same = whole_path(about.get("teacher", self.name)) == whole_path(self.name)
        return not same or self.files is None or self.files != about.get("files", {})

    # ---- a batch

    def __call__(self, batch: dict[str, Any], want: Want) -> Output:
        self._finish()
        if self.stale:
            self._settle()
        keys = [key for key in keys_of_batch(self.context.task, batch) if key.positions]
        if not self.stays and self.cache is not None and all(map(self._can_read, keys)):
            return self.cache(batch, want)
        self._need_live()
        if not any(key.whole in self.lacking and key.whole not in self.held.keys for key in keys):
            return self.live(batch, want)
        layers = tuple(sorted({*want.layers, *self.layers}))
        return self._noted(keys, self.live(batch, replace(want, layers=layers, answers=True)))

    def _can_read(self, key: Key) -> bool:
        place = self.cache.store.places.get(key.whole)
        return place is not None and place[0] <= self.visible

    def _noted(self, keys: list[Key], said: Output) -> Output:
        """The same answers, of which records are made as they are asked for: its head does not run twice."""
        count, codec = len(said.rows), self.cache.codec
        vocabulary = self.cache.settings["vocabulary"]
        records = torch.empty(count, codec.record_bytes, dtype=torch.uint8)
        asked = torch.zeros(count, dtype=torch.bool)
        places = torch.arange(count, device=said.rows.device)
        size = max(1, BLOCK // vocabulary)

        def head(at: Tensor) -> Tensor:
            answers = said.head(said.rows[at])
            for here, logits in zip(at.split(size), answers[:, :vocabulary].split(size), strict=True):
                scores = scores_of(self.context.task, logits)
                made = codec.encode(scores, scores.new_empty(0))
                records[here.cpu()], asked[here.cpu()] = made.cpu(), True
                if self.context.rank == 0:
                    some = slice(0, None, MEASURED_EVERY)
                    self.error.add(scores[some], codec.decode(made[some]))
            return answers

        self.batch = Batch(keys, said, head, records, asked)
        return replace(said, rows=places, head=head)

    def _finish(self) -> None:
        """Make entries of the batch before; of positions that no term asked for, the answers are taken now."""
        if self.batch is None:
            return
        done, self.batch = self.batch, None
        rest = (~done.asked).nonzero()[:, 0].to(done.said.rows.device)
        size = max(1, NUMBERS // self.cache.settings["vocabulary"])
        for start in range(0, len(rest), size):
            done.head(rest[start : start + size])
        entries = entries_of(done.keys, done.records, done.said, self.layers)
        new = {e.key: e for e in entries if e.key in self.lacking and e.key not in self.held.keys}
        self.held.add(list(new.values()))
        if self.held.size >= SHARD_BYTES:
            self._write()

    def _write(self) -> None:
        if self.held.entries:
            with writing_to(self.folder):
                self.cache.store.add(self.held.entries)
            self.lacking -= self.held.keys
            self.held = Held()

    # ---- from epoch to epoch

    def follow(self, epoch_ends: bool = False) -> None:
        self._finish()
        if epoch_ends:
            self._write()
            self._settle()
            self.stale = True  # other processes may still be writing theirs

    def _settle(self) -> None:
        """Begin an epoch: read all that was written until now; without the model where nothing is left to ask."""
        self.stale = False
        if self.cache is None:
            return
        store = self.cache.store
        store.refresh()
        self.visible = store.newest
        self.lacking = {key for key in self.lacking if key not in store}
        if self.lacking or self.live is None:
            return
        self._report()
        if not self.stays:
            self.live = None

    def _report(self) -> None:
        """The size and the error of what was written; the first process tells, from its own rows."""
        error, self.error, store = self.error, self._new_error(), self.cache.store
        if not error.positions:
            return
        size = self.cache.codec.record_bytes
        figures = keep_figures(store, error.figures(size), self.context.note)
        loss, mass, tokens, rows = (figures[name] for name in ("mean_kl", "top_mass", "tokens", "rows"))
        held = "" if mass is None else f"; the {self.k} best tokens hold {mass:.1%} of the probability"
        unit = "nats an answer, KL(teacher || cache)"
        unit = "squared units" if self.context.task.numbers else unit
        leaves = "" if self.stays else "; the teacher is not asked any more and leaves memory"
        self.context.note(
            f"the cache {self.folder} holds {rows:,} rows, {tokens:,} answers, at {size} bytes an answer, "
            f"beside hidden states; mean error {loss:.5f} {unit}{held}{leaves}"
        )

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """Which shards this epoch reads; what is held back is written first, as steps before are not run again."""
        self.flush()
        return {"visible": None if self.stale else self.visible}

    def flush(self) -> None:
        self._finish()
        self._write()

    def load_state(self, state: dict[str, Any]) -> None:
        if state["visible"] is not None:
            self.visible = state["visible"]
