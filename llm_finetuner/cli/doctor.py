"""What this machine has and what is missing, one check a line."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from llm_finetuner.cli.hub import address, trouble
from llm_finetuner.cli.plain import size

PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "peft", "bitsandbytes", "safetensors", "questionary",
    "rich", "rouge-score", "PyYAML", "jinja2", "matplotlib",
)  # fmt: skip
ENOUGH_DISK = 5 * 2**30
NO_KERNEL = "PyTorch (no C compiler was found, or LLM_FINETUNER_KERNELS=0)"
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it will do, what was found or what to do."""

    name: str
    ok: bool
    says: str


def checks(online: bool = False) -> list[Check]:
    """All checks, in the order they are shown."""
    found = [python(), *packages(), *processor()]
    if importlib.util.find_spec("torch"):
        found += accelerators()
    found += [disk(), outputs()]
    return [*found, hub()] if online else found


def python() -> Check:
    version = platform.python_version()
    return Check("Python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")


def packages() -> Iterator[Check]:
    for name in PACKAGES:
        try:
            yield Check(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, False, f"not installed: pip install {name}")


def processor() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    free, where = memory_available()
    yield Check("processor", True, f"{cores} cores, {platform.machine()}")
    if free:
        yield Check("memory", free > 2 * 2**30, f"{size(free)} free {where}; 2 GiB train the smallest models")
    info = Path("/proc/cpuinfo")
    if info.exists():
        features = info.read_text(encoding="utf-8")
        known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if name in features]
        yield Check(
            "instructions", bool(known), ", ".join(known) or "no vector instructions: training is slow"
        )


def accelerators() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch loads", False, str(error).strip().splitlines()[0])
        return
    yield loss_kernel()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Check("GPU", True, f"{name}, {size(free)} of {size(total)} free")
        bf16 = torch.cuda.is_bf16_supported()
        yield Check("bf16", bf16, "yes" if bf16 else "not on this GPU: fp16 is used")
    elif torch.backends.mps.is_available():
        yield Check("GPU", True, "Apple (mps)")
    else:
        yield Check("GPU", True, "none: training runs on the processor, which is right for small models")
    if importlib.util.find_spec("bitsandbytes"):
        where = "4 and 8 bits on GPU and CPU; adamw_8bit on a GPU only"
        yield Check("quantisation", True, where)


def loss_kernel() -> Check:
    """Which inner loop computes cross-entropy and forward KL on the processor."""
    from llm_finetuner.kernels import response

    where = "compiled C kernel" if response.available() else NO_KERNEL
    return Check("loss kernel", True, where)


def disk() -> Check:
    free = shutil.disk_usage(".").free
    told = "a checkpoint takes up to 12 bytes a weight"
    return Check("disk", free > ENOUGH_DISK, f"{size(free)} free here; {told}")


def outputs() -> Check:
    folder = Path("outputs") if Path("outputs").exists() else Path(".")
    ok = os.access(folder, os.W_OK)
    return Check(
        "outputs", ok, f"{folder.resolve()} can be written" if ok else f"no right to write {folder.resolve()}"
    )


def hub() -> Check:
    if not trouble():
        return Check("hub", True, f"{address()} answers")
    out = f"{address()} is out of reach ({trouble()}): use local folders for models and data"
    return Check("hub", False, out)


def memory_available() -> tuple[int | None, str]:
    """Bytes free for a run, and where: on the GPU if training will use one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "on the GPU"
    if MEMINFO.exists():
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024, "in memory"
    return None, ""
