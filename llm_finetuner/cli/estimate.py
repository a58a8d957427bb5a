"""How much memory and time a run will take: arithmetic on sizes, before any weight is loaded.

    weights      4 bytes each where they move; frozen ones 4 on a CPU, 2 on a GPU, about 1.1 in 8 bits, 0.6 in 4 bits
    gradients    4 bytes a moving weight
    optimizer    AdamW: 8 bytes a moving weight (two moments); adamw_8bit: 2
    activations  34 bytes x batch x tokens x width x blocks in 16 bits, twice that in 32 (Korthikanti et al. 2022,
                 arXiv 2205.05198, without the attention matrix); with checkpointing 2 (4) bytes, and one block in full
    logits       a chunk of at most 64 MiB, twice: of both models; the gradient takes the place of the student's
    time         per token 2 x weights forward and 4 backward (2 where the weights are frozen), 2 for each teacher,
                 at half the speed of a plain matrix product measured here, plus 20 ms a forward pass
    writing      2 x weights for each token that is written, plus 10 ms a token for all texts of a batch together
    peers        models that learn beside the student cost what it costs; a moving average costs a teacher's part

They are estimates: allocators, kernels and short rows make them wrong by a factor of two either way.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llm_finetuner.cli.needed import teachers_heard
from llm_finetuner.recipe import Model, Recipe, Train

FRAMEWORK = 450 * 2**20  # torch, transformers and the interpreter themselves
LOGITS_CHUNK, LOGITS_COPIES = 64 * 2**20, 2
EFFICIENCY = 0.5  # of the speed of a plain matrix product
A_PASS = 0.02  # seconds that a forward and backward pass take however small the model
A_TOKEN = (
    0.01  # seconds that a generated token takes however small the model, for all texts of a batch together
)
WRITTEN_AT_ONCE = 16  # texts that a teacher writes together
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
class Sized:
    """A recipe's models with their sizes. others: teachers or peers that are held in memory."""

    student: Sizes
    others: list[tuple[Model, Sizes]]


@dataclass(frozen=True)
class Estimate:
    """memory in bytes, by what takes it; seconds is None where the speed is not known, writing is part of it.

    counted: what examples are, and what `tokens` counts.
    """

    steps: int
    examples: int
    tokens: float
    memory: dict[str, float]
    seconds: float | None
    writing: float | None = None
    counted: tuple[str, str] = ("examples", "tokens")

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


def measure(model: Model, recipe: Recipe | None = None, task: str = Recipe.task) -> Sizes:
    """Build the model without weights, with the recipe's adapter if one is given, and count. Raises ModelError.

    task: of a model that is not the recipe's student.
    """
    import torch
    import transformers

    from llm_finetuner.models.mixers import mamba_config
    from llm_finetuner.models.shrink import choose_in_stacks, parse_share
    from llm_finetuner.models.stacks import depths_of, with_blocks
    from llm_finetuner.named_models import student_source
    from llm_finetuner.registry import TASKS, TUNINGS, resolve

    purpose = resolve(TASKS, recipe.task if recipe else task, "task")()
    divisor = parse_share(model.name) if recipe else None
    name = student_source(recipe) if divisor else model.name
    with reading(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if divisor:
            kept = choose_in_stacks(depths_of(config), divisor, model.keep_blocks, model.keep_encoder)
            config = with_blocks(config, kept)
            config = mamba_config(config) if model.mixer == "mamba2" else config
        with torch.device("meta"):
            empty = getattr(transformers, purpose.auto).from_config(config)
    # narrower by w: matrices between hidden widths w x w, the embedding w
    head = empty.get_input_embeddings().weight.numel()
    width = model.keep_width if divisor else 1.0
    parameters = round((sum(p.numel() for p in empty.parameters()) - head) * width**2 + head * width)
    trainable = parameters
    if recipe is None:
        trainable = 0
    elif recipe.tuning.kind != "full":
        kind = (
            "lora" if recipe.tuning.kind == "qlora" else recipe.tuning.kind
        )  # the same adapter, unquantised
        resolve(TUNINGS, kind)(empty, 100, purpose, **recipe.tuning.options)
        trainable = round(sum(p.numel() for p in empty.parameters() if p.requires_grad) * width)
    text = config.get_text_config()
    answers = config.num_labels if purpose.labels else text.vocab_size
    return Sizes(parameters, trainable, round(text.hidden_size * width), sum(depths_of(config)), answers)


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
    models: Sized,
    examples: int,
    length: float,
    gpu: bool = False,
    speed: float | None = None,
) -> Estimate:
    """Steps, memory and time of the recipe on `examples` rows of `length` tokens on average."""  # fmt: skip
    plan, scheme = recipe.train, recipe.scheme
    own_eval = recipe.data.eval_source or recipe.data.eval_split
    train = examples if own_eval else examples - round(examples * recipe.data.eval_fraction)
    train = max(1, round(train * recipe.data.hard_share))
    prompts = train
    if scheme.writing:
        train = train * scheme.writing.samples + (train if scheme.writing.keep_data else 0)
    steps, per_epoch = steps_of(plan, train)
    tokens = steps * train / per_epoch * length
    seconds = written = None
    if speed:
        written = writing_seconds(recipe, models, prompts, steps, speed * EFFICIENCY)
        work = tokens * operations(recipe, models) / (speed * EFFICIENCY)
        seconds = work + steps * plan.gradient_accumulation_steps * A_PASS + written
    return Estimate(steps, train, tokens, memory(recipe, models, length, gpu), seconds, written)


def steps_of(plan: Train, examples: int) -> tuple[int, int]:
    """(steps of the run, steps of an epoch) over so many rows to train on."""
    per_epoch = max(1, math.ceil(examples / (plan.batch_size * plan.gradient_accumulation_steps)))
    return plan.steps or max(1, round(plan.epochs * per_epoch)), per_epoch


def writing_seconds(recipe: Recipe, models: Sized, prompts: int, steps: int, speed: float) -> float:
    """Time for texts that the teacher writes before the training, or the student during it."""
    scheme, plan = recipe.scheme, recipe.train
    if scheme.writing and models.others:
        texts, new, model = (
            prompts * scheme.writing.samples,
            scheme.writing.max_new_tokens,
            models.others[0][1],
        )
        batches = math.ceil(texts / WRITTEN_AT_ONCE)
    elif scheme.on_policy:
        a_step = plan.batch_size * plan.gradient_accumulation_steps
        fresh = 0.5 if scheme.on_policy.replay else 1.0  # the others come from the buffer
        texts, model = steps * a_step * scheme.on_policy.share * fresh, models.student
        new, batches = scheme.on_policy.max_new_tokens, steps if scheme.on_policy.share else 0
    else:
        return 0.0
    return texts * new * 2 * model.parameters / speed + batches * new * A_TOKEN


def memory(recipe: Recipe, models: Sized, length: float, gpu: bool) -> dict[str, float]:
    """Bytes by what takes them, at the peak of a step."""
    plan, student = recipe.train, models.student
    moments = 2 if plan.optimizer == "adamw_8bit" else 8
    learning = recipe.scheme.teacher == "peers"
    frozen = max(student.parameters - student.trainable, 0)
    beside = sum(
        other.parameters * (8 + moments) if learning else other.parameters * bytes_held(model, gpu)
        for model, other in models.others
    )
    if recipe.scheme.teacher == "average":
        beside = 4 * student.parameters
    peers = [other for _, other in models.others] if learning else []
    return {
        "student": 4 * student.trainable + frozen * bytes_held(recipe.student, gpu),
        "gradients": 4 * student.trainable,
        "optimizer": moments * student.trainable,
        "activations": sum(activations(recipe, model, length, gpu) for model in (student, *peers)),
        "peers" if learning else "average" if recipe.scheme.teacher == "average" else "teacher": beside,
        "software": FRAMEWORK,
    }


def activations(recipe: Recipe, model: Sizes, length: float, gpu: bool) -> float:
    """Bytes that a forward pass keeps for the backward pass."""
    plan = recipe.train
    half = plan.precision in ("bf16", "fp16") or (plan.precision == "auto" and gpu)
    tokens = min(plan.batch_size * length, plan.max_tokens or math.inf)
    rows = tokens * model.width * (1 if half else 2)
    logits = LOGITS_COPIES * min(LOGITS_CHUNK, 4 * tokens * model.vocabulary)
    blocks = BLOCK_BYTES * model.blocks
    if plan.gradient_checkpointing:
        blocks = SAVED_BYTES * model.blocks + BLOCK_BYTES
    return rows * blocks + logits


def bytes_held(model: Model, gpu: bool) -> float:
    """Bytes a frozen weight takes."""
    if model.load_in_4bit:
        return 0.6
    if model.load_in_8bit:
        return 1.1
    return {"float32": 4, "bfloat16": 2, "float16": 2}.get(model.dtype, 2 if gpu else 4)


def operations(recipe: Recipe, models: Sized) -> float:
    """Floating point operations a training token costs."""
    student, scheme = models.student, recipe.scheme
    frozen = student.trainable < student.parameters
    again = 2 if recipe.train.gradient_checkpointing else 0
    own = (2 + (2 if frozen else 4) + again) * student.parameters
    others = sum(other.parameters for _, other in models.others)
    if scheme.teacher == "peers":
        return own + (6 + again) * others
    if scheme.teacher == "average":
        return own + 2 * student.parameters
    return own + (0 if scheme.writing else 2 * others)


def look_ahead(recipe: Recipe, examples: int, length: float) -> tuple[Sized, Estimate]:
    """The sizes and the estimate for this machine. Raises ModelError."""
    held = [(model, measure(model, task=recipe.task)) for model in teachers_heard(recipe)]
    models = Sized(measure(recipe.student, recipe), held)
    return models, estimate(recipe, models, examples, length, on_gpu(), matmul_speed())


def together(guesses: list[Estimate]) -> Estimate:
    """Of a chain: the stages' steps and times added up, the memory of the one that takes most."""
    most = max(guesses, key=lambda guess: guess.total)
    return replace(
        most,
        steps=sum(guess.steps for guess in guesses),
        tokens=sum(guess.tokens for guess in guesses),
        seconds=sum(guess.seconds or 0 for guess in guesses),
        writing=sum(guess.writing or 0 for guess in guesses),
    )
