"""Schemes on two processes equal those on one: DDP over gloo, in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import schemes_script
from safetensors.torch import load_file

from llm_finetuner.gauges import tags

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes_script.SCHEMES)
def test_two_processes_equal_one(tmp_path, scheme):
    """Weights of the student, its exits and its peers, every mean of the log, and what a teacher wrote."""
    one, two = tmp_path / "one", tmp_path / "two"
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "schemes_script.py"), str(two), scheme]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    schemes_script.run(str(one), scheme)
    names = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(two) for p in two.rglob("*.safetensors"))
    for name in names:
        want, got = load_file(one / name), load_file(two / name)
        assert want.keys() == got.keys()
        assert max((want[k] - got[k]).abs().max() for k in want) < 1e-9, name
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert ["layers" in record for record in logs[0]] == [False, True, False, True]
    for a, b in zip(*logs, strict=True):
        assert a.get("histograms", {}).keys() == b.get("histograms", {}).keys()
        nested = ("layers", "histograms")
        a, b = ({**tags(record), **{k: v for k, v in record.items() if k not in nested}} for record in (a, b))
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "tokens_per_second"}:
            assert b[key] == (a[key] and pytest.approx(a[key], rel=1e-9)), key
    if scheme == "sequence":
        assert (two / "written.jsonl").read_text() == (one / "written.jsonl").read_text()
        assert len((two / "written.jsonl").read_text().splitlines()) == 2 * schemes_script.ROWS
