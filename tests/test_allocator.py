"""Large blocks go back to the system, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

from llm_finetuner.allocator import return_large_blocks

CODE = """
import os, sys
os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
os.environ.update({own!r})
import torch
from llm_finetuner.allocator import return_large_blocks
print(return_large_blocks())
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before, kept = resident(), []
for i in range(40):  # blocks of 20 MiB, each with a small one behind it that stays
    block = torch.ones(20 * 2**18)
    kept.append(torch.ones(2**14))
    del block
blocks = [torch.ones(20 * 2**18) for _ in range(8)]
more = [torch.ones(2**16) for _ in range(8)]
del blocks
print(resident() - before < 20)
"""


def run(**own: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE.format(own=own)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_blocks_are_no_longer_resident():
    assert run() == ["True", "True"]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_setting_of_the_users_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr("ctypes.CDLL", None)  # not even asked
    assert return_large_blocks.__wrapped__() is False
