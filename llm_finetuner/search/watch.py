"""Listens to a running trial: passes its events on, and stops it where it is hopeless or the time is spent."""

from collections.abc import Callable
from pathlib import Path

from llm_finetuner.run import read_log

OnEvent = Callable[[str, dict], None]
EARLY = 0.25  # of a run: so far nobody is given up, for the rate still rises and high ones begin badly
Hopeless = Callable[[int, float], bool]  # (step, loss) -> whether to give the trial up


class Stopped(Exception):
    """The pruner gave the running trial up."""


class OutOfTime(Exception):
    """The minutes are spent; the running trial has just written a checkpoint, where it writes any."""


class Watch:
    """on_event of a run. evaluations: (step, loss), those before a resume included. Raises Stopped, OutOfTime.

    Weakness: an exception leaves the run's trackers open, as any failure of a run does.
    """

    def __init__(
        self, folder: Path, say: OnEvent, is_late: Callable[[], bool], saves: bool, hopeless: Hopeless | None
    ):
        self.folder, self.say, self.is_late, self.hopeless = folder, say, is_late, hopeless
        self.leave_at = "checkpoint" if saves else "evaluation"
        self.evaluations: list[tuple[int, float]] = []
        self.steps = 0

    def __call__(self, kind: str, record: dict) -> None:
        self.say(kind, record)
        if kind == "plan":
            self.steps = record["steps"]
            for past in read_log(self.folder):  # by now cut to what the resumed run will not repeat
                if "eval_loss" in past:
                    self._note_down(past["step"], past["eval_loss"])
        elif kind == "evaluation":
            hopeless = self._note_down(record["step"], record["eval_loss"])
            if hopeless and EARLY * self.steps <= record["step"] < self.steps:
                raise Stopped
        if kind == self.leave_at and record["step"] < self.steps and self.is_late():
            raise OutOfTime

    def _note_down(self, step: int, loss: float) -> bool:
        self.evaluations.append((step, loss))
        return self.hopeless is not None and self.hopeless(step, loss)
