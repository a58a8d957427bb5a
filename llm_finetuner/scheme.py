"""What a method comes to: the terms of the loss, who answers, and where the examples come from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Term:
    """One term of the loss: `weight` times the mean of `objective` over the positions that count.

    The weight and an option called temperature are numbers, or ramps over the run such as "4..1" (see ramp.py).
    """

    objective: str
    weight: float | str = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    layers: str | list | None = (
        None  # a named map, student blocks, or (student, teacher) pairs; None: four even ones
    )
    # how a projection between unlike widths starts; identity: one between equal widths, too, which starts as that
    projection: Literal["linear", "orthogonal", "identity"] = "linear"
    tokens: Literal["all", "first"] = "all"  # of each text that a model is read at; [CLS] is the first

    @property
    def counts(self) -> bool:
        """A term of weight 0 is neither computed nor read."""
        return self.weight != 0


@dataclass(frozen=True)
class OnPolicy:
    """Examples that the student writes itself, in place of a share of the data's."""

    share: float  # of the examples of a step: GKD's lambda
    max_new_tokens: int
    sampling_temperature: float
    replay: int  # samples kept to be learned from again; 0: each is used once


@dataclass(frozen=True)
class Writing:
    """Completions that the teacher writes before the training, in place of the data's."""

    max_new_tokens: int
    sampling_temperature: float  # 0: the most probable token each time
    samples: int  # completions a prompt
    keep_data: bool  # learn from the data's own rows too


@dataclass(frozen=True)
class Scheme:
    """What a method comes to: the terms of the loss, who answers, and where the examples come from.

    teacher: "given" asks the recipe's teacher; "average" the moving average of the student; "peers" students that
    learn beside it; "none" nobody.
    """

    terms: tuple[Term, ...]
    teacher: Literal["given", "average", "peers", "none"] = "given"
    teacher_options: dict[str, Any] = field(default_factory=dict)
    exits: list[int] | None = (
        None  # student blocks whose own exits learn from the last one; []: the middle one
    )
    exit_terms: tuple[Term, ...] = ()
    peer_terms: tuple[Term, ...] = ()  # what the peers learn by
    on_policy: OnPolicy | None = None
    writing: Writing | None = None
    undecided: bool = (
        False  # whether the weights of the terms are still to be chosen, before the run (share.py)
    )

    def with_terms(self, change: Callable[[tuple[Term, ...]], Iterable[Term]]) -> "Scheme":
        """The same with each of its lists of terms changed."""
        lists = ("terms", "exit_terms", "peer_terms")
        return replace(self, **{name: tuple(change(getattr(self, name))) for name in lists})
