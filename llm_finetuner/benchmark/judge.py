"""From numbers to words: did distilling pay, and what to beware of.

"Better" and "worse" are said only of differences that are larger than their uncertainty: the 95 % interval of the
paired difference leaves out 0, and it rests on at least 30 examples. `paid` is the hardest of the comparisons there
are: "yes" if the distilled student is better than cross-entropy alone at equal steps and at equal compute, "no" if it
is worse at one of them, "unclear" otherwise, "unknown" if no baseline was trained ("no" also then, if it is worse than
the untouched student). A model that was tuned without a teacher is held against the untouched student alone.
"""

import math
from typing import Any

ENOUGH = 30  # examples; a bootstrap interval over fewer is too narrow
MUCH = 0.05  # a rise of the calibration error that is worth a warning
JUDGED = ("distilled", "tuned")  # roles that a sentence is said about
SAID = {"yes": "paid", "no": "did not pay", "unclear": "made no difference that can be told"}
FEW = "examples only, too few for an interval"
BASELINES = {  # role -> where the comparison is fair, and how long the baseline was trained
    "baseline_steps": ("at equal steps", "for as many steps"),
    "baseline_compute": ("at equal compute, teacher passes counted,", "for as much compute"),
}


def answer(pair: dict[str, Any] | None, examples: int) -> str | None:
    """yes: the first model of the pair is better; no: it is worse; unclear; None: there is no such pair."""
    if pair is None:
        return None
    if examples < ENOUGH or not pair["significant"]:
        return "unclear"
    return "yes" if pair["difference"] < 0 else "no"


def finding(line: dict, lines: list[dict], differences: list[dict], examples: int) -> dict[str, Any]:
    """The answer for one distilled or tuned model: name, sentence, paid, paid_at_equal_steps, paid_at_equal_compute."""
    pairs = {role: _pair(differences, line["name"], role) for role in (*BASELINES, "untouched")}
    answers = {role: answer(pairs[role], examples) for role in BASELINES}
    given = [said for said in answers.values() if said]
    if line["role"] == "tuned":
        paid = answer(pairs["untouched"], examples) or "unknown"
        sentence = _of_tuned(line, lines, pairs["untouched"], paid, examples)
    elif given:
        paid = next((said for said in ("no", "unclear") if said in given), "yes")
        sentence = _against_baselines(line, lines, pairs, answers, examples)
    else:
        paid = "no" if answer(pairs["untouched"], examples) == "no" else "unknown"
        sentence = _against_untouched(line, lines, pairs["untouched"], paid, examples)
    return {
        "name": line["name"],
        "sentence": sentence,
        "paid": paid,
        "paid_at_equal_steps": answers["baseline_steps"],
        "paid_at_equal_compute": answers["baseline_compute"],
    }


def _pair(differences: list[dict], name: str, role: str) -> dict[str, Any] | None:
    return next((pair for pair in differences if pair["name"] == name and pair["role"] == role), None)


def _against_baselines(line: dict, lines: list[dict], pairs: dict, answers: dict, examples: int) -> str:
    clauses = []
    for role, (where, _alike) in BASELINES.items():
        if pairs[role]:
            doing = "it" if clauses else "distilling"
            other = number(_called(lines, pairs[role]["other"])["perplexity"])
            said = f"{_reaches(line)} against {other} for the same student on cross-entropy alone,"
            said = f"against {other} it is" if clauses else said  # the second time, briefly
            clauses.append(
                f"{where} {doing} {_said(answers[role], examples)}: {said} {_change(pairs[role], examples)}"
            )
    sentence = "; ".join(clauses)
    return sentence[0].upper() + sentence[1:] + "."


def _of_tuned(line: dict, lines: list[dict], pair: dict | None, paid: str, examples: int) -> str:
    if pair is None:
        return "Whether fine-tuning paid is not known: the untouched model was not measured."
    said = _compared(line, lines, pair, "the untouched model", examples)
    return f"Fine-tuning {_said(paid, examples)}: {said}."


def _against_untouched(line: dict, lines: list[dict], pair: dict | None, paid: str, examples: int) -> str:
    nothing = "no baseline was trained, so nothing can be said about distilling against plain training"
    if pair is None:
        return f"Whether distilling paid is not known: {nothing}, and the untouched student was not measured."
    said = _compared(line, lines, pair, "the untouched student", examples)
    if paid == "no":
        return f"Distilling did not pay: {said}."
    return f"Whether distilling paid is not known: {said}, but {nothing}."


def _said(answered: str, examples: int) -> str:
    """Few examples show nothing, however large the difference: neither that there is one nor that there is none."""
    few = answered == "unclear" and examples < ENOUGH
    return "cannot be judged" if few else SAID[answered]


def _called(lines: list[dict], name: str) -> dict:
    return next(line for line in lines if line["name"] == name)


def _compared(line: dict, lines: list[dict], pair: dict, who: str, examples: int) -> str:
    other = number(_called(lines, pair["other"])["perplexity"])
    return f"{_reaches(line)} against {other} for {who}, {_change(pair, examples)}"


def _reaches(line: dict) -> str:
    return f"{line['name']} reaches perplexity {number(line['perplexity'])}"


def _change(pair: dict, examples: int) -> str:
    """The difference of two perplexities in %, its interval, and whether it is more than the uncertainty."""
    if not math.isfinite(pair["difference"]):
        return "which cannot be compared"
    change = percent(pair["difference"])
    way = f"{abs(change):.1f} % {'lower' if change < 0 else 'higher'}"
    if examples < ENOUGH or pair["low"] is None:
        return f"{way} on {examples} {FEW}"
    low, high = percent(pair["low"]), percent(pair["high"])
    if pair["significant"]:
        near, far = sorted((abs(low), abs(high)))
        return f"{way} (95 % interval {near:.1f} to {far:.1f} %), more than the uncertainty"
    return f"{way} (95 % interval {low:+.1f} to {high:+.1f} %), not more than the uncertainty"


def percent(difference: float) -> float:
    """Change of the perplexity in % that belongs to a difference of the loss in nats."""
    return 100 * math.expm1(min(difference, 100))


def number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "beyond measure"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def warnings(lines: list[dict], differences: list[dict], examples: int) -> list[str]:
    """What to beware of, most important first."""
    found = [
        f"The loss of {line['name']} is not a number: its weights are damaged, or its training diverged."
        for line in lines
        if not math.isfinite(line["loss"])
    ]
    for line in lines:
        if line["role"] in JUDGED:
            found += _of_judged(line, lines, differences, examples)
    for pair in differences:
        if pair["role"] in ("untouched", *BASELINES) and _called(lines, pair["name"])["role"] == "teacher":
            if _not_better(pair, examples):
                found.append(
                    f"The teacher ({pair['name']}) is {_how(pair)} than {pair['other']}: there was nothing "
                    "to compress. Take a better teacher before drawing a conclusion about distilling."
                )
    if examples < ENOUGH:
        found.append(
            f"Only {examples} examples were scored: too few (below {ENOUGH}) for an interval that can be trusted."
        )
    return found


def _of_judged(line: dict, lines: list[dict], differences: list[dict], examples: int) -> list[str]:
    name, found = line["name"], []
    untouched = _pair(differences, name, "untouched")
    if untouched and answer(untouched, examples) == "no":
        doing = "Distilling" if line["role"] == "distilled" else "Fine-tuning"
        found.append(f"{doing} made things worse: {name} is worse than the untouched student.")
    elif untouched and _not_better(untouched, examples):
        found.append(f"{name} is {_how(untouched)} than the untouched student.")
    for role, (_where, alike) in BASELINES.items():
        if answer(_pair(differences, name, role), examples) == "no":
            found.append(f"{name} is worse than the same student trained on cross-entropy alone {alike}.")
    if line["role"] == "distilled" and answer(_pair(differences, name, "teacher"), examples) == "yes":
        found.append(f"{name} is better than its teacher on this text: a better teacher could teach it more.")
    before = next(
        (other for role in ("baseline_steps", "untouched") for other in lines if other["role"] == role), None
    )
    if examples >= ENOUGH and before and line["calibration_error"] - before["calibration_error"] > MUCH:
        found.append(
            f"The probabilities of {name} are less to be trusted: its calibration error is "
            f"{line['calibration_error']:.3f}, that of {before['name']} {before['calibration_error']:.3f}."
        )
    return found


def _not_better(pair: dict, examples: int) -> bool:
    """The first is not better, or, where there are enough examples to tell, not measurably."""
    return pair["difference"] >= 0 or (examples >= ENOUGH and not pair["significant"])


def _how(pair: dict) -> str:
    return "not better" if pair["difference"] >= 0 else "not measurably better"
