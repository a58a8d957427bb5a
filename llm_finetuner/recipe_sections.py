"""The sections of a recipe: frozen dataclasses of names and numbers, each of which checks itself."""

import dataclasses
import numbers
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llm_finetuner import ramp
from llm_finetuner.errors import RecipeError
from llm_finetuner.ranges import check_count, check_names, check_weights
from llm_finetuner.recipe_series import OF_SEQUENCES, Series
from llm_finetuner.registry import unknown


def check_range(name: str, value: Any, low: float, high: float | None, open_low: bool = False) -> None:
    """Raise RecipeError unless value is a number in [low, high] (or (low, high] with open_low)."""
    wanted = (
        (f"above {low}" if open_low else f"at least {low}") if high is None else f"between {low} and {high}"
    )
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value
    if not number or value < low or (open_low and value == low) or (high is not None and value > high):
        raise RecipeError(f"{name} must be a number {wanted}, got {value!r}")


def check_ramp(name: str, value: Any, low: float, high: float | None) -> None:
    """The same for a number that may change over the run ("4..1"). Raises RecipeError."""
    if not (isinstance(value, str) and ".." in value):
        return check_range(name, value, low, high)
    try:
        for end in ramp.ends(value):
            check_range(name, end, low, high)
    except RecipeError as error:
        raise RecipeError(
            error.what if name in error.what else f"{name}: {error.what}", error.hint
        ) from error


@dataclass(frozen=True)
class Model:
    """The student: a folder or hub name, and how it is held in memory."""

    name: str = ""
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    from_scratch: bool = False  # read the configuration only and draw the weights from the seed
    keep_blocks: Literal["uniform", "first-last"] = "uniform"  # of a student named teacher/2, teacher/3, ...
    keep_width: float = 1.0  # share of heads, channels and hidden width that such a student keeps
    keep_encoder: bool = (
        False  # such a student of a teacher with encoder and decoder: blocks of the decoder go, alone
    )
    init: Literal["auto", "seed", "teacher"] = (
        "auto"  # of a student s4d: new weights, or what matters of its teacher's; auto: these where one is loaded
    )
    mixer: Literal["attention", "mamba2"] = "attention"  # such a student: what its blocks mix positions by
    shape: dict[str, Any] = field(
        default_factory=dict
    )  # of a model that is built here: time_llm, patch, linear

    def __post_init__(self):
        if self.load_in_4bit and self.load_in_8bit:
            raise RecipeError("load_in_4bit and load_in_8bit are both set", "choose one of them")
        check_range("keep_width", self.keep_width, 0, 1, open_low=True)
        if self.init not in ("auto", "seed", "teacher"):
            raise RecipeError(f"init must be auto, seed or teacher, got {self.init!r}")
        if self.init == "teacher" and self.name not in OF_SEQUENCES:
            raise RecipeError(
                f"init=teacher is for a student s4d with a teacher, and the student is {self.name or 'not named'}",
                "init=seed",
            )


@dataclass(frozen=True)
class Teacher(Model):
    """The teacher, and what provides its answers: a model, a cache, an endpoint, several of them."""

    kind: str = "live"
    options: dict[str, Any] = field(default_factory=dict)  # of that kind
    device: str | None = None  # None: the student's; "auto": spread over what there is, the rest offloaded
    shuffled: bool = False  # a control: every position gets the answer of another one


def members_of(teacher: Teacher) -> list[Teacher]:
    """The teachers that an ensemble is made of, or the teacher itself. Raises RecipeError."""
    if teacher.kind != "ensemble":
        return [teacher]
    members = teacher.options.get("members")
    if not isinstance(members, list) or not members:
        raise RecipeError(
            f"an ensemble needs members, got {members!r}", "teacher.options.members: [model, model, ...]"
        )
    found = []
    for member in members:
        settings = {"name": member} if isinstance(member, str) else member
        known = {f.name for f in dataclasses.fields(Teacher)}
        if not isinstance(settings, dict) or not settings.keys() <= known:
            raise RecipeError(
                f"a member must be a model's name or settings of a teacher, got {member!r}",
                f"settings: {', '.join(sorted(known))}",
            )
        settings = {**settings, "shape": {**teacher.shape, **settings.get("shape", {})}}
        found.append(replace(teacher, **{"kind": "live", "options": {}, "shuffled": False, **settings}))
    return found


@dataclass(frozen=True)
class Tuning:
    """Which weights move: full, lora, qlora or adalora, and its options (r, lora_alpha, ...)."""

    kind: str = "full"
    options: dict[str, Any] = field(default_factory=dict)


MASKS = ("fixed", "fresh")


@dataclass(frozen=True)
class Data:
    """Where the rows come from and which of their tokens count."""

    source: str | None = None  # file, folder, glob or hub name
    config: str | None = None
    split: str = "train"
    files: str | list[str] | None = None
    samples: int | None = None  # only the first N rows
    text_columns: list[str] | None = None
    prefix: str | None = None  # of seq2seq_lm: what stands before every source, such as "summarize: "
    mask: Literal["fixed", "fresh"] = "fixed"  # of masked_lm: the same tokens hidden in each epoch, or others
    label_names: list[str] | None = None  # what labels that are the numbers 0, 1, ... are called
    class_weights: str | dict[str, float] | None = None  # in cross-entropy: balanced, or {label: weight}
    only: dict[str, Any] = field(
        default_factory=dict
    )  # rows with these values in these columns: one task of many
    hard_share: float = (
        1.0  # learn from this share of the rows, those that the student finds hardest at the start
    )
    max_length: int = 512  # tokens
    loss_on: Literal["completion", "all"] = "completion"
    on_bad_row: Literal["stop", "skip"] = "stop"
    eval_source: str | None = None
    eval_split: str | None = None
    eval_fraction: float = 0.1  # held out when there is no eval_source and no eval_split
    eval_samples: int | None = None  # only this many held-out rows, evenly spaced
    series: Series = Series()  # of forecasting: how numbers over time are read and cut into windows

    def __post_init__(self):
        if self.mask not in MASKS:
            raise unknown("data.mask", self.mask, MASKS)
        check_range("data.max_length", self.max_length, 4, None)
        check_range("data.eval_fraction", self.eval_fraction, 0, 0.9)
        check_range("data.hard_share", self.hard_share, 0, 1, open_low=True)
        check_names("data.label_names", self.label_names)
        check_weights("data.class_weights", self.class_weights)
        if isinstance(self.class_weights, dict):  # YAML reads 0 and 1 as numbers
            named = {str(name): weight for name, weight in self.class_weights.items()}
            object.__setattr__(self, "class_weights", named)
        for name in ("samples", "eval_samples"):
            if getattr(self, name) is not None:
                check_range(f"data.{name}", getattr(self, name), 1, None)


TRACKERS = ("tensorboard", "wandb")
PLAIN_METHODS = ("fine_tuning",)  # learn from the data alone


@dataclass(frozen=True)
class Train:
    """The loop. An optimizer step sees batch_size x gradient_accumulation_steps examples, over all processes."""

    epochs: float = 3.0
    steps: int | None = None  # optimizer steps; overrides epochs
    batch_size: int = 4  # examples a forward pass (per device)
    gradient_accumulation_steps: int = 4
    max_tokens: int | None = None  # of a forward pass, padding included, in place of batch_size examples
    packing: bool = False  # examples share rows instead of being padded
    learning_rate: float | None = None  # None: 2e-4 for adapters, 5e-5 for full tuning, 1e-3 for new weights
    schedule: str = "cosine"
    warmup: float = 0.03  # below 1 a share of the steps, from 1 on a number of steps
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    eval_every: int | None = None  # optimizer steps; None: ten times a run; 0: only at the end
    save_every: int | None = None  # optimizer steps; None: with every evaluation; 0: never
    keep_best: bool = True  # by what the task is judged by
    patience: int = 0  # stop after this many evaluations without a better one; 0: never
    seed: int = 0
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb
    watch_every: int = 0  # optimizer steps between looks at every layer's gradients and weights; 0: never

    def __post_init__(self):
        check_range("train.epochs", self.epochs, 0, None, open_low=True)
        for name in ("batch_size", "gradient_accumulation_steps"):
            check_range(f"train.{name}", getattr(self, name), 1, None)
        if self.steps is not None:
            check_range("train.steps", self.steps, 1, None)
        if self.max_tokens is not None:
            check_count("train.max_tokens", self.max_tokens, 1)
        if self.learning_rate is not None:
            check_range("train.learning_rate", self.learning_rate, 0, None, open_low=True)
        for name in ("warmup", "weight_decay", "max_grad_norm", "patience"):
            check_range(f"train.{name}", getattr(self, name), 0, None)
        check_count("train.watch_every", self.watch_every, 0)
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown("tracker", name, TRACKERS)


def check_adapter(options: dict[str, Any]) -> None:
    for name in ("r", "init_r", "target_r"):
        if name in options:
            check_range(f"tuning.options.{name}", options[name], 1, None)
            if options[name] != int(options[name]):
                raise RecipeError(f"tuning.options.{name} must be a whole number, got {options[name]!r}")
    named = options.get("target_modules")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise RecipeError(f"tuning.options.target_modules must be a list of names, got {named!r}")
    if "lora_alpha" in options:
        check_range("tuning.options.lora_alpha", options["lora_alpha"], 0, None, open_low=True)
        check_range("tuning.options.lora_dropout", options["lora_dropout"], 0, 0.99)
    if "init_r" in options and options["init_r"] <= options["target_r"]:
        given = f"init_r={options['init_r']} and target_r={options['target_r']}"
        raise RecipeError(f"adalora prunes from init_r down to target_r, got {given}")
