"""Runs a teacher once over prepared rows and writes its answers down, with a measure of what that loses.

What all records share (tails.py) is fitted to the answers on some rows, evenly spaced, before the first shard, and
stands in the folder from then on: a run that goes on, or adds rows, uses the same.
Shapes: n positions, k best tokens, V vocabulary.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.output import Output, Want
from llm_finetuner.teachers import tails
from llm_finetuner.teachers.cached import DTYPES, Cached, codec_of
from llm_finetuner.teachers.identity import Key, keys_of_rows
from llm_finetuner.teachers.places import FITTED, MANIFEST
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.teachers.store import LOCK, Entry, Store

MODES = ("top_k", "sampled", *DTYPES)
SHARD_BYTES = 2**24  # a kill loses at most so much
NUMBERS = 2**24  # log-probabilities in memory at a time
FIT_NUMBERS, FIT_POSITIONS = 2**26, 8192  # that the shapes of tails are fitted to
LOW_MASS = 0.8
# More than so many times the error of before, and nats: what was added does not fit the folder.
WORSE, MUCH = 2, 0.02
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
    layers: Sequence[int] = (),
    batch_size: int = 8,
    sample: int = 64,
    device: torch.device | str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    on_event: Callable[[str, dict], None] | None = None,
) -> dict[str, Any]:
    """Write the answers to `rows` into the folder `path`; rows that are there already are not asked again.

    mode: "top_k", "sampled" (`draws` tokens a position, `seed`), "fp16" or "fp32" (every log-probability).
    vocabulary: the teacher's first so many columns. layers: its blocks whose hidden states are kept too.
    about: what the answers are of, such as teacher, fingerprint, tokenizer, template (identity.py), max_length,
    loss_on: a later call must bring the same. batch_size and device: of the teacher's forward passes.
    sample: rows, evenly spaced, that the fit and the error are taken from.

    Returns {bytes_per_token (without hidden states), mean_kl (nats, KL(teacher || what the cache answers) on the
    sample, None for draws), top_mass (what the k best hold, on average), tokens, rows: of all that is stored, repeats
    (how many of these rows are equal to another of them, and so stored once), path}.
    Of a folder that grows the new rows are measured, and a note says where the answers to them are much less accurate.
    Raises RecipeError, DataError where the folder is of something else or damaged, TrainingError where it cannot be
    written. A kill leaves a folder that the same call goes on with, to the same bytes.
    """
    say = on_event or (lambda kind, record: None)
    settings = settings_of(mode, k, draws, seed, layers, vocabulary, say)
    job = Job(teacher, task, rows, settings, batch_size, torch.device(device))
    teacher.prepare(job.want, ())
    about = json.loads(json.dumps(about))  # as the manifest will give it back
    store = open_or_begin(Path(path), settings, about, job, sample)
    job.write(store, shard_bytes, say)
    figures = measure_new(job, store, k, sample, lambda text: say("note", {"text": text}))
    if mode == "top_k" and figures["top_mass"] < LOW_MASS:
        text = f"the {k} best tokens hold {figures['top_mass']:.2f} of the teacher's mass: a larger k would lose less"
        say("note", {"text": text})
    return {**figures, "repeats": len(job.numbers) - job.distinct, "path": str(path)}


def measure_new(job: "Job", store: Store, k: int, sample: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure those of the rows that were not; the figures of all that is stored, see Store.measured."""
    shards = store.unmeasured
    new = [number for number in job.numbers if store.places[job.keys[number].whole][0] in shards]
    if new:
        return keep_figures(store, job.measure(store, k, sample, new), note)
    if job.distinct == len(store.places):
        return store.measured(job.measure(store, k, sample, job.numbers), anew=True)
    return {**store.manifest["measured"], "tokens": store.tokens, "rows": len(store.places)}


def keep_figures(store: Store, figures: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Keep the figures of what was added to a store, and say so where it fits much worse than what was there."""
    before, added = store.manifest.get("measured", {}).get("mean_kl"), figures["mean_kl"]
    if before is not None and added > max(WORSE * before, MUCH):
        note(
            f"what was added to the cache {store.folder} has a mean error of {added:.5f} nats a token, what was there "
            f"before {before:.5f}: its levels and tails were fitted to the data that it was begun with, so make a "
            "cache of its own, in another folder, for these data"
        )
    return store.measured(figures)


def settings_of(mode, k, draws, seed, layers, vocabulary, say) -> dict[str, Any]:
    """What decides the bytes of a record, as the manifest keeps it. Raises RecipeError."""
    if mode not in MODES:
        raise RecipeError(f"mode of a cache is {mode!r}", f"choose one of: {', '.join(MODES)}")
    for name, value in (("k", k), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f"{name} must be a whole number from 1, got {value!r}")
    if mode == "top_k" and k >= vocabulary:
        say("note", {"text": f"k={k} is the whole vocabulary of {vocabulary}: every log-probability is kept"})
        mode = "fp32"
    options = {"top_k": {"k": k}, "sampled": {"draws": draws, "seed": seed}}.get(mode, {})
    return {"mode": mode, **options, "vocabulary": vocabulary, "layers": sorted(set(layers))}


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
        self.keys = list(keys_of_rows(rows))
        self.numbers = [number for number, key in enumerate(self.keys) if key.positions]
        self.distinct = len(
            {self.keys[number].whole for number in self.numbers}
        )  # equal rows are stored once
        if not self.numbers:
            raise DataError("no token of the data counts", "labels must hold more than -100")

    def write(self, store: Store, shard_bytes: int, say) -> None:
        """Ask for what the store lacks, a shard at a time."""
        codec = codec_of(self.settings, store.fitted).to(self.device)
        size = codec.record_bytes + 2 * self.teacher.width * len(self.want.layers)
        lacking = {
            key.whole: number
            for number, key in enumerate(self.keys)
            if key.positions and key.whole not in store
        }
        done = 0
        for numbers in _portions(list(lacking.values()), self.keys, shard_bytes // size):
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
            for log_probs in self._log_probs(said):
                parts.append(log_probs[-at % step :: step].clone())
                at += len(log_probs)
        codec = tails.fit(torch.cat(parts), self.settings["k"])
        return {"levels": codec.levels.cpu(), "log_shapes": codec.log_shapes.half().cpu()}

    def measure(self, store: Store, k: int, sample: int, numbers: list[int]) -> dict[str, Any]:
        """The error on some of these rows, not those of the fit where there are enough, from what was written."""
        cache, error = Cached(store, self.device), Error()
        for batch, said in self._answers(_evenly(numbers, sample, 1)):
            told, at = cache(self._collate(batch), Want()), 0
            for log_probs in self._log_probs(said):
                answers = told.head(told.rows[at : at + len(log_probs)])
                at += len(log_probs)
                error.add(log_probs, answers, k)
        figures = error.figures(cache.codec.record_bytes)
        return {**figures, "mean_kl": None} if self.settings["mode"] == "sampled" else figures

    def _encode(self, codec, batch: list[int], said: Output) -> list[Entry]:
        keys = [self.keys[number] for number in batch]
        noise = torch.cat([codec.noise(key.whole, key.positions) for key in keys])
        records, at = [], 0
        for log_probs in self._log_probs(said):
            records.append(codec.encode(log_probs, noise[at : at + len(log_probs)]).cpu())
            at += len(log_probs)
        return entries_of(
            keys, torch.cat(records), {layer: said.features[layer] for layer in self.want.layers}
        )

    def _answers(self, numbers: list[int]) -> Iterator[tuple[list[int], Output]]:
        for start in range(0, len(numbers), self.batch_size):
            batch = numbers[start : start + self.batch_size]
            with torch.no_grad():
                yield batch, self.teacher(self._collate(batch), self.want)

    def _collate(self, numbers: list[int]) -> dict[str, Tensor]:
        batch = self.task.collate([self.rows[number] for number in numbers])
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _log_probs(self, said: Output) -> Iterator[Tensor]:
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
            yield logits[:, :vocabulary].to(self.device).float().log_softmax(1)


@dataclass
class Error:
    """What records lose, summed over some positions."""

    positions: int = 0
    divergence: float = 0.0  # nats, KL(teacher || record)
    best: float = 0.0  # mass of the k best

    def add(self, log_probs_nV: Tensor, kept_nV: Tensor, k: int) -> None:
        self.positions += len(log_probs_nV)
        self.divergence += forward_kl(kept_nV, log_probs_nV).sum().item()
        self.best += log_probs_nV.topk(min(k, log_probs_nV.shape[1])).values.exp().sum().item()

    def figures(self, record_bytes: int) -> dict[str, Any]:
        """The means, as a manifest keeps them."""
        return {
            "bytes_per_token": record_bytes,
            "mean_kl": self.divergence / self.positions,
            "top_mass": self.best / self.positions,
        }


def entries_of(keys: list[Key], records_NR: Tensor, features: dict[int, Tensor]) -> list[Entry]:
    """What is kept of each row of a batch; features {layer: [N, D]}."""
    counts = [key.positions for key in keys]
    pieces = records_NR.split(counts)
    states = {
        layer: x.float().clamp(-FLOAT16_MOST, FLOAT16_MOST).half().cpu().split(counts)
        for layer, x in features.items()
    }
    return [
        Entry(key.whole, key.content, key.length, pieces[i], {layer: s[i] for layer, s in states.items()})
        for i, key in enumerate(keys)
    ]


def _portions(numbers: list[int], keys: list[Key], positions: int) -> Iterator[list[int]]:
    """Rows in their order, about so many positions at a time: the same however often it was begun."""
    portion, total = [], 0
    for number in numbers:
        portion.append(number)
        total += keys[number].positions
        if total >= positions:
            yield portion
            portion, total = [], 0
    if portion:
        yield portion


def _evenly(numbers: list[int], count: int, half: int) -> list[int]:
    """At most `count`, evenly spaced; half=1: from between those of half=0."""
    count = min(count, len(numbers))
    return [numbers[(2 * i + half) * len(numbers) // (2 * count)] for i in range(count)]
