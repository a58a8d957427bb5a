"""From numbers to words: did distilling pay, and what to beware of.

"Better" and "worse" are said only of differences of the task's measure that are larger than their uncertainty: the
95 % interval of the paired difference leaves out 0, and it rests on at least 30 examples (of accuracy McNemar's test
must agree: classes.paired; of windows that overlap there must be enough for an interval: quality.of_runs). `paid` is
the hardest of the comparisons there are: "yes" if the distilled student is better than cross-entropy alone at equal
steps and at equal compute, "no" if it is worse at one of them, "unclear" otherwise, "unknown" if no baseline was
trained ("no" also then, if it is worse than the untouched student). A model that was tuned without a teacher is held
against the untouched student alone, or, where its weights were drawn, against models that learn little or nothing;
where one of those is better, or is not measurably beaten, a sentence begins with that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_finetuner.benchmark.enough import ENOUGH, SEPARATE, least
from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.phrases import change, listed

MUCH = 0.05  # a rise of the calibration error that is worth a warning
JUDGED = ("distilled", "tuned")  # roles that a sentence is said about
SAID = {"yes": "paid", "no": "did not pay", "unclear": "made no difference that can be told"}
BASELINES = {  # role -> where the comparison is fair, and how long the baseline was trained
    "baseline_steps": ("at equal steps", "for as many steps"),
    "baseline_compute": ("at equal compute, teacher passes counted,", "for as much compute"),
}


@dataclass(frozen=True)
class Case:
    """What is known of all models: figures of each, paired differences, and the number of examples scored."""

    lines: Sequence[dict]
    differences: Sequence[dict]
    examples: int
    measure: Measure
    span: int = 0  # steps of windows that overlap (quality.Quality)

    @property
    def few(self) -> bool:
        """Whether there are too few to tell anything from."""
        return self.examples < least(self.span)

    @property
    def off(self) -> str:
        """The setting that turns the teacher off, where it is on."""
        return self.measure.off if any(line["role"] == "distilled" for line in self.lines) else ""

    def line(self, name: str) -> dict:
        return next(line for line in self.lines if line["name"] == name)

    def pair(self, name: str, role: str) -> dict[str, Any] | None:
        """A model against the one of that role."""
        pairs = (pair for pair in self.differences if pair["name"] == name and pair["role"] == role)
        return next(pairs, None)

    def answer(self, name: str, role: str) -> str | None:
        return answer(self.pair(name, role), self.examples)

    def shown(self, line: dict) -> str:
        return self.measure.show(line[self.measure.key])

    def change(self, pair: dict) -> str:
        return change(pair, self.examples, self.measure.change_unit)


def answer(pair: dict[str, Any] | None, examples: int) -> str | None:
    """yes: the first model of the pair is better; no: it is worse; unclear; None: there is no such pair."""
    if pair is None:
        return None
    if examples < ENOUGH or not pair["significant"]:
        return "unclear"
    return "yes" if pair["better"] else "no"


def finding(case: Case, line: dict) -> dict[str, Any]:
    """The answer for one distilled or tuned model: what the verdict has of it in `findings`."""
    answers = {role: case.answer(line["name"], role) for role in BASELINES}
    untouched = case.answer(line["name"], "untouched")
    given = [said for said in answers.values() if said]
    simple = [pair for pair in case.differences if (pair["name"], pair["role"]) == (line["name"], "simple")]
    if line["role"] == "tuned" and simple and untouched is None:
        paid = _hardest([answer(pair, case.examples) for pair in simple])
        sentence = f"{_reaches(case, line)}, against {_listed(case, simple)}."
    elif line["role"] == "tuned":
        paid = untouched or "unknown"
        sentence = _of_tuned(case, line, paid)
    elif given:
        paid = _hardest(given)
        sentence = _against_baselines(case, line, answers)
    else:
        paid = "no" if untouched == "no" else "unknown"
        sentence = _against_untouched(case, line, paid)
    better = [pair for pair in simple if answer(pair, case.examples) == "no"]
    return {
        "name": line["name"],
        "sentence": _unbeaten(case, line["name"], simple, better) + _begun(sentence),
        "simpler": [pair["other"] for pair in better],
        "paid": paid,
        "paid_at_equal_steps": answers["baseline_steps"],
        "paid_at_equal_compute": answers["baseline_compute"],
    }


def _begun(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _hardest(answers: Sequence[str]) -> str:
    """no before unclear before yes."""
    return next((said for said in ("no", "unclear") if said in answers), "yes")


def _listed(case: Case, pairs: Sequence[dict]) -> str:
    """The other models of pairs with their figures."""
    lines = [case.line(pair["other"]) for pair in pairs]
    return listed([f"{line['name']} ({case.measure.name} {case.shown(line)})" for line in lines])


def _unbeaten(case: Case, name: str, simple: Sequence[dict], better: Sequence[dict]) -> str:
    """That models which learn little or nothing are better, or are not measurably beaten; empty where all are."""
    level = [pair for pair in simple if pair not in better and _not_better(case, pair)]
    clauses = [f"is worse than {_listed(case, better)}"] if better else []
    clauses += [f"does not measurably beat {_listed(case, level)}"] if level else []
    costs = "costs" if len(better) + len(level) == 1 else "cost"
    return f"{_begun(name)} {', and '.join(clauses)}, which {costs} next to nothing. " if clauses else ""


def _against_baselines(case: Case, line: dict, answers: dict) -> str:
    clauses = []
    for role, (where, _alike) in BASELINES.items():
        pair = case.pair(line["name"], role)
        if pair:
            doing = "it" if clauses else "distilling"
            other = case.shown(case.line(pair["other"]))
            alone = f"the same student on {case.measure.alone} alone"
            # the second time, briefly
            said = (
                f"against {other} it is"
                if clauses
                else f"{_reaches(case, line)} against {other} for {alone},"
            )
            clauses.append(f"{where} {doing} {_said(case, answers[role])}: {said} {case.change(pair)}")
    return "; ".join(clauses) + "."


def _of_tuned(case: Case, line: dict, paid: str) -> str:
    said = _compared(case, line, "the untouched model")
    if said is None:
        return "Whether fine-tuning paid is not known: the untouched model was not measured."
    return f"Fine-tuning {_said(case, paid)}: {said}."


def _against_untouched(case: Case, line: dict, paid: str) -> str:
    nothing = "no baseline was trained, so nothing can be said about distilling against plain training"
    said = _compared(case, line, "the untouched student")
    if said is None:
        return f"Whether distilling paid is not known: {nothing}, and the untouched student was not measured."
    if paid == "no":
        return f"Distilling did not pay: {said}."
    return f"Whether distilling paid is not known: {said}, but {nothing}."


def _said(case: Case, answered: str) -> str:
    """Few examples show nothing, however large the difference: neither that there is one nor that there is none."""
    return "cannot be judged" if answered == "unclear" and case.few else SAID[answered]


def _compared(case: Case, line: dict, who: str) -> str | None:
    """A model against the untouched one; None where that was not measured."""
    pair = case.pair(line["name"], "untouched")
    if pair is None:
        return None
    other = case.shown(case.line(pair["other"]))
    return f"{_reaches(case, line)} against {other} for {who}, {case.change(pair)}"


def _reaches(case: Case, line: dict) -> str:
    return f"{line['name']} reaches {case.measure.name} {case.shown(line)}"


def warnings(case: Case) -> list[str]:
    """What to beware of, most important first."""
    found = [
        f"The loss of {line['name']} is not a number: its weights are damaged, or its training diverged."
        for line in case.lines
        if not math.isfinite(line["loss"])
    ]
    for line in case.lines:
        if line["role"] in JUDGED:
            found += _of_judged(case, line)
    for pair in case.differences:
        if pair["role"] in ("untouched", *BASELINES) and case.line(pair["name"])["role"] == "teacher":
            if _not_better(case, pair):
                otherwise = f", or {case.off}," if case.off else ""
                found.append(
                    f"The teacher ({pair['name']}) is {_how(case, pair)} than {pair['other']}: there was nothing "
                    f"to compress. Take a better teacher{otherwise} before drawing a conclusion about distilling."
                )
    found += _of_simple(case)
    return found + _few(case)


def _few(case: Case) -> list[str]:
    if case.examples < ENOUGH:
        return [
            f"Only {case.examples} examples were scored: too few (below {ENOUGH}) for an interval that can be trusted."
        ]
    if case.few:
        return [
            f"The test part holds too few separate windows: {case.examples} that overlap are as much as "
            f"{case.examples // case.span} that do not, and {SEPARATE} are needed."
        ]
    return []


def _of_simple(case: Case) -> list[str]:
    """Models that learn little or nothing and do as well as the teacher; of students the first sentence says it."""
    otherwise = f", or {case.off}" if case.off else ""
    return [
        f"The teacher ({pair['name']}) is {_how(case, pair)} than {pair['other']}, which costs next to nothing: take "
        f"that one{otherwise}."
        for pair in case.differences
        if pair["role"] == "simple"
        and case.line(pair["name"])["role"] == "teacher"
        and _not_better(case, pair)
    ]


def _of_judged(case: Case, line: dict) -> list[str]:
    name, found = line["name"], []
    untouched = case.pair(name, "untouched")
    if untouched and case.answer(name, "untouched") == "no":
        doing = "Distilling" if line["role"] == "distilled" else "Fine-tuning"
        found.append(f"{doing} made things worse: {name} is worse than the untouched student.")
    elif untouched and _not_better(case, untouched):
        found.append(f"{name} is {_how(case, untouched)} than the untouched student.")
    for role, (_where, alike) in BASELINES.items():
        if case.answer(name, role) == "no":
            otherwise = f": take {case.off}" if case.off else ""
            found.append(
                f"{name} is worse than the same student trained on {case.measure.alone} alone {alike}{otherwise}."
            )
    if line["role"] == "distilled" and case.answer(name, "teacher") == "yes":
        found.append(
            f"{name} is better than its teacher on these rows: a better teacher could teach it more."
        )
    return found + _less_trusted(case, line)


def _less_trusted(case: Case, line: dict) -> list[str]:
    """Where the probabilities got much worse, of tasks that have any."""
    before = [
        other for role in ("baseline_steps", "untouched") for other in case.lines if other["role"] == role
    ]
    if case.few or not before or line["calibration_error"] is None:
        return []
    error, other = line["calibration_error"], before[0]
    if error - other["calibration_error"] <= MUCH:
        return []
    return [
        f"The probabilities of {line['name']} are less to be trusted: its calibration error is {error:.3f}, that of "
        f"{other['name']} {other['calibration_error']:.3f}."
    ]


def _not_better(case: Case, pair: dict) -> bool:
    """The first is not better, or, where there are enough examples to tell, not measurably."""
    return not pair["better"] or (not case.few and not pair["significant"])


def _how(case: Case, pair: dict) -> str:
    if answer(pair, case.examples) == "no":
        return "worse"
    return "not measurably better" if pair["better"] else "not better"
