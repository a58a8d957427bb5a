"""The same comparison from other seeds: what a teacher adds has to be seen each time, not once."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.enough import ENOUGH
from llm_finetuner.benchmark.judge import answer
from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.phrases import change
from llm_finetuner.benchmark.quality import Quality, evaluate
from llm_finetuner.recipe import Recipe, with_method
from llm_finetuner.search.record import mean_quality
from llm_finetuner.trainer import OnEvent, fit


@dataclass
class Pairs:
    """A distilled student and the same one without the teacher, of each seed."""

    measure: Measure
    seeds: list[int]
    distilled: list[Quality]
    alone: list[Quality]

    def figures(self) -> dict[str, Any]:
        """distilled, alone: the measure by seed; change, change_low, change_high of the means; every_seed; answer.

        yes: better with every seed, and the interval of the mean difference over examples leaves out 0; no: worse so.
        """
        pair = self.measure.compare(mean_quality(self.distilled), mean_quality(self.alone))
        better = [
            self.measure.compare(a, b)["better"] for a, b in zip(self.distilled, self.alone, strict=True)
        ]
        said = answer(pair, int((self.alone[0].tokens > 0).sum()))
        every = len(set(better)) == 1
        return {
            "seeds": self.seeds,
            "distilled": [self.measure.value(quality) for quality in self.distilled],
            "alone": [self.measure.value(quality) for quality in self.alone],
            "every_seed": every,
            "answer": said if every else "unclear",
            **{key: pair[key] for key in ("change", "change_low", "change_high")},
            "sentence": self._sentence(pair, sum(better)),
        }

    def _sentence(self, pair: dict[str, Any], better: int) -> str:
        examples = max(ENOUGH, int((self.alone[0].tokens > 0).sum()))
        both = [
            f"{self.measure.show(mean)} +- {self.measure.show(error)}"
            for mean, error in (
                spread([self.measure.value(q) for q in side]) for side in (self.distilled, self.alone)
            )
        ]
        moved = change(pair, examples, self.measure.change_unit)
        return (
            f"Over {len(self.seeds)} seeds (mean +- standard error) {self.measure.name} is {both[0]} distilled and "
            f"{both[1]} alone: {moved}; better with {better} of {len(self.seeds)} seeds."
        )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard error)."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def by_seed(
    recipe: Recipe,
    task: Any,
    parts: Parts,
    rows: Any,
    models: tuple[nn.Module, nn.Module],
    untouched: Callable[[Recipe], nn.Module],
    count: int,
    on_event: OnEvent | None,
) -> dict[str, Any]:
    """Train `count` - 1 further pairs, of the next seeds, in seed_<n>/ of the run's folder, and sum all up.

    models: the distilled student and the one alone, of the first seed. untouched: the student before training, of a
    recipe. Raises FinetunerError.
    """
    pairs = Pairs(task.measure, [recipe.train.seed], [], [])
    for side, model in zip((pairs.distilled, pairs.alone), models, strict=True):
        side.append(evaluate(task, model, rows))
    for seed in range(recipe.train.seed + 1, recipe.train.seed + count):
        folder = Path(recipe.output) / f"seed_{seed}"
        plan = replace(recipe.train, seed=seed, save_every=0, patience=0)
        for side, name, other in (
            (pairs.distilled, "distilled", recipe),
            (pairs.alone, "alone", with_method(recipe, "fine_tuning")),
        ):
            other = replace(other, train=plan, output=str(folder / name))
            teacher = parts.teacher if name == "distilled" else None
            fresh = replace(parts, student=untouched(other), tuned=None, teacher=teacher, peers=[])
            side.append(evaluate(task, fit(other, fresh, on_event=on_event).tuned.model, rows))
        pairs.seeds.append(seed)
    return pairs.figures()
