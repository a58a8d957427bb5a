"""Runs a teacher once over prepared rows and writes its answers down, with a measure of what that loses.

What all records share (tails.py) is fitted to the answers on some rows, evenly spaced, before the first shard, and
stands in the folder from then on: a run that goes on, or adds rows, uses the same.
Shapes: n positions, k best tokens, V vocabulary.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.layer_maps import check_kept, kept_blocks
from llm_finetuner.output import Output, Want, moved
from llm_finetuner.teachers import tails
from llm_finetuner.teachers.cached import DTYPES, LOGITS, Cached, codec_of
from llm_finetuner.teachers.identity import Key, keys_of_rows
from llm_finetuner.teachers.measures import Error, keep_figures, scores_of
from llm_finetuner.teachers.places import FITTED, MANIFEST
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.teachers.store import LOCK, OF_TOKENS, Entry, Store, name_of

MODES = ("top_k", "sampled", *DTYPES)
SHARD_BYTES = 2**24  # a kill loses at most so much
NUMBERS = 2**24  # log-probabilities in memory at a time
FIT_NUMBERS, FIT_POSITIONS = 2**26, 8192  # that the shapes of tails are fitted to
LOW_MASS = 0.8
OURS = (FITTED, LOCK, "bad_rows.jsonl")  # may stand in a folder where no cache has begun
FLOAT16_MOST = torch.finfo(torch.float16).max


def write_cache(
    teacher: Provider,
    task: Any,
    rows: Any,
    path: str | Path,
    *,
    vocabulary: int,
    about: dict[str, Any],
    k: int = 50,
    mode: str = "top_k",
    draws: int = 50,
    seed: int = 0,
    layers: Sequence[int | str] = (),
    batch_size: int = 8,
    sample: int = 64,
    device: torch.device | str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    on_event: Callable[[str, dict], None] | None = None,
) -> dict[str, Any]:
    """Write the answers to `rows` into the folder `path`; rows that are there already are not asked again.

    mode: "top_k", "sampled" (`draws` tokens a position, `seed`), "fp16" or "fp32" (every log-probability, or logit
    where the answers of a position do not exclude each other); with no more columns than k, or draws, it is fp32.
    vocabulary: the teacher's first so many columns. layers: its blocks whose hidden states are kept too, or "pooled".
    about: what the answers are of, such as teacher, fingerprint, tokenizer, template (identity.py), max_length,
    loss_on: a later call must bring the same. batch_size and device: of the teacher's forward passes.
    sample: rows, evenly spaced, that the fit and the error are taken from.

    Returns {bytes_per_token (without hidden states), mean_kl (nats, KL(teacher || what the cache answers) on the
    sample, None for draws), top_mass (what the k best hold, on average, None in other modes), tokens (positions that
    have an answer), rows: of all that is stored, repeats (how many of these rows are equal to another of them, and so
    stored once), path}.
    Of a folder that grows the new rows are measured, and a note says where the answers to them are much less accurate.
    Raises RecipeError, DataError where the folder is of something else or damaged, TrainingError where it cannot be
    written. A kill leaves a folder that the same call goes on with, to the same bytes.
    """
    say = on_event or (lambda kind, record: None)
    blocks = kept_blocks(layers, "layers")
    settings = settings_of(task, mode, k, draws, seed, blocks, vocabulary, say)
    job = Job(teacher, task, rows, settings, batch_size, torch.device(device))
    teacher.prepare(job.want, ())
    about = json.loads(json.dumps(about))  # as the manifest will give it back
    store = open_or_begin(Path(path), settings, about, job, sample)
    job.write(store, shard_bytes, say)
    figures = measure_new(job, store, sample, lambda text: say("note", {"text": text}))
    if settings["mode"] == "top_k" and figures["top_mass"] < LOW_MASS:
        text = f"the {k} best tokens hold {figures['top_mass']:.2f} of the teacher's mass: a larger k would lose less"
        say("note", {"text": text})
    return {**figures, "repeats": len(job.numbers) - job.distinct, "path": str(path)}


def measure_new(job: "Job", store: Store, sample: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure those of the rows that were not; the figures of all that is stored, see Store.measured."""
    shards = store.unmeasured
    new = [number for number in job.numbers if store.places[job.keys[number].whole][0] in shards]
    if new:
        return keep_figures(store, job.measure(store, sample, new), note)
    if job.distinct == len(store.places):
        return store.measured(job.measure(store, sample, job.numbers), anew=True)
    return {**store.manifest["measured"], "tokens": store.tokens, "rows": len(store.places)}


def settings_of(
    task: Any, mode: str, k: int, draws: int, seed: int, layers: Sequence[int], vocabulary: int, say: Callable
) -> dict[str, Any]:
    """What decides the bytes of a record, as the manifest keeps it. Raises RecipeError."""
    if mode not in MODES:
        raise RecipeError(f"mode of a cache is {mode!r}", f"choose one of: {', '.join(MODES)}")
    for name, value in (("k", k), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f"{name} must be a whole number from 1, got {value!r}")
    some = {"top_k": ("k", k), "sampled": ("draws", draws)}.get(mode)
    if some and not task.exclusive:
        if not task.numbers:  # of numbers nobody expects that
            text = f"several labels a text are no one distribution to keep {mode} of: all are kept"
            say("note", {"text": text})
        mode = "fp32"
    elif some and some[1] >= vocabulary:
        text = f"{some[0]}={some[1]} takes in all of {vocabulary}: every log-probability is kept"
        say("note", {"text": text})
        mode = "fp32"
    options = {"top_k": {"k": k}, "sampled": {"draws": draws, "seed": seed}}.get(mode, {})
    options |= {} if task.exclusive else {"answers": LOGITS}
    return {"mode": mode, **options, "vocabulary": vocabulary, "layers": list(layers)}


def open_or_begin(folder: Path, settings: dict, about: dict, job: "Job", sample: int) -> Store:
    """The store to write to, begun where there is none. Raises DataError where it is of something else."""
    if not (folder / MANIFEST).exists():
        found = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        strange = [name for name in found if name not in OURS and not name.endswith(".part")]
        if strange:
            raise DataError(f"{folder} holds {strange[0]} and no cache", "name a new or empty folder")
        fitted = job.fit(sample) if settings["mode"] == "top_k" else {}
        if isinstance(job.teacher.columns, Tensor):
            fitted["columns"] = job.teacher.columns.cpu()
        manifest = {
            "settings": settings,
            "width": job.teacher.width,
            "depth": job.teacher.depth,
            "about": about,
        }
        return Store.create(folder, manifest, fitted)
    store = Store.open(folder, to_write=True)
    check_same(store, settings, about)
    return store


def check_same(store: Store, settings: dict[str, Any], about: dict[str, Any]) -> None:
    """Raise DataError where a store is not of these settings and of what they are about.

    Of `about` only what both tell is compared, and the name of a teacher only where its weights are not told. The
    files of its weights are not: copies are as good.
    """
    written = store.manifest["about"]
    told = (written.keys() & about.keys()) - {"files"}
    told -= {"teacher"} if "weights" in told else set()
    parts = [(store.manifest["settings"], settings)]
    parts += [tuple({name: side[name] for name in sorted(told)} for side in (written, about))]
    differs = [
        f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for was, now in parts
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
    if differs:
        raise DataError(
            f"{store.folder} is a cache of something else: {'; '.join(differs)}", "name another folder"
        )


class Job:
    """A teacher and the rows it is asked about. Raises DataError where nothing counts in them."""

    def __init__(self, teacher, task, rows, settings, batch_size, device):
        self.teacher, self.task, self.rows, self.settings = teacher, task, rows, settings
        self.batch_size, self.device = batch_size, device
        self.want = Want(layers=tuple(settings["layers"]))
        check_kept(self.want.layers, teacher.depth, task.pooled, "the teacher")
        self.keys = list(keys_of_rows(task, rows))
        self.numbers = [number for number, key in enumerate(self.keys) if key.positions]
        self.distinct = len(
            {self.keys[number].whole for number in self.numbers}
        )  # equal rows are stored once
        if not self.numbers:
            raise DataError("no token of the data counts", "labels must hold more than -100")

    def write(self, store: Store, shard_bytes: int, say) -> None:
        """Ask for what the store lacks, a shard at a time."""
        codec = codec_of(self.settings, store.fitted).to(self.device)
        lacking = {
            key.whole: number
            for number, key in enumerate(self.keys)
            if key.positions and key.whole not in store
        }
        done = 0
        for numbers in self._portions(list(lacking.values()), codec.record_bytes, shard_bytes):
            entries = []
            numbers.sort(key=lambda number: self.keys[number].length)  # less padding
            for batch, said in self._answers(numbers):
                entries += self._encode(codec, batch, said)
                done += len(batch)
                tokens = store.tokens + sum(len(entry.records) for entry in entries)
                say("cache", {"rows": done, "of": len(lacking), "tokens": tokens})
            store.add(entries)

    def fit(self, sample: int) -> dict[str, Tensor]:
        """What all records share, from the answers on some rows."""
        numbers = _evenly(self.numbers, sample, 0)
        total = sum(self.keys[number].positions for number in numbers)
        step = -(-total // min(FIT_POSITIONS, max(1, FIT_NUMBERS // self.settings["vocabulary"])))
        parts, at = [], 0
        for _, said in self._answers(numbers):
            for scores in self._scores(said):
                parts.append(scores[-at % step :: step].clone())
                at += len(scores)
        codec = tails.fit(torch.cat(parts), self.settings["k"])
        return {"levels": codec.levels.cpu(), "log_shapes": codec.log_shapes.half().cpu()}

    def measure(self, store: Store, sample: int, numbers: list[int]) -> dict[str, Any]:
        """The error on some of these rows, not those of the fit where there are enough, from what was written."""
        cache, error = Cached(store, self.task, self.device), Error(self.task, self.settings)
        for batch, said in self._answers(_evenly(numbers, sample, 1)):
            told, at = cache(self._collate(batch), Want()), 0
            for scores in self._scores(said):
                error.add(scores, told.head(told.rows[at : at + len(scores)]))
                at += len(scores)
        return error.figures(cache.codec.record_bytes)

    def _encode(self, codec, batch: list[int], said: Output) -> list[Entry]:
        keys = [self.keys[number] for number in batch]
        noise = torch.cat([codec.noise(key.whole, key.positions) for key in keys])
        records, at = [], 0
        for scores in self._scores(said):
            records.append(codec.encode(scores, noise[at : at + len(scores)]).cpu())
            at += len(scores)
        return entries_of(keys, torch.cat(records), said, self.want.layers)

    def _answers(self, numbers: list[int]) -> Iterator[tuple[list[int], Output]]:
        for start in range(0, len(numbers), self.batch_size):
            batch = numbers[start : start + self.batch_size]
            with torch.no_grad():
                yield batch, self.teacher(self._collate(batch), self.want)

    def _portions(self, numbers: list[int], record_bytes: int, most: int) -> Iterator[list[int]]:
        """Rows in their order, about so many bytes at a time: the same however often it was begun."""
        portion, total = [], 0
        for number in numbers:
            key, names = self.keys[number], [name_of(x, self.task.all_tokens) for x in self.want.layers]
            portion.append(number)
            states = sum(_count(key, name) for name in names) * self.teacher.width
            total += key.positions * record_bytes + 2 * states
            if total >= most:
                yield portion
                portion, total = [], 0
        if portion:
            yield portion

    def _collate(self, numbers: list[int]) -> dict[str, Tensor]:
        return moved(self.task.collate([self.rows[number] for number in numbers]), self.device)

    def _scores(self, said: Output) -> Iterator[Tensor]:
        """[n, V] float32, some positions at a time. Raises ModelError where the teacher has fewer columns."""
        vocabulary = self.settings["vocabulary"]
        size = max(1, NUMBERS // vocabulary)
        for start in range(0, len(said.rows), size):
            with torch.no_grad():
                logits = said.head(said.rows[start : start + size])
            if logits.shape[1] < vocabulary:
                raise ModelError(
                    f"vocabulary is {vocabulary}, the teacher answers with {logits.shape[1]} columns"
                )
            yield scores_of(self.task, logits[:, :vocabulary].to(self.device))


def entries_of(keys: list[Key], records_NR: Tensor, said: Output, layers: Sequence[int]) -> list[Entry]:
    """What is kept of each row of a batch that was answered, with the hidden states of these blocks."""
    pieces, states = records_NR.split([key.positions for key in keys]), {}
    lengths = [key.length for key in keys]
    if said.numbers and said.tokens is not None:  # patches stand for tokens, of each look-back equally many
        lengths = [length * len(said.tokens) // sum(lengths) for length in lengths]
    for layer in layers:
        name = name_of(layer, said.tokens is not None)
        kept = said.features[layer].float().clamp(-FLOAT16_MOST, FLOAT16_MOST).half().cpu()
        of_tokens = name.startswith(OF_TOKENS)
        states[name] = kept.split(lengths if of_tokens else [key.positions for key in keys])
    return [
        Entry(key.whole, key.content, lengths[i], pieces[i], {name: s[i] for name, s in states.items()})
        for i, key in enumerate(keys)
    ]


def _count(key: Key, name: str) -> int:
    """How many vectors of a tensor of hidden states belong to a row."""
    return key.length if name.startswith(OF_TOKENS) else key.positions


def _evenly(numbers: list[int], count: int, half: int) -> list[int]:
    """At most `count`, evenly spaced; half=1: from between those of half=0."""
    count = min(count, len(numbers))
    return [numbers[(2 * i + half) * len(numbers) // (2 * count)] for i in range(count)]
