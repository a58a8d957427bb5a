"""How much memory and time a run will take: arithmetic on sizes, before any weight is loaded.

    weights      4 bytes each where they move; frozen ones 4 on a CPU, 2 on a GPU, about 1.1 in 8 bits, 0.6 in 4 bits
    gradients    4 bytes a moving weight
    optimizer    AdamW: 8 bytes a moving weight (two moments); adamw_8bit: 2
    activations  34 bytes x batch x tokens x width x blocks in 16 bits, twice that in 32 (Korthikanti et al. 2022,
                 arXiv 2205.05198, without the attention matrix); with checkpointing 2 (4) bytes, and one block in full
    logits       a chunk of at most 64 MiB, four times: logits, log-probabilities and gradients of both models
    time         per token 2 x weights forward and 4 backward (2 where the weights are frozen), 2 for the teacher,
                 at half the speed of a plain matrix product measured here, plus 20 ms a forward pass

They are estimates: allocators, kernels and short rows make them wrong by a factor of two either way.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm_finetuner.recipe import Model, Recipe

FRAMEWORK = 450 * 2**20  # torch, transformers and the interpreter themselves
LOGITS_CHUNK, LOGITS_COPIES = 64 * 2**20, 4
EFFICIENCY = 0.5  # of the speed of a plain matrix product
A_PASS = 0.02  # seconds that a forward and backward pass take however small the model
BLOCK_BYTES, SAVED_BYTES = 34, 2  # a token and unit of width, in 16 bits


@dataclass(frozen=True)
class Sizes:
    """What the estimates need to know of a model."""

    parameters: int
    trainable: int
    width: int
    blocks: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """memory in bytes, by what takes it; seconds is None where the speed is not known."""

    steps: int
    examples: int
    tokens: float
    memory: dict[str, float]
    seconds: float | None

    @property
    def total(self) -> float:
        return sum(self.memory.values())


@contextmanager
def reading(name: str) -> Iterator[None]:
    """While it lasts, what can go wrong with a model's configuration is a ModelError."""
    from llm_finetuner.errors import ModelError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot read {name!r}: {first}", "is the name right, and the hub in reach?"
        ) from error


def positions(name: str) -> int | None:
    """Tokens that the model can take at once; None where its configuration sets no bound. Raises ModelError."""
    from transformers import AutoConfig

    with reading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
    spelled = config.attribute_map.get(
        "max_position_embeddings", "max_position_embeddings"
    )  # GPT-2: n_positions
    return config.to_dict().get(spelled)


def measure(model: Model, recipe: Recipe | None = None) -> Sizes:
    """Build the model without weights, with the recipe's adapter if one is given, and count. Raises ModelError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_finetuner.registry import TUNINGS, resolve

    with reading(model.name):
        config = AutoConfig.from_pretrained(model.name, trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    parameters = trainable = sum(p.numel() for p in empty.parameters())
    if recipe is None:
        trainable = 0
    elif recipe.tuning.kind != "full":
        kind = (
            "lora" if recipe.tuning.kind == "qlora" else recipe.tuning.kind
        )  # the same adapter, unquantised
        resolve(TUNINGS, kind)(empty, 100, **recipe.tuning.options)
        trainable = sum(p.numel() for p in empty.parameters() if p.requires_grad)
    text = config.get_text_config()
    return Sizes(parameters, trainable, text.hidden_size, text.num_hidden_layers, text.vocab_size)


def matmul_speed() -> float:
    """Floating point operations a second of a plain matrix product on the device that will train, in 0.1 s."""
    import torch

    gpu = torch.cuda.is_available()
    size, kind = (4096, torch.bfloat16) if gpu else (512, torch.float32)
    a = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=kind)
    a @ a
    if gpu:
        torch.cuda.synchronize()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.1:
        a @ a
        done += 1
        if gpu:
            torch.cuda.synchronize()
    return done * 2 * size**3 / (time.perf_counter() - begin)


def on_gpu() -> bool:
    """Whether the run will use one."""
    import torch

    return torch.cuda.is_available()


def estimate(
    recipe: Recipe,
    student: Sizes,
    teacher: Sizes | None,
    examples: int,
    length: float,
    gpu: bool = False,
    speed: float | None = None,
) -> Estimate:
    """Steps, memory and time of the recipe on `examples` rows of `length` tokens on average."""  # fmt: skip
    plan = recipe.train
    own_eval = recipe.data.eval_source or recipe.data.eval_split
    train = examples if own_eval else examples - round(examples * recipe.data.eval_fraction)
    a_step = plan.batch_size * plan.gradient_accumulation_steps
    per_epoch = max(1, math.ceil(train / a_step))
    steps = plan.steps or max(1, round(plan.epochs * per_epoch))
    tokens = steps * train / per_epoch * length
    seconds = None
    if speed:
        work = tokens * operations(recipe, student, teacher) / (speed * EFFICIENCY)
        seconds = work + steps * plan.gradient_accumulation_steps * A_PASS
    return Estimate(steps, train, tokens, memory(recipe, student, teacher, length, gpu), seconds)


def memory(
    recipe: Recipe, student: Sizes, teacher: Sizes | None, length: float, gpu: bool
) -> dict[str, float]:
    """Bytes by what takes them, at the peak of a step."""
    plan = recipe.train
    half = plan.precision in ("bf16", "fp16") or (plan.precision == "auto" and gpu)
    rows = plan.batch_size * length * student.width * (1 if half else 2)
    logits = LOGITS_COPIES * min(LOGITS_CHUNK, 4 * plan.batch_size * length * student.vocabulary)
    blocks = BLOCK_BYTES * student.blocks
    if plan.gradient_checkpointing:
        blocks = SAVED_BYTES * student.blocks + BLOCK_BYTES
    frozen = max(student.parameters - student.trainable, 0)
    moments = 2 if plan.optimizer == "adamw_8bit" else 8
    return {
        "student": 4 * student.trainable + frozen * bytes_held(recipe.student, gpu),
        "gradients": 4 * student.trainable,
        "optimizer": moments * student.trainable,
        "activations": rows * blocks + logits,
        "teacher": teacher.parameters * bytes_held(recipe.teacher, gpu) if teacher else 0,
        "software": FRAMEWORK,
    }


def bytes_held(model: Model, gpu: bool) -> float:
    """Bytes a frozen weight takes."""
    if model.load_in_4bit:
        return 0.6
    if model.load_in_8bit:
        return 1.1
    return {"float32": 4, "bfloat16": 2, "float16": 2}.get(model.dtype, 2 if gpu else 4)


def operations(recipe: Recipe, student: Sizes, teacher: Sizes | None) -> float:
    """Floating point operations a training token costs."""
    frozen = student.trainable < student.parameters
    each = 2 + (2 if frozen else 4) + (2 if recipe.train.gradient_checkpointing else 0)
    return each * student.parameters + (2 * teacher.parameters if teacher else 0)


def look_ahead(recipe: Recipe, examples: int, length: float) -> tuple[dict[str, Any], Estimate]:
    """({"student": Sizes, "teacher": Sizes or None}, Estimate) for this machine. Raises ModelError."""
    student = measure(recipe.student, recipe)
    teacher = measure(recipe.teacher) if recipe.teacher else None
    guess = estimate(recipe, student, teacher, examples, length, on_gpu(), matmul_speed())
    return {"student": student, "teacher": teacher}, guess
