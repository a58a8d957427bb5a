"""The folder of a cached teacher: whole after a kill, checked, and refused where something differs."""

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cache_models import ABOUT, NOTHING, TASK, V, answers, build_teacher, listed, open_cache, write
from conftest import prepared_rows

from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.store import Store


@pytest.fixture(scope="module")
def model():
    return build_teacher()


class Counting(Live):
    """A live teacher that counts the rows it is asked about."""

    asked = 0

    def __call__(self, batch, want):
        self.asked += len(batch["input_ids"])
        return super().__call__(batch, want)


def files_of(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_rows_are_stored_once_and_more_can_be_added(tmp_path, model):
    rows = listed(prepared_rows(9, V))
    first = write(model, rows[:3] * 3, tmp_path / "c")
    assert first["rows"] == 3
    teacher = Counting(TASK, model)
    options = {"vocabulary": V, "about": ABOUT, "k": 20, "sample": 1}
    more = write_cache(teacher, TASK, rows, tmp_path / "c", **options)
    assert more["rows"] == 9 and teacher.asked == 6 + 1  # the new ones, and one for the error
    open_cache(tmp_path / "c").check(rows)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from cache_models import V, build_teacher, write
from conftest import prepared_rows
def kill(kind, record):
    if kind == "cache" and record["rows"] >= {after}:
        os.kill(os.getpid(), signal.SIGKILL)
write(build_teacher(), prepared_rows(24, V), {path!r}, batch_size=2, shard_bytes=2000, on_event=kill)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, model):
    rows, options = prepared_rows(24, V), {"batch_size": 2, "shard_bytes": 2000}
    write(model, rows, tmp_path / "whole", **options)
    code = KILLED.format(tests=str(Path(__file__).parent), after=14, path=str(tmp_path / "killed"))
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = files_of(tmp_path / "killed")
    whole = files_of(tmp_path / "whole")
    shards = [name for name in whole if name.startswith("shard")]
    kept = [name for name in before if name.startswith("shard")]
    assert 0 < len(kept) < len(shards)
    (tmp_path / "killed" / shards[-1]).write_bytes(
        b"cut sh"
    )  # as if it died between a shard and the manifest
    (tmp_path / "killed" / f".{sorted(shards)[-1]}.part").write_bytes(b"cut")
    asked = []
    write(model, rows, tmp_path / "killed", on_event=lambda _, r: asked.append(r.get("of")), **options)
    done = sum(shard["rows"] for shard in json.loads(before["manifest.json"])["shards"])
    assert done > 0 and asked[0] == 24 - done
    assert files_of(tmp_path / "killed") == whole


@pytest.mark.parametrize("name", ["shard_00001.safetensors", "fitted.safetensors"])
def test_a_flipped_bit_is_found_and_a_shard_can_be_made_again(tmp_path, model, name):
    rows = listed(prepared_rows(12, V))
    write(model, rows, tmp_path / "c", shard_bytes=1500)
    file = tmp_path / "c" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    for use in (
        lambda: Store.open(tmp_path / "c"),
        lambda: write(model, rows, tmp_path / "c", shard_bytes=1500),
    ):
        with pytest.raises(DataError, match=rf"{name} is damaged") as error:
            use()
        assert "remove" in error.value.hint
    if name.startswith("shard"):
        file.unlink()
        with pytest.raises(DataError, match="cannot be read"):
            Store.open(tmp_path / "c")
        write(model, rows, tmp_path / "c", shard_bytes=1500)
        open_cache(tmp_path / "c").check(rows)


def test_rows_that_are_not_there_are_refused_with_what_differs(tmp_path, model):
    rows = prepared_rows(12, V)
    write(model, rows, tmp_path / "c")
    teacher = open_cache(tmp_path / "c", max_length=20, tokenizer="x")
    longer = [{name: (row[name] * 4)[:20] for name in row} for row in rows]
    with pytest.raises(DataError, match=r"12 of 12 rows .*row 0: max_length was 14, is 20; it has 20 tokens"):
        teacher.check(longer)
    everything = [{**row, "labels": row["input_ids"]} for row in rows]
    with pytest.raises(DataError, match="other positions count .loss_on was 'completion'"):
        open_cache(tmp_path / "c").check(everything)
    with pytest.raises(DataError, match="other positions count"):
        open_cache(tmp_path / "c")(TASK.collate(everything[:2]), NOTHING)
    others = listed(prepared_rows(3, V, seed=5))
    with pytest.raises(DataError, match="3 of 5 rows .*these are other rows than the 12 in the cache"):
        open_cache(tmp_path / "c").check(
            listed(rows)[:2] + [{k: v[:6] for k, v in r.items()} for r in others]
        )
    counted_padding = TASK.collate(listed(rows)[:2])
    counted_padding["labels"][:, -1], counted_padding["attention_mask"][:, -1] = 3, 0
    with pytest.raises(DataError, match="attention_mask is 0"):
        open_cache(tmp_path / "c")(counted_padding, NOTHING)


def test_another_teacher_or_setting_is_not_mixed_in(tmp_path, model):
    rows = prepared_rows(6, V)
    write(model, rows, tmp_path / "c")
    with pytest.raises(DataError, match="k was 20, is 10"):
        write(model, rows, tmp_path / "c", k=10)
    with pytest.raises(DataError, match="fingerprint was 'f', is 'g'"):
        write(model, rows, tmp_path / "c", about={**ABOUT, "fingerprint": "g"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds config.json and no cache"):
        write(model, rows, tmp_path / "other")
    for wrong in ({"k": 0}, {"mode": "best"}, {"draws": 1.5}):
        with pytest.raises(RecipeError):
            write(model, rows, tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_data_that_a_cache_was_not_begun_with_are_measured_for_themselves(tmp_path, model):
    """The means in the manifest are over all that is stored; rows that fit much worse are told of."""
    rows, others, notes = listed(prepared_rows(6, V)), listed(prepared_rows(6, V, seed=5)), []

    def grow(model, rows, path=tmp_path / "c"):
        figures = write(model, rows, path, k=4, sample=99, on_event=lambda _, r: notes.append(r.get("text")))
        assert json.loads((path / "manifest.json").read_text())["measured"] == {
            name: value for name, value in figures.items() if name not in ("path", "repeats")
        }
        return figures, [text for text in notes if text and "what was added" in text]

    def error(cache, model, rows):
        pairs = zip(answers(Live(TASK, model), rows), answers(cache, rows), strict=True)
        return torch.cat([(live.exp() * (live - kept)).sum(1) for (live, _), (kept, _) in pairs])

    sharp = copy.deepcopy(model)
    sharp.lm_head.weight.mul_(60)  # what a teacher says of data that it knows much better
    first, said = grow(sharp, rows)
    assert not said
    both, said = grow(model, rows + others)
    old, new = (
        error(open_cache(tmp_path / "c"), sharp, rows),
        error(open_cache(tmp_path / "c"), model, others),
    )
    assert first["mean_kl"] == pytest.approx(old.mean().item(), rel=1e-3) and new.mean() > 0.02
    assert len(said) == 1 and f"of {new.mean():.5f} nats" in said[0] and "another folder" in said[0]
    assert both["rows"] == 12 and both["tokens"] == len(old) + len(new)
    assert both["mean_kl"] == pytest.approx(torch.cat([old, new]).mean().item(), rel=1e-3)
    again, said = grow(model, others)  # nothing is new
    assert again == both and len(said) == 1
    grow(model, rows, tmp_path / "d")
    assert len(grow(model, rows + others, tmp_path / "d")[1]) == 1  # data of the same kind
