"""What a cache loses of a teacher's answers: summed up as they are written, kept in its manifest.

Shapes: n positions, V columns, k best tokens.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.teachers.store import Store

# More than so many times the error of before, and nats: what was added does not fit the folder.
WORSE, MUCH = 2, 0.02


def scores_of(task: Any, logits_nV: Tensor) -> Tensor:
    """Answers as a cache keeps them: log-probabilities, or logits where they do not exclude each other."""
    return logits_nV.float().log_softmax(1) if task.exclusive else logits_nV.float()


class Error:
    """What records lose, summed over some positions."""

    def __init__(self, task: Any, settings: dict[str, Any]):
        """settings: of the cache, as its manifest has them."""
        self.divergence = task.objectives.get("forward_kl", forward_kl)
        self.mode, self.k = settings["mode"], settings.get("k", 0)
        self.positions, self.lost, self.best = 0, 0.0, 0.0

    def add(self, scores_nV: Tensor, kept_nV: Tensor) -> None:
        """Both as `scores_of` gives them."""
        self.positions += len(scores_nV)
        self.lost += self.divergence(kept_nV, scores_nV).sum().item()
        if self.k:
            self.best += scores_nV.topk(self.k).values.exp().sum().item()

    def figures(self, record_bytes: int) -> dict[str, Any]:
        """The means, as a manifest keeps them; None for what this mode does not lose."""
        return {
            "bytes_per_token": record_bytes,
            "mean_kl": None if self.mode == "sampled" else self.lost / self.positions,
            "top_mass": self.best / self.positions if self.k else None,
        }


def keep_figures(store: Store, figures: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Keep the figures of what was added to a store, and say so where it fits much worse than what was there."""
    before, added = store.manifest.get("measured", {}).get("mean_kl"), figures["mean_kl"]
    if before is not None and added > max(WORSE * before, MUCH):
        note(
            f"what was added to the cache {store.folder} has a mean error of {added:.5f} nats a token, what was there "
            f"before {before:.5f}: its levels and tails were fitted to the data that it was begun with, so make a "
            "cache of its own, in another folder, for these data"
        )
    return store.measured(figures)
