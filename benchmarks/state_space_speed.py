"""S4D's kernel against the reference construction, which holds every mode at every sample, and the ways to run a model.

    python benchmarks/state_space_speed.py            # the table: about three minutes
    python benchmarks/state_space_speed.py --write    # and into docs/state_space.md

64 channels, a state of 540, one thread. Seconds are the process's own (process_time), so that neighbours on the machine
count little; each figure is a median, and what is compared is run in turns within one process. Memory is the most that
a fresh process held beyond what it held before. Letters: B sequences, H channels, M modes, L samples.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ledger
import torch
from performance_worker import forget_peak, resident
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llm_finetuner.models.build_s4d import s4d  # noqa: E402
from llm_finetuner.models.s4d_mixer import S4DMixer  # noqa: E402

PAGE = ROOT / "docs" / "state_space.md"
MARK = "<!-- figures: python benchmarks/state_space_speed.py -->"
CHANNELS, STATE = 64, 540
Line = tuple[str, str, str, bool | None]  # check, bar, measured, whether it holds


# ---- the reference


def ours() -> S4DMixer:
    """A mixer of conjugate pairs, which is what the reference computes."""
    torch.manual_seed(0)
    return S4DMixer(CHANNELS, STATE, False, False, "lin", "zoh", 1e-3, 2 / STATE)


def dense_kernel(mixer: S4DMixer, length: int) -> Tensor:
    """K[l] = 2 Re sum_m C (e^(dt A) - 1) / A e^(dt A l) in the precision of the weights, [H, M, L] at once: [H, L]."""
    A_HM = torch.complex(-mixer.decay.exp(), mixer.frequency)
    w_HM = mixer.log_dt.exp()[:, None] * A_HM
    gain_HM = torch.view_as_complex(mixer.C[0]) * (w_HM.exp() - 1) / A_HM
    powers_HML = (w_HM[..., None] * torch.arange(length)).exp()
    return 2 * torch.einsum("hm,hml->hl", gain_HM, powers_HML).real


def dense_mixer(mixer: S4DMixer, u_BHL: Tensor) -> Tensor:
    """The whole layer: the dense kernel, and a convolution by an FFT of twice the length."""
    length = u_BHL.shape[-1]
    spectrum = torch.fft.rfft(dense_kernel(mixer, length), 2 * length)
    y_BHL = torch.fft.irfft(torch.fft.rfft(u_BHL, 2 * length) * spectrum, 2 * length)[..., :length]
    return y_BHL + mixer.D[:, None] * u_BHL


# ---- seconds


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def in_turns(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """The median seconds of each, after one run that does not count."""
    for run in runs:
        run()
    rounds = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def kernels(repeats: int) -> list[Line]:
    mixer, lines = ours(), []
    for length, bar in ((1000, 25), (4096, 50)):
        with torch.no_grad():
            dense, fast = in_turns(
                repeats, partial(dense_kernel, mixer, length), partial(mixer.kernel, length)
            )
            exact = dense_kernel(mixer.double(), length)
            mixer.float()
            apart = [_apart(found, exact) for found in (dense_kernel(mixer, length), mixer.kernel(length)[0])]
        lines.append(_faster(f"kernel, forward, {length:,} samples", bar, dense, fast))
        told = f"{apart[1]:.1e}; the reference {apart[0]:.1e}"
        lines.append((f"its error against float64, {length:,} samples", "-", told, None))

    def learn(kernel: Callable[[], Tensor]) -> Callable[[], object]:
        weights = [mixer.log_dt, mixer.decay, mixer.frequency, mixer.C]
        return lambda: torch.autograd.grad(kernel().square().sum(), weights)

    dense, fast = in_turns(
        repeats, learn(partial(dense_kernel, mixer, 1000)), learn(partial(mixer.kernel, 1000))
    )
    lines.append(_faster("kernel, forward and backward, 1,000 samples", 15, dense, fast))
    mixer.eval().requires_grad_(False)
    u_BHL = torch.randn(1, CHANNELS, 1000)
    u_BLH = u_BHL.transpose(1, 2)
    dense, cached = in_turns(repeats, partial(dense_mixer, mixer, u_BHL), partial(mixer, u_BLH))
    lines.append((
        "a layer in eval, spectrum kept, 1 x 1,000 samples", "-",
        f"{dense / cached:,.0f} x ({1e3 * dense:,.0f} -> {1e3 * cached:.1f} ms)", None,
    ))  # fmt: skip
    return lines


def models(repeats: int) -> list[Line]:
    """Whole complex models: with what is kept of the weights in eval and without, and chunks against steps."""
    lines: list[Line] = []
    for preset in ("teacher", "standard", "compressed", "tiny"):
        model = s4d(preset=preset).eval()
        x_BLI = torch.randn(2, 1000, 2, dtype=torch.complex64)
        with torch.no_grad():
            model.train()
            cold = in_turns(repeats, partial(model, x_BLI))[0]
            model.eval()
            kept = in_turns(repeats, partial(model, x_BLI))[0]
        told = f"{1e3 * cold:.0f} ms, {1e3 * kept:.0f} ms with spectra kept"
        lines.append((f"`{preset}`, 2 x 1,000 samples", "-", told, None))
    model = s4d(preset="standard").eval()
    for batch in (1, 16):
        x_BLI = torch.randn(batch, 128, 2, dtype=torch.complex64)
        with torch.no_grad():
            state = model.initial_state(batch)
            step, chunk = in_turns(
                3 * repeats, partial(model.step, x_BLI[:, 0], state), partial(model, x_BLI, chunk=128)
            )
        faster = 128 * step / chunk
        told = f"{faster:.1f} x ({1e6 * step / batch:,.0f} -> {1e6 * chunk / 128 / batch:.0f} us a sample)"
        columns = "column" if batch == 1 else "columns"
        lines.append((f"chunks of 128 against steps, {batch} {columns}", ">= 5 x", told, faster >= 5))
    return lines


def _faster(what: str, bar: float, slow: float, fast: float) -> Line:
    ratio = slow / fast
    return what, f">= {bar} x", f"{ratio:.0f} x ({1e3 * slow:,.0f} -> {1e3 * fast:.1f} ms)", ratio >= bar


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


# ---- memory


def memory() -> list[Line]:
    lines = []
    for what, learn in (("forward", False), ("forward and backward", True)):
        dense, fast = (_peak_of(kind, learn) for kind in ("dense", "ours"))
        told = f"{fast / dense:.2f} x ({dense:.0f} -> {fast:.0f} MB)"
        lines.append((f"peak memory, {what}, 1,000 samples", "<= 1/4", told, fast <= dense / 4))
    return lines


def _peak_of(kind: str, learn: bool) -> float:
    """Megabytes, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, *(["--learn"] if learn else [])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(kind: str, learn: bool) -> None:
    mixer = ours()
    kernel = partial(dense_kernel, mixer) if kind == "dense" else mixer.kernel
    kernel(8).square().sum().backward()  # what torch sets up once
    forget_peak()
    before = resident("VmHWM")
    with torch.set_grad_enabled(learn):
        loss = kernel(1000).square().sum()
    if learn:
        loss.backward()
    print((resident("VmHWM") - before) / 2**20)


# ---- the table


def table(lines: list[Line]) -> str:
    about = (
        f"{_processor()}, one thread, torch {torch.__version__}, {ledger.today()}, commit {ledger.commit()}"
    )
    marks = {True: "pass", False: "MISSED", None: ""}
    rows = [f"| {check} | {bar} | {told} | {marks[held]} |" for check, bar, told, held in lines]
    return "\n".join([about, "", "| what | bar | measured | |", "|---|---|---|---|", *rows])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = (line.partition(":")[2].strip() for line in named if line.startswith("model name"))
    return next(model, platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--repeats", type=int, default=5, help="runs whose median is taken")
    parser.add_argument("--peak", choices=("dense", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--learn", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        print_peak(asked.peak, asked.learn)
        return 0
    lines = [*kernels(asked.repeats), *memory(), *models(asked.repeats)]
    text = table(lines)
    print(text)
    if asked.write:
        ledger.put(PAGE, MARK, text)
    return int(any(held is False for *_, held in lines))


if __name__ == "__main__":
    sys.exit(main())
