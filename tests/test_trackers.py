"""TensorBoard and W&B: what is read of the layers is there, a resumed run goes on where it was, mistakes are named."""

import json
import math
import struct
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_gpt2, prepared_rows
from step_reference import Stopped, recipe_of
from test_gauges import BLOCKS, GPT2, Alone, V, watched

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError, TrainingError
from llm_finetuner.gauges import layers_of, tags
from llm_finetuner.run import read_log
from llm_finetuner.trainer import fit


def events_of(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(
        str(folder / "llm-finetuner"), size_guidance={"histograms": 0}
    ).Reload()


def test_tensorboard_has_every_figure_and_histogram(tmp_path):
    student = build_gpt2(V).double()
    sizes = {name: sum(p.numel() for p in found) for name, found in layers_of(Alone(student)).items()}
    history = watched(tmp_path, student=student, steps=4, watch_every=2, trackers=["tensorboard"])
    events, logged = events_of(tmp_path), read_log(tmp_path)
    want = {step: tags(history[step - 1]) for step in (2, 4)}
    assert len(want[2]) == 3 * (len(GPT2) + 1) and not tags(history[0])
    for tag in want[2]:
        got = {event.step: event.value for event in events.Scalars(tag)}
        assert got == pytest.approx({step: want[step][tag] for step in want}, rel=1e-6), tag
    assert set(events.Tags()["histograms"]) == {
        f"{kind}/{n}" for kind in ("gradients", "weights") for n in GPT2
    }
    for kind, figure in {"gradients": "gradient_norm", "weights": "weight_norm"}.items():
        for name in GPT2:
            for event in events.Histograms(f"{kind}/{name}"):
                drawn, record = event.histogram_value, history[event.step - 1]
                assert drawn.num == sum(drawn.bucket) == sizes[name]
                norm = record["layers"][name][figure]
                assert math.sqrt(drawn.sum_squares) == pytest.approx(norm, rel=1e-9)
                kept = logged[event.step - 1]["histograms"][f"{kind}/{name}"]
                full = np.flatnonzero(kept["counts"])  # the events leave out empty bins at the ends
                edges = np.linspace(kept["low"], kept["high"], len(kept["counts"]) + 1)
                assert np.count_nonzero(drawn.bucket) == len(full) and max(drawn.bucket) == max(
                    kept["counts"]
                )
                assert edges[full[-1] + 1] == pytest.approx(
                    drawn.bucket_limit[np.flatnonzero(drawn.bucket)[-1]]
                )
            assert [event.step for event in events.Histograms(f"{kind}/{name}")] == [2, 4]


def test_a_resumed_run_goes_on_in_the_same_events(tmp_path):
    """What came after the checkpoint is written again, and told once; a new run in the folder begins anew."""

    def stop(kind: str, record: dict) -> None:
        if kind == "step" and record["step"] == 4:
            raise Stopped

    plan = {"steps": 6, "save_every": 2, "watch_every": 1, "trackers": ["tensorboard"]}
    recipe = replace(recipe_of(tmp_path, "fine_tuning", {}, **plan), teacher=None)

    def parts():
        return Parts(student=build_gpt2(V), train=prepared_rows(8, V), device="cpu")

    with pytest.raises(Stopped):
        fit(recipe, parts(), on_event=stop)
    history = fit(recipe, parts(), resume=True).history
    for tag, steps in {"loss": range(1, 7), "update_ratio/total": range(1, 7)}.items():
        got = events_of(tmp_path).Scalars(tag)
        assert [event.step for event in got] == list(steps)
        want = [{**record, **tags(record)}[tag] for record in history]
        assert [event.value for event in got] == pytest.approx(want, rel=1e-6)
    assert [event.step for event in events_of(tmp_path).Histograms(f"weights/{BLOCKS[0]}")] == list(
        range(1, 7)
    )
    fit(replace(recipe, train=replace(recipe.train, steps=2)), parts())
    assert [event.step for event in events_of(tmp_path).Scalars("loss")] == [1, 2]


# ---- W&B


def records_in(path) -> list[bytes]:
    """Of a file of W&B: LevelDB's log format, 32 KiB blocks of fragments (checksum, length, kind), behind 7 bytes."""
    data, at, found = path.read_bytes(), 7, [b""]
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no fragment begins there
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        found[-1] += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last one
            found.append(b"")
    return found[:-1]


def runs_of(folder) -> list[tuple[str, dict[int, dict]]]:
    """(id, {step: what was logged}) of every run that wrote its files there, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        steps, until, records = {}, time.monotonic() + 30, []
        while not any(record.HasField("exit") for record in records) and time.monotonic() < until:
            records = list(map(Record.FromString, records_in(path)))  # its process may still be writing
        for record in records:
            said = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if said:
                steps[int(said["_step"])] = said
        found.append((path.stem.removeprefix("run-"), steps))
    return found


def test_wandb_has_every_figure_and_histogram(tmp_path, monkeypatch):
    """Offline; a resumed run is the same run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    plan = {"steps": 4, "watch_every": 2, "trackers": ["wandb"], "save_every": 2}
    recipe = replace(recipe_of(tmp_path, "fine_tuning", {}, **plan), teacher=None)

    def parts():
        return Parts(student=build_gpt2(V), train=prepared_rows(8, V), device="cpu")

    history = fit(recipe, parts()).history
    fit(replace(recipe, train=replace(recipe.train, steps=6)), parts(), resume=True)
    (first, logged), (second, more) = runs_of(tmp_path)
    assert first == second and sorted(logged) == [1, 2, 3, 4] and sorted(more) == [5, 6]
    for step, items in logged.items():
        want = {
            k: v for k, v in {**history[step - 1], **tags(history[step - 1])}.items() if isinstance(v, float)
        }
        assert {k: items[k] for k in want} == pytest.approx(want, rel=1e-6)
    sizes = {name: sum(p.numel() for p in found) for name, found in layers_of(Alone(build_gpt2(V))).items()}
    for kind in ("gradients", "weights"):
        for name in GPT2:
            assert sum(logged[2][f"{kind}/{name}/values"]) == sizes[name]
            assert f"{kind}/{name}/values" not in logged[1]


# ---- mistakes


def test_an_event_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "llm-finetuner").write_text("in the way")
    with pytest.raises(TrainingError, match=f"cannot write into {tmp_path}"):
        watched(tmp_path, trackers=["tensorboard"])


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(RecipeError) as caught:
        watched(tmp_path, trackers=[tracker])
    assert f"the tracker {tracker} is not installed" in str(caught.value)
    assert f"llm-finetuner[{tracker}]" in caught.value.hint
