"""How the C library hands memory back, where it is glibc.

A step makes large blocks in one order and frees them in another. From its heap glibc then serves each step a little
more than the one before needed: a step of 2.3 GB came to stand at 3.0 GB. Blocks of their own go back when they are
freed, and with huge pages (finetune_cli.py) making them anew costs no measurable time.
"""

import ctypes
import functools
import os

TRIM, MMAP = -1, -3  # of mallopt(3): what of the heap's end is kept, and from what size a block stands alone
OWN_BLOCK, KEPT = 2**21, 2**27  # bytes: of a huge page, and of many
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # the user's own settings


@functools.cache
def return_large_blocks() -> bool:
    """Give large blocks back to the system when they are freed. False where it cannot be done, or was chosen before."""
    if any(name in os.environ for name in CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; on Windows there is no such handle
        return False
    return bool(mallopt(MMAP, OWN_BLOCK) and mallopt(TRIM, KEPT))
