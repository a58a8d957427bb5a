"""Large blocks go back to the system, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.parametrize(
    ("own", "said"), [({}, ["True", "True"]), ({"MALLOC_TRIM_THRESHOLD_": str(2**30)}, ["False", "False"])]
)
def test_freed_blocks_are_no_longer_resident(own, said):
    """Also a setting of the user's stays: glibc keeps what it was told to keep."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(own=own)], capture_output=True, text=True, env=None
    )
    assert done.stdout.split() == said, done.stderr
