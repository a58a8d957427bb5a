"""Cross-entropy and forward KL on a CPU by a small C kernel, compiled once on the machine that it runs on.

Shapes: n positions, V columns of the student's logits, C <= V of them that the teacher knows.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("response.c")
FLAGS = ["-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
NATIVE = "-march=native"
SWITCH = "LLM_FINETUNER_KERNELS"  # 0: PyTorch alone
SECONDS = 120  # that a compiler may take


def cross_entropy_and_forward_kl_(
    logits_nV: Tensor,
    answers_nC: Tensor | None,
    targets_n: Tensor,
    places_n: Tensor,
    known_n: Tensor | None,
    *,
    temperature: float,
    w_ce: float,
    w_kl: float,
) -> Tensor:
    """Turn float32 logits into the gradient of the weighted summed loss by them, in place.

    Returns [4] in float64: summed cross-entropy, T^2 KL and the teacher's NLL in nats, and positions of equal top
    token. targets, places: token ids among the V and the C, or negative where there is none. Masks mean what they
    mean in log_space.py. Raises IndexError for ids beyond the columns.
    """
    assert logits_nV.dtype == torch.float32 and logits_nV.stride(-1) == 1
    for x, kind in (
        (answers_nC, torch.float32),
        (targets_n, torch.int64),
        (places_n, torch.int64),
        (known_n, torch.bool),
    ):
        assert x is None or (x.dtype == kind and x.is_contiguous() and len(x) == len(logits_nV) and x.is_cpu)
    kernel = load()
    _check(targets_n, logits_nV.shape[1])
    if answers_nC is not None:
        _check(places_n, answers_nC.shape[1])
    (n, V), threads = logits_nV.shape, torch.get_num_threads()
    sums = torch.zeros(threads, 4, dtype=torch.float64)

    def at(tensor: Tensor | None, start: int) -> int | None:
        return (
            None if tensor is None else tensor.data_ptr() + start * tensor.stride(0) * tensor.element_size()
        )

    def part(number: int) -> int:
        start, end = n * number // threads, n * (number + 1) // threads
        return kernel(
            at(logits_nV, start), at(answers_nC, start), at(targets_n, start), at(places_n, start),
            at(known_n, start), end - start, V, 0 if answers_nC is None else answers_nC.shape[1],
            logits_nV.stride(0), 0 if answers_nC is None else answers_nC.stride(0),
            temperature, w_ce, w_kl, at(sums, number),
        )  # fmt: skip

    # ctypes lets go of the interpreter's lock, so plain threads do
    if any(_pool(threads).map(part, range(threads))):
        raise MemoryError("no memory for one row of logits")
    return sums.sum(0)


def _check(ids_n: Tensor, columns: int) -> None:
    if len(ids_n) and int(ids_n.max()) >= columns:
        raise IndexError(f"token {int(ids_n.max())} of a vocabulary of {columns}")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


if os.name == "posix":
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def available() -> bool:
    """Whether the kernel is in force: a C compiler was found and made it, and it was not switched off."""
    return load() is not None


@functools.cache
def load():
    """The compiled function, or None. Compiled on first use (seconds) and kept in the user's cache folder."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        return None
    try:
        library = _folder() / f"response_{_key(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
        kernel = ctypes.CDLL(str(library)).response_rows
    except (
        OSError,
        RuntimeError,
        subprocess.SubprocessError,
    ):  # no home, no place to write, no good compiler
        return None
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    kernel.argtypes = [*[pointer] * 5, *[whole] * 5, *[real] * 3, pointer]
    return kernel


def _compile(compiler: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for flags in ([NATIVE, *FLAGS], FLAGS):  # not every compiler knows its own processor
            done = subprocess.run(
                [*compiler, *flags, str(SOURCE), "-o", str(made), "-lm"], capture_output=True, timeout=SECONDS
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        os.replace(made, library)  # whole, whoever else compiles it now


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_finetuner"


def _key(compiler: list[str]) -> str:
    """Of all that decides the machine code: a home folder may be shared between machines."""
    about = [
        SOURCE.read_bytes(),
        " ".join(compiler).encode(),
        platform.machine().encode(),
        " ".join(FLAGS).encode(),
    ]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        about += [
            line for line in cpu.read_bytes().splitlines() if line.startswith((b"flags", b"model name"))
        ][:2]
    return hashlib.sha256(b"\n".join(about)).hexdigest()[:16]
