"""Which trial is best, by how much, and which others cannot be told apart from it.

The uncertainty is that of the held-out examples, in pairs (quality.interval_of). It knows nothing of having taken the
best of many: the figure of the winner is optimistic on the rows that chose it, so others report it where there are
enough.
"""

import math
from typing import Any

import numpy as np

from llm_finetuner.benchmark.enough import ENOUGH
from llm_finetuner.benchmark.judge import answer
from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.quality import Quality, paired_difference
from llm_finetuner.search.record import STATES, Record, Trial, mean_quality

CHOOSE, REPORT = "choose", "report"  # the two halves of the held-out rows


def ranked(record: Record, seeds: int) -> list[dict[str, Any]]:
    """One line a trial, best first; what did not finish comes last. Losses are nats a position that counts.

    difference, low, high: loss minus that of the best, with its 95 % interval, over so many examples, of so many steps
    where they are windows that overlap (span). apart: told
    apart from the best: the interval rests on enough examples and leaves out 0 and, with several seeds,
    it is worse with each of them.
    """
    done, winner = _finished(record, seeds), best(record, seeds)
    scores = {trial.number: _scores(record, trial, seeds, CHOOSE) for trial in done}
    means = {number: mean_quality(of_seeds) for number, of_seeds in scores.items()}
    lines = []
    for trial in record.trials:
        line = _line(record, trial, seeds)
        if trial.number in means:
            line |= _against(
                scores[trial.number], means[trial.number], scores[winner.number], means[winner.number]
            )
        lines.append(line)
    lines.sort(
        key=lambda line: (STATES.index(line["state"]), line["loss"] if line["loss"] is not None else math.inf)
    )
    return lines


def best(record: Record, seeds: int) -> Trial | None:
    """The finished trial of the lowest mean loss on the rows that choose; None where none finished."""
    losses = {
        trial.number: mean_quality(_scores(record, trial, seeds, CHOOSE)).loss
        for trial in _finished(record, seeds)
    }
    return record.trials[min(losses, key=losses.__getitem__)] if losses else None


def _finished(record: Record, seeds: int) -> list[Trial]:
    return [trial for trial in record.trials if trial.state == "finished" and record.ended(trial, seeds)]


def _scores(record: Record, trial: Trial, seeds: int, rows: str) -> list[Quality]:
    return [record.scores(run, rows) for run in record.runs(trial, seeds)]


def _line(record: Record, trial: Trial, seeds: int) -> dict[str, Any]:
    runs = record.runs(trial, seeds)
    short = trial.state == "finished" and len(runs) < seeds  # of an earlier call with fewer seeds
    return {
        "number": trial.number,
        "settings": trial.settings,
        "given": trial.given,
        "state": "unfinished" if short else trial.state,
        "error": trial.error,
        "loss": trial.evaluations[-1][1] if trial.evaluations else None,  # of one that ended early: its last
        "sd": None,
        "difference": None,
        "low": None,
        "high": None,
        "examples": None,
        "span": 0,
        "apart": None,
        "steps": runs[0].steps if runs else trial.evaluations[-1][0] if trial.evaluations else None,
        "seconds": sum(run.seconds for run in runs) if runs else None,
        "folder": str(record.folder / trial.folder),
    }


def _against(own: list[Quality], mean: Quality, best: list[Quality], best_mean: Quality) -> dict[str, Any]:
    losses = [quality.loss for quality in own]
    pair = paired_difference(mean, best_mean)
    examples = int((mean.tokens > 0).sum())
    everywhere = all(a.loss > b.loss for a, b in zip(own, best, strict=True))
    return {
        "loss": mean.loss,
        "sd": float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
        **{name: pair[name] for name in ("difference", "low", "high")},
        "examples": examples,
        "span": mean.span,
        "apart": bool(examples >= ENOUGH and pair["significant"] and everywhere),
    }


def reported(record: Record, winner: Trial, seeds: int, rows: str, measure: Measure) -> dict[str, Any]:
    """The winner and the recipe as given on `rows`, and whether the search paid: yes, no or unclear.

    Chosen is by loss, as the weights within a run are; reported is what the task is judged by.
    """
    given = next((trial for trial in _finished(record, seeds) if trial.given), None)
    own = mean_quality(_scores(record, winner, seeds, rows))
    examples = int((own.tokens > 0).sum())
    said = {
        "rows": rows,
        "examples": examples,
        "span": own.span,
        "optimistic": rows == CHOOSE,  # these rows chose the winner
        "winner": _figures(own, measure),
        "given": None,
        "difference": None,
        "paid": "unclear",
    }
    if given is not None:
        other = mean_quality(_scores(record, given, seeds, rows))
        pair = measure.compare(own, other)
        said |= {"given": _figures(other, measure), "difference": pair}
        if winner is not given and rows == REPORT:
            said["paid"] = answer(pair, examples)
    return said


def _figures(quality: Quality, measure: Measure) -> dict[str, float | None]:
    """The loss, and the measure's figure with its interval under low and high."""
    low, high = measure.interval(quality)
    return {"loss": quality.loss, measure.key: measure.value(quality), "low": low, "high": high}
