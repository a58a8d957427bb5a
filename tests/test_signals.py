"""Sequences of numbers in files: every form, what is mapped into memory, parts, rows without targets, mistakes."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from llm_finetuner.cli import app, simulating
from llm_finetuner.data import sar, sar_files, signals
from llm_finetuner.data.sar_scenes import Scene, simulate
from llm_finetuner.errors import DataError


def arrays(rows: int = 20, length: int = 12, complex_valued: bool = True):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, length, 2)) + (
        1j * draw.normal(size=(rows, length, 2)) if complex_valued else 0
    )
    return x, x.sum(2, keepdims=True)


def same(part, inputs, targets):
    for number in range(len(part)):
        assert np.array_equal(part[number]["inputs"], inputs[number])
        assert np.array_equal(part[number]["targets"], targets[number], equal_nan=True)


def test_every_form_of_a_file_gives_the_same_rows(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "both.npz", inputs=x, targets=y)
    np.save(tmp_path / "some_inputs.npy", x)
    np.save(tmp_path / "some_targets.npy", y)
    (tmp_path / "folder").mkdir()
    for name, array in (("inputs", x), ("targets", y)):
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    forms = (
        tmp_path / "both.npz",
        tmp_path / "some_inputs.npy",
        tmp_path / "folder",
        (x, y),
        {"inputs": x, "targets": y},
    )
    for form in forms:
        found = signals.read(form, 0.1)
        assert [len(part) for part in found.parts.values()] == [16, 2, 2]
        for part, low in zip(found.parts.values(), (0, 16, 18), strict=True):
            same(part, x[low:], y[low:])


def test_files_are_mapped_into_memory_and_rows_are_read_when_asked_for(tmp_path):
    x, y = arrays()
    np.save(tmp_path / "inputs.npy", x)
    np.save(tmp_path / "targets.npy", y)
    part = signals.read(tmp_path, 0.1).part("train")
    assert isinstance(part.inputs, np.memmap) and isinstance(part.targets, np.memmap)
    assert not isinstance(part[0]["inputs"], np.memmap)


def test_parts_of_their_own_are_taken_as_they_are(tmp_path):
    x, y = arrays()
    for part, rows in (("train", slice(0, 15)), ("test", slice(15, 20))):
        (tmp_path / part).mkdir()
        np.save(tmp_path / part / "inputs.npy", x[rows])
        np.save(tmp_path / part / "targets.npy", y[rows])
    (tmp_path / "meta.json").write_text(json.dumps({"rows": [2, 9]}))
    found = signals.read(tmp_path, 0.1)
    assert [len(part) for part in found.parts.values()] == [15, 0, 5]
    same(found.part("test"), x[15:], y[15:])
    assert found.part("test")[0]["counted"].tolist() == [False] * 2 + [True] * 7 + [False] * 3


def test_one_long_row_is_parted_by_its_samples():
    x, y = arrays(1, 100)
    found = signals.read((x, y), 0.1)
    assert [part.length for part in found.parts.values()] == [80, 10, 10]
    assert np.array_equal(found.part("test")[0]["inputs"], x[0, 90:])


def test_rows_without_targets_are_known():
    x, y = arrays()
    y[5:] = np.nan
    found = signals.read((x, y), 0.1).part("train")
    assert found.labelled.tolist() == [True] * 5 + [False] * 11
    assert "11 of the former without targets" in found.recording.describe()
    assert not signals.read((x, None), 0.1).part("train").labelled.any()
    assert signals.read((x, None), 0.1).part("train")[0]["targets"].shape == (12, 0)


def test_a_table_is_read_with_and_without_series(tmp_path):
    x, y = arrays(5, 8, complex_valued=False)
    lines = [
        {"series": f"s{n}", "x_1": x[n, t, 0], "x_2": x[n, t, 1], "y": y[n, t, 0]}
        for n in range(5)
        for t in range(8)
    ]
    pd.DataFrame(lines).to_csv(tmp_path / "several.csv", index=False)
    found = signals.read(tmp_path / "several.csv", 0.2)
    assert [len(part) for part in found.parts.values()] == [3, 1, 1]
    assert np.allclose(found.part("train").inputs, x[:3]) and np.allclose(found.part("train").targets, y[:3])
    pd.DataFrame(lines).drop(columns="series").to_csv(tmp_path / "one.csv", index=False)
    assert signals.read(tmp_path / "one.csv", 0.1).part("train").inputs.shape == (1, 32, 2)
    (tmp_path / "a.csv").write_text("year,X1,xylem,y,Y_2\n" + "2000,1,2,3,4\n" * 9)
    named = signals.read(tmp_path / "a.csv", 0).part("train")
    assert named.inputs[0, 0].tolist() == [1] and named.targets[0, 0].tolist() == [3, 4]


def test_slices_and_selections_are_rows_too():
    x, y = arrays()
    part = signals.read((x, y), 0.1).part("train")
    assert np.array_equal(part.select([3, 1])[1]["inputs"], x[1])
    assert np.array_equal(part[[2, 4]]["targets"][1], y[4]) and len(part[0:3]["inputs"]) == 3
    other = signals.read(arrays(3, 7), 0).part("train")
    joined = signals.Joined([part, other])  # of other lengths
    assert len(joined) == len(part) + 3 and np.array_equal(joined[-1]["inputs"], other[2]["inputs"])
    assert np.array_equal(joined[2]["inputs"], x[2])


def broken(name):
    x, y = arrays()
    if name == "nan":
        x[3, 4, 1] = np.nan
        return (x, y), "inputs hold .*nan.* in row 3, sample 4, channel 1"
    if name == "partly":
        y[2, 5:] = np.nan
        return (x, y), "targets hold .*nan.* in row 2, sample 5"
    if name == "infinity":
        y[1, 0] = np.inf
        return (x, y), "targets hold .*inf.* in row 1, sample 0"
    if name == "lengths":
        return (x, y[:, :7]), "20 rows of 12 samples, targets 20 of 7"
    if name == "rows":
        return (x, y[:7]), "20 rows of 12 samples, targets 7 of 12"
    if name == "text":
        return (x.astype(str), y), "not numbers"
    if name == "axes":
        return (x[..., None], y), r"are \[20, 12, 2, 1\]"
    if name == "wide":
        return (x.astype(np.clongdouble), y), "wider than what is computed in"
    if name == "ragged":
        return ([[1.0, 2.0], [3.0]], y), "inputs are no array"
    if name == "alone":
        return x, "this is a ndarray"
    if name == "three":
        return (x, y, y), "this is a tuple"
    if name == "long name":
        return "a" * 5000, "there is no a"
    if name == "empty":
        return (x[:0], y[:0]), "inputs are empty"
    if name == "no samples":
        return (x[:, :0], y[:, :0]), "inputs are empty"
    return {"targets": y}, "no inputs among targets"


@pytest.mark.parametrize(
    "name",
    [
        "nan", "partly", "infinity", "lengths", "rows", "text", "axes", "wide", "ragged", "alone", "three",
        "long name", "empty", "no samples", "names",
    ],
)  # fmt: skip
def test_what_is_wrong_with_arrays_is_told_with_its_place(name):
    source, said = broken(name)
    with pytest.raises(DataError, match=said):
        signals.read(source, 0.1)


def test_what_is_wrong_with_files_is_told(tmp_path):
    x, y = arrays()
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.npy").write_bytes(b"")
    (tmp_path / "inputs_cut.npy").write_bytes(b"")
    np.save(tmp_path / "whole_inputs.npy", x)
    whole = (tmp_path / "whole_inputs.npy").read_bytes()
    (tmp_path / "short_inputs.npy").write_bytes(whole[:200])
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "other.npz", data=x)
    np.save(tmp_path / "objects_inputs.npy", np.array([x[0], x[1, :3]], dtype=object), allow_pickle=True)
    (tmp_path / "a.csv").write_text("x,y\n1,2\nfour,3\n")
    (tmp_path / "b.csv").write_text("a,y\n1,2\n")
    (tmp_path / "c.csv").write_text("id,x,y\n1,1,2\n1,2,3\n2,1,2\n")
    (tmp_path / "d.csv").write_text("")
    (tmp_path / "e.csv").write_text("id,x,y\n1,1,2\n,2,3\n2,1,2\n")
    for source, said in (
        ("nowhere", "there is no"), ("empty", "holds no inputs.npy"), ("cut.npy", "a name with 'inputs'"),
        ("inputs_cut.npy", "cannot read"), ("short_inputs.npy", "cannot read"), ("bad.npz", "cannot read"),
        ("other.npz", "holds data, and no inputs"), ("objects_inputs.npy", "cannot read"),
        ("a.csv", "column 'x', line 3: 'four' is not a number"), ("b.csv", "no column x"),
        ("e.csv", "line 3 has nothing in column 'id'"),
        ("c.csv", "unequal lengths, 1 to 2"), ("d.csv", "cannot read"), ("x.zarr", "there is no"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            signals.read(tmp_path / source, 0.1)
    np.save(tmp_path / "empty" / "inputs.npy", x)
    for meta, said in (
        ("{", "not valid JSON"),
        ("[1]", "must hold a mapping"),
        ('{"rows": [3, 99]}', r"\[3, 99\] of 12"),
    ):
        (tmp_path / "empty" / "meta.json").write_text(meta)
        with pytest.raises(DataError, match=said):
            signals.read(tmp_path / "empty", 0.1)
    with pytest.raises(DataError, match="nothing is left to train on"):
        signals.read((x[:2], y[:2]), 0.5)


def test_zarr_is_read_by_slices_and_gives_the_same_rows(tmp_path):
    zarr = pytest.importorskip("zarr")
    x, y = arrays()
    y[3] = np.nan
    whole = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    parted = zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    for name, array in (("inputs", x), ("targets", y)):
        whole.create_array(name, data=array, chunks=(4, 12, array.shape[2]))
        parted.require_group("train").create_array(name, data=array[:9])
        parted.require_group("test").create_array(name, data=array[9:])
    whole.attrs["rows"] = [2, 9]
    found, want = signals.read(tmp_path / "a.zarr", 0.1), signals.read((x, y), 0.1)
    assert not isinstance(found.part("train").inputs, np.ndarray)
    for name, low in (("train", 0), ("validation", 16), ("test", 18)):
        assert len(found.part(name)) == len(want.part(name)) and found.part(name).counted == slice(2, 9)
        same(found.part(name), x[low:], y[low:])
        assert np.array_equal(found.part(name).labelled, want.part(name).labelled)
    assert found.scales[0] == pytest.approx(np.sqrt((np.abs(x[:16, 2:9]) ** 2).mean((0, 1))))
    same(signals.read(tmp_path / "b.zarr", 0.1).part("test"), x[9:], y[9:])
    whole["inputs"][5, 2, 1] = np.inf
    with pytest.raises(DataError, match="row 5, sample 2, channel 1"):
        signals.read(tmp_path / "a.zarr", 0.1)
    zarr.open_group(str(tmp_path / "none.zarr"), mode="w")
    (tmp_path / "empty.zarr").mkdir()
    for name, said in (("none.zarr", "holds no array inputs"), ("empty.zarr", "cannot read")):
        with pytest.raises(DataError, match=said):
            signals.read(tmp_path / name, 0.1)


def test_zarr_that_is_not_installed_is_told_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", None)  # what an import of it then raises is ImportError
    with pytest.raises(DataError, match=r"llm-finetuner\[zarr\]"):
        signals.read(tmp_path / "a.zarr", 0.1)


# ---- simulated ones


def test_simulated_columns_are_written_as_they_are_drawn(tmp_path):
    scene, counts = Scene(), {"train": 300, "validation": 3, "test": 4}
    sar_files.write(tmp_path, sar.AIRBORNE, scene, counts, 5)
    found = signals.read(tmp_path, 0.1)
    want = simulate(sar.AIRBORNE, scene, 300, 5)
    part = found.part("train")
    assert np.array_equal(part.inputs, want.inputs) and np.array_equal(part.targets, want.truth)
    assert part.counted == want.rows and [len(p) for p in found.parts.values()] == [300, 3, 4]
    radar, columns = sar_files.read_columns(tmp_path, "train")
    assert radar == sar.AIRBORNE and np.array_equal(columns.slant_range, want.slant_range)
    assert sar_files.read_geometry(found.about, "x") == (sar.AIRBORNE, scene)
    sar_files.write(tmp_path / "few", sar.AIRBORNE, scene, {**counts, "train": 40}, 5, labelled=32)
    few = signals.read(tmp_path / "few", 0.1)
    assert few.part("train").labelled.sum() == 32 and few.part("test").labelled.all()
    assert np.array_equal(few.part("test").inputs, found.part("test").inputs)  # whatever there is to train on
    assert np.array_equal(few.part("train").inputs, want.inputs[:40])


def test_the_command_simulate(tmp_path, capsys):
    folder = tmp_path / "columns"
    words = [
        "simulate",
        "--out",
        str(folder),
        "--columns",
        "6",
        "--validation",
        "2",
        "--test",
        "2",
        "--labelled",
        "4",
    ]
    assert app.main([*words, "--noise-db", "-30", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == [38, 218] and said["scene"]["noise_db"] == -30
    assert signals.read(folder, 0.1).part("train").labelled.tolist() == [True] * 4 + [False] * 2
    assert app.main(words) == 2 and "is there already" in capsys.readouterr().err
    assert app.main(["simulate", "--out", str(tmp_path / "no"), "--length", "60"]) == 2
    assert "no row with a whole aperture" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert app.main(["simulate", "--out", str(tmp_path / "s"), "--radar", "sentinel-1", *words[3:9]]) == 0
    assert signals.read(tmp_path / "s", 0.1).part("test").length == 2048
    for wrong, told in (
        (["--noise-db", "nan"], "noise_db"),
        (["--labelled", "7"], "labelled=7 is more than the 6"),
    ):
        assert app.main([*words[:2], str(tmp_path / "t"), *words[3:9], *wrong]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "t").exists()
    assert simulating.RADARS == tuple(sar.RADARS)
