"""The seam to accelerate, which no other file imports: where a run computes, in what precision, on how many processes.

One process and DDP are supported. FSDP and DeepSpeed stop here: on a CPU accelerate silently runs DDP in their place.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, send_to_device, set_seed
from torch import Tensor, nn

from llm_finetuner.errors import RecipeError, TrainingError

WANTED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


class Engine:
    """Places, wraps, reduces and clips. device: None takes an accelerator where there is one. Raises TrainingError."""

    def __init__(
        self,
        seed: int,
        precision: str,
        device: str | None = None,
        trackers: list[str] = (),
        folder: str = ".",
    ):
        for variable, name in WANTED.items():
            if os.environ.get(variable, "").lower() == "true":
                raise TrainingError(
                    f"{name} was asked for and is not supported yet", "launch with DDP, or one process"
                )
        # another run in this process may have used another precision or device
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        where = default_device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        self.precision, self.folder = choose_precision(precision, where), Path(folder)
        for tracker in trackers:
            if importlib.util.find_spec(tracker) is None:
                raise RecipeError(
                    f"the tracker {tracker} is not installed",
                    f'pip install "llm-finetuner[{tracker}]" (or {tracker}), or leave it out',
                )
        self._accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(self.precision, self.precision),
            cpu=where.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
        )
        if self._accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise TrainingError("FSDP and DeepSpeed are not supported yet", "launch with DDP, or one process")
        self.device = self._accelerator.device
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.main = self._accelerator.is_main_process
        set_seed(seed)

    def prepare(self, learner: nn.Module, optimizer: torch.optim.Optimizer):
        return self._accelerator.prepare(learner, optimizer)

    def place(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return send_to_device(batch, self.device, non_blocking=True)

    def sum(self, values: Tensor) -> Tensor:
        """Add up over processes."""
        return self._accelerator.reduce(values, "sum")

    def quiet(self, module: nn.Module, last: bool):
        """Hold back gradient traffic until the last batch of a step."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def unscale(self) -> None:
        """Take the fp16 loss scaler's factor off the gradients, once a step."""
        self._accelerator.unscale_gradients()

    def clip(self, parameters, max_norm: float) -> Tensor:
        """Clip the joint norm of the gradients, unscaled, and return it as it was; 0 only measures."""
        return nn.utils.clip_grad_norm_(list(parameters), max_norm or float("inf"))

    def unwrap(self, module: nn.Module) -> nn.Module:
        return self._accelerator.unwrap_model(module, keep_fp32_wrapper=False)

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def start_trackers(self, name: str, settings: dict, done: int) -> None:
        """done: steps of this run that are logged already; trackers go on where they were, what came later is void."""
        plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float)}
        place = {"dir": str(self.folder), **(_last_of_wandb(self.folder) if done else {})}
        started = {"tensorboard": {"purge_step": done + 1}, "wandb": place}
        self._accelerator.init_trackers(name, config=plain, init_kwargs=started)

    def track(self, record: dict, step: int) -> None:
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        self._accelerator.log(numbers, step=step)

    def draw(self, histograms: dict, step: int) -> None:
        """Histograms by their tag, to every tracker."""
        for tracker in self._accelerator.trackers:
            DRAW[tracker.name](tracker.tracker, histograms, step)

    def end(self) -> None:
        """Finish the trackers. The processes stay connected: another run may follow in them, of a chain or a search."""
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def scaler_state(self) -> dict:
        """State of the fp16 loss scaler; empty in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler else {}

    def load_scaler_state(self, state: dict) -> None:
        if self._accelerator.scaler and state:
            self._accelerator.scaler.load_state_dict(state)


def choose_precision(precision: str, device: torch.device) -> str:
    """bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU; anything else as asked for. Raises RecipeError."""
    if precision == "auto":
        if device.type == "cpu":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("precision fp16 needs a GPU", "use precision fp32 or bf16 on this machine")
    return precision


def default_device(device: str | None = None) -> torch.device:
    """Where this process computes: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one. Raises RecipeError."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device is None and not gpus):
        return torch.device("cpu")
    kind, _, number = (device or "cuda").partition(":")
    index = int(number) if number.isdigit() else int(os.environ.get("LOCAL_RANK", 0))
    if kind != "cuda" or (number and not number.isdigit()) or index >= gpus:
        raise RecipeError(
            f"device {device!r} is not to be had: this machine has {gpus} CUDA devices",
            "leave it out, or give 'cpu'",
        )
    return torch.device("cuda", index)


@contextmanager
def in_memory(batch_size: int) -> Iterator[None]:
    """While it lasts, having no memory left is a TrainingError that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory with batch_size={batch_size}: {str(error).splitlines()[0]}",
            "halve batch_size and double gradient_accumulation_steps, or give max_tokens (the result is the same), "
            "or set gradient_checkpointing",
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said


def _last_of_wandb(folder: Path) -> dict[str, str]:
    """What has W&B go on with the newest run whose files lie in the folder: wandb/[offline-]run-DATE_TIME-ID."""
    found = sorted(path.name.split("run-", 1)[1] for path in (folder / "wandb").glob("*run-*"))
    return {"id": found[-1].split("-", 1)[1], "resume": "allow"} if found else {}


def _draw_in_tensorboard(writer, histograms: dict, step: int) -> None:
    for tag, drawn in histograms.items():
        writer.add_histogram_raw(
            tag, drawn.edges[0], drawn.edges[-1], sum(drawn.counts), drawn.sum, drawn.sum_squares,
            drawn.edges[1:], drawn.counts, step,
        )  # fmt: skip


def _draw_in_wandb(run, histograms: dict, step: int) -> None:
    import wandb

    made = {tag: wandb.Histogram(np_histogram=(h.counts, h.edges)) for tag, h in histograms.items()}
    run.log(made, step=step)


DRAW = {"tensorboard": _draw_in_tensorboard, "wandb": _draw_in_wandb}
