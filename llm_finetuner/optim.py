"""Optimizers and learning-rate schedules by name. A schedule is a pure function of the step: no state to resume."""

import math

import torch

from llm_finetuner.errors import RecipeError

# Parameters of state-space models by their last name (models/s4d_mixer.py). A step of a pole or a time step changes the
# whole kernel, so they learn at a share of the rate; none of them decays towards 0, where it would mean another system.
SLOW, SLOW_SHARE = ("log_dt", "decay", "frequency"), 0.3
STATE_SPACE = ("C", "D")

ADAPTER_RATE, FULL_RATE, SCRATCH_RATE = 2e-4, 5e-5, 1e-3  # an adapter's rate would wreck full fine-tuning


def default_rate(tuning: str, new_weights: bool) -> float:
    """The learning rate of a run that names none."""
    if new_weights:
        return SCRATCH_RATE
    return FULL_RATE if tuning == "full" else ADAPTER_RATE


def adamw(parameters, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), beta (0.9, 0.95), as language models are trained."""
    return torch.optim.AdamW(_groups(parameters, weight_decay), lr=0.0, betas=(0.9, 0.95), fused=True)


def adamw_8bit(parameters, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments (arXiv 2110.02861) by bitsandbytes. Raises RecipeError off a GPU."""
    if device.type != "cuda":
        raise RecipeError("optimizer adamw_8bit needs a CUDA device", "use optimizer=adamw on this machine")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(_groups(parameters, weight_decay), lr=0.0, betas=(0.9, 0.95))


def _groups(parameters, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms and gains do not."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def set_apart(optimizer: torch.optim.Optimizer, learner: torch.nn.Module) -> None:
    """Give the parameters of state-space models groups of their own: without decay, the slow ones at their share."""
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in learner.named_parameters()}
    apart: dict[float, list] = {SLOW_SHARE: [], 1.0: []}
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            share = SLOW_SHARE if name in SLOW else 1.0 if name in STATE_SPACE else None
            (kept if share is None else apart[share]).append(parameter)
        group["params"] = kept
    for share, parameters in apart.items():
        if parameters:
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0, "share": share})


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step; groups that have a share of it get that."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def rate(schedule, step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate for optimizer step `step` = 1..steps; warmup below 1 is a share of the steps."""
    warm = math.ceil(warmup * steps) if warmup < 1 else int(warmup)
    if step <= warm:
        return step / warm
    return schedule((step - warm - 1) / max(steps - warm, 1))


def constant(done: float) -> float:
    """The full rate to the end."""
    return 1.0


def linear(done: float) -> float:
    """Straight down to 0."""
    return 1.0 - done


def cosine(done: float) -> float:
    """Half a cosine wave down to 0 (arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))
