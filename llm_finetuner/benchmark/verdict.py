"""The verdict on a distillation or a plain tuning: models measured alike, and one sentence that says whether it paid.

Keys of the verdict (plain JSON; what is not known is None):

sentence, paid          "yes" | "no" | "unclear" | "unknown": judge.py's answer for the first distilled or tuned model
paid_at_equal_steps, paid_at_equal_compute
                        the two answers that it is made of, None without such a baseline
warnings                sentences
measure                 what is judged by, of the task: key, name, unit, units, lower, change_unit, beside (measure.py)
models                  one dict a model: name, role, steps, seconds, the measure's figure, <key>_low and <key>_high,
                        all of Quality.summary(), rouge1, rouge2, rougeL, parameters, bytes, tokens_per_second,
                        flops (of what `read` of the measure counts, one), latency_ms, peak_memory_mb, retained (%)
differences             the measure of `name` against that of `other`, whose role is `role`: difference (of perplexity:
                        of the loss, in nats; else of the figure), low, high, significant, better; change, change_low,
                        change_high in change_unit; of accuracy also p
simpler                 names of the models that learn little or nothing and are measurably better than the judged one
findings                one dict a distilled or tuned model: name, sentence, paid, paid_at_equal_steps,
                        paid_at_equal_compute, simpler
compression             how many times the first of them is smaller or faster than the teacher: parameters, bytes, speed
cost                    compute of a distillation step in steps of plain training: ratio; None of other runs
samples                 prompt, reference, completions {name: text}
labels                  names of the labels, and scores {model: precision, recall, f1, count of each}; None where the
                        answers are tokens, or there are more than MOST_LABELS
answers                 text, truth, answers {name: labels}, where two models do not get the same right
series                  of forecasters, else None; on the test part:
  lookback, horizon, windows, season; channels (at most forecast_figures.MOST_CHANNELS), of_channels
  by_step {model: MSE of each}, by_channel {model: {channel: MSE}}, on the scaled data
  naive, skill          the naive forecast, and 1 - MSE / its MSE: {model: overall, by_channel}
  original              {teacher, student: {channel: mae, rmse, smape, mase, crps}} in the units of the data
  intervals             {teacher, student: {"80", "90": coverage, width, interval_score, by_channel, by_step}}
  reliability           {teacher, student: {percent wanted: share covered}}
  without_intervals     why there are none, else None
  examples              channel, begins, context, truth, forecasts {model: point, lo-80, hi-80, lo-90, hi-90}
signals                 of models of sequences, else None; on the rows of the test part that have a truth:
  rows, channels, peak (of the truth), first (sample that is drawn)
  ssim {model}          None for few samples
  images                of complex numbers, else None: rows, samples, floor (dB), grey {"truth", teacher, student: a
                        byte a sample from the floor to 0 dB, in base64}
  examples              row, truth, answers {teacher, student}: of complex numbers in dB of the peak
  points                of simulated radar columns, else None: count, ideal, of {model}, profiles (signal_figures.py)
seeds                   of several pairs of runs: seeds, distilled, alone, every_seed, answer, change, change_low,
                        change_high, sentence (seeds.py); added by comparison.compare
share                   where beta was chosen: candidates [{share, value}], chosen, measure (share.py); added by it too
untaught                of a run that was to be distilled and hears no teacher, why; added by it too
examples, tokens, seed  what was scored, and the seed of the resampling
references, memory, latency, measured, formulas
                        in words: what completions were held against, what memory and latency mean, on what machine and
                        which day the speeds were measured, how the numbers were made
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from llm_finetuner.benchmark import answers, judge, speed, text
from llm_finetuner.benchmark.measure import Measure
from llm_finetuner.benchmark.quality import Quality, evaluate_all
from llm_finetuner.errors import DataError
from llm_finetuner.models import labels
from llm_finetuner.teachers.provider import Provider

SAMPLES = 2
MOST_LABELS = 20
OF_SOME = ("series", "signals")  # keys that a task gives (Task.details)
FORMULAS = {  # and those of the measure; {unit} is what it scores
    "loss": "mean negative log-likelihood of {unit}, in nats: the sum over all {units} by their number",
    "uncertainty": "intervals tell how the result would vary with other test examples; how it would vary with "
    "another training seed takes further runs",
    "agreement": "share of the {units} where the model and the teacher give the same answer",
    "kl_to_teacher": "mean KL(teacher || model) of {unit} in nats, at temperature 1",
    "calibration_error": "expected calibration error of the most probable answer, 15 bins of equal width",
    "rouge": "mean F-measure of ROUGE-1, -2 and -L (words stemmed) of greedy completions",
    "bytes": "weight files on disk",
    "speed": "medians of runs in which the models take turns; {read}/s reads a fixed batch in one forward pass; "
    "models that differ in their values alone share one measurement",
    "flops": "floating point operations of the forward pass that speeds are of, by the number of {read}: products of "
    "matrices, convolutions and attention (torch's counter), Fourier transforms of length n as 5 n log2 n (half where "
    "one side is real), products and sums of elements (of complex numbers 6 and 2); no functions such as exp or GELU, "
    "and nothing that is made of the weights once and kept. A dash: torch computes nothing, or weights of 4 or 8 bits",
    "cost": "compute of one distillation step = 1 + forward(teacher) / (3 x forward(student)) steps of plain training, "
    "forward = 2 x parameters that multiply",
}


@dataclass(frozen=True)
class Entry:
    """A model to be compared. steps and seconds are those of its training, None where it was not trained here.

    reader: of a teacher that reads the rows in its own tokens, what answers them with it. of: the judged model that an
    untouched student or a baseline is to be held against alone; None: all of them.
    """

    name: str
    role: Literal[
        "teacher", "untouched", "simple", "distilled", "tuned", "baseline_steps", "baseline_compute"
    ]
    model: nn.Module
    tokenizer: Any
    folder: str | Path | None = None
    steps: int | None = None
    seconds: float | None = None
    reader: Provider | None = None
    of: str | None = None


def verdict(
    entries: Sequence[Entry],
    task: Any,
    rows: Sequence[dict],
    prompts: Sequence[str] | text.References | None = None,
    references: Sequence[str] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 8,
    vocabulary: int | None = None,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """Measure every entry on the same rows and prompts and judge; the keys are described above.

    Without prompts there are no completions and no ROUGE. The entries share one tokenizer. Raises DataError when the
    names are not all different, no entry is distilled or tuned, there is more than one teacher, or the rows hold
    nothing to score.
    """
    teacher = _check(entries)
    models = {entry.name: entry.model for entry in entries}
    if (
        vocabulary is None
        and not task.numbers
        and len({task.vocabulary(model) for model in models.values()}) > 1
    ):
        vocabulary = len(entries[0].tokenizer)  # heads padded to different widths: the rest names no token
    heard = teacher and (teacher.reader or teacher.model)
    options = {"batch_size": batch_size, "teacher": heard, "vocabulary": vocabulary}
    qualities = evaluate_all(task, models, rows, **options)
    differences = _differences(entries, qualities, task.measure, seed)
    lines = _sizes_and_speeds(entries, task, rows)
    for entry, line in zip(entries, lines, strict=True):
        line |= _quality_columns(entry, qualities, teacher, task.measure, seed)
    if prompts and not isinstance(prompts, text.References):
        prompts = text.choose_references(
            task, (teacher or entries[0]).tokenizer, prompts, references, teacher and teacher.model,
            max_new_tokens=max_new_tokens, batch_size=batch_size,
        )  # fmt: skip
    said = _completions(entries, lines, teacher, task, prompts, batch_size)
    examples = int((qualities[entries[0].name].tokens > 0).sum())
    case = judge.Case(lines, differences, examples, task.measure, qualities[entries[0].name].span)
    findings = [judge.finding(case, line) for line in _judged(lines)]
    for finding in findings:
        finding["sentence"] = f"{finding['sentence']} {task.stated(rows)}".strip()
    shown = [entry.name for entry in entries if entry.role in ("teacher", *judge.JUDGED)]
    first = next(entry for entry in entries if entry.role in judge.JUDGED)
    distils = teacher and first.role == "distilled"
    cost = speed.cost_ratio(first.model, teacher.model) if distils else None
    result = {
        **{key: value for key, value in findings[0].items() if key != "name"},
        "warnings": judge.warnings(case),
        "measure": task.measure.about(),
        "models": lines,
        "differences": differences,
        "findings": findings,
        "compression": _compression(lines),
        "cost": {"ratio": cost},
        **said,
        **_labels(entries, qualities, task, rows, heard),
        **dict.fromkeys(OF_SOME),
        **task.details(models, rows, shown),
        "examples": examples,
        "tokens": lines[0]["tokens"],
        "seed": seed,
        "measured": speed.conditions(first.model),
        "memory": speed.MEMORY_IS["cuda" if first.model.device.type == "cuda" else "cpu"],
        "latency": speed.LATENCY_OF_WINDOW if task.series else speed.LATENCY_IS[first.model.can_generate()],
        "formulas": _formulas(task.measure, said["references"] is not None),
    }
    return finite(result)


def _check(entries: Sequence[Entry]) -> Entry | None:
    """The teacher's entry, if there is one."""
    names, roles = [entry.name for entry in entries], [entry.role for entry in entries]
    if len(set(names)) < len(names):
        raise DataError(f"models to compare need different names, got {', '.join(names)}")
    if not set(roles) & set(judge.JUDGED):
        raise DataError(
            f"none of {', '.join(names)} is to be judged", "give one the role 'distilled' or 'tuned'"
        )
    if roles.count("teacher") > 1:
        raise DataError("there can be one teacher in a comparison")
    return next((entry for entry in entries if entry.role == "teacher"), None)


def _judged(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["role"] in judge.JUDGED]


def _differences(
    entries: Sequence[Entry], qualities: dict[str, Quality], measure: Measure, seed: int
) -> list[dict]:
    """Every judged model against every other model, and the teacher against every model that it did not teach.

    A teacher that is one of the simple models itself, such as a line in closed form, is not held against that one.
    """
    found = []
    for at, entry in enumerate(entries):
        for other_at, other in enumerate(entries):
            if entry.role in judge.JUDGED:
                wanted = other_at > at or other.role not in judge.JUDGED  # two judged models: once is enough
                wanted = wanted and other.of in (None, entry.name)
            else:
                wanted = entry.role == "teacher" and other.role not in ("teacher", *judge.JUDGED)
                errors = qualities[entry.name].nll, qualities[other.name].nll
                wanted = wanted and not (other.role == "simple" and np.allclose(*errors))  # the same model
            if wanted:
                pair = measure.compare(qualities[entry.name], qualities[other.name], seed=seed)
                found.append({"name": entry.name, "other": other.name, "role": other.role, **pair})
    return sorted(
        found, key=lambda pair: pair["name"] not in [e.name for e in entries if e.role in judge.JUDGED]
    )


def _quality_columns(
    entry: Entry, qualities: dict[str, Quality], teacher: Entry | None, measure: Measure, seed: int
) -> dict[str, Any]:
    columns = measure.summary(qualities[entry.name], seed=seed)
    if entry is teacher:  # of itself this says nothing
        columns |= {"agreement": None, "kl_to_teacher": None}
    own, theirs = columns[measure.key], measure.value(qualities[teacher.name]) if teacher else None
    return {**columns, "retained": measure.retained(own, theirs) if teacher else None}


def _labels(
    entries: Sequence[Entry],
    qualities: dict[str, Quality],
    task: Any,
    rows: Sequence[dict],
    teacher: nn.Module | Provider | None,
) -> dict[str, Any]:
    """The keys labels and answers: where the first judged model differs from its teacher, else from the first other."""
    if not task.labels:
        return {"labels": None, "answers": []}
    names = labels.names_of(entries[0].model)
    scores = {name: quality.per_label for name, quality in qualities.items()}
    first = next(entry for entry in entries if entry.role in judge.JUDGED)
    others = sorted((entry for entry in entries if entry is not first), key=lambda e: e.role != "teacher")
    told = []
    if others:
        models, pair = {entry.name: entry.model for entry in entries}, (others[0].name, first.name)
        told = answers.differing(task, models, rows, qualities, pair, names, first.tokenizer, teacher)
    few = {"names": names, "scores": scores} if len(names) <= MOST_LABELS else None
    return {"labels": few, "answers": told}


def _formulas(measure: Measure, completed: bool) -> dict[str, str]:
    words = {"unit": measure.unit, "units": measure.units, "read": measure.read}
    left_out = {*measure.without, *(() if completed else ("rouge",))}
    found = {key: said.format(**words) for key, said in FORMULAS.items() if key not in left_out}
    return {**measure.formulas, **found, **measure.formulas}  # the headline first


def _sizes_and_speeds(entries: Sequence[Entry], task: Any, rows: Sequence[dict]) -> list[dict[str, Any]]:
    """Models of one layout share one measurement: a difference between them would be chance."""
    ids = task.speed_batch(rows, [entry.model for entry in entries])
    speeds = speed.measure({speed.layout(entry.model): entry.model for entry in entries}, ids)
    return [
        {
            "name": entry.name,
            "role": entry.role,
            "steps": entry.steps,
            "seconds": entry.seconds,
            "parameters": speed.parameters(entry.model),
            "bytes": speed.bytes_on_disk(entry.folder),
            **speeds[speed.layout(entry.model)],
            "peak_memory_mb": speed.peak_memory_mb(entry.model, ids),
            **dict.fromkeys(text.ROUGE),
        }
        for entry in entries
    ]


def _completions(
    entries: Sequence[Entry],
    lines: list[dict],
    teacher: Entry | None,
    task: Any,
    chosen: text.References | None,
    batch_size: int,
) -> dict[str, Any]:
    """Fill in the ROUGE columns; returns the keys references and samples."""
    if not chosen:
        return {"references": None, "samples": []}
    completions = {}
    for entry, line in zip(entries, lines, strict=True):
        said = text.complete(task, entry.model, entry.tokenizer, chosen, batch_size)
        completions[entry.name] = [words for words, _ in said]
        if entry is not teacher or chosen.against != text.FROM_TEACHER:  # held against itself it says nothing
            line |= text.rouge(completions[entry.name], chosen.texts)
    tokenizer = (teacher or entries[0]).tokenizer
    samples = [
        {
            "prompt": text.decode(tokenizer, chosen.prompts[index]),
            "reference": chosen.texts[index],
            "completions": {name: said[index] for name, said in completions.items()},
        }
        for index in range(min(SAMPLES, len(chosen.prompts)))
    ]
    return {"references": chosen.against, "samples": samples}


def _compression(lines: list[dict]) -> dict[str, float | None]:
    """How many times smaller, and faster, the first distilled model is than the teacher."""
    teacher, student = next((line for line in lines if line["role"] == "teacher"), None), _judged(lines)[0]
    if teacher is None:
        return {"parameters": None, "bytes": None, "speed": None}
    known = teacher["bytes"] and student["bytes"]
    return {
        "parameters": teacher["parameters"] / student["parameters"],
        "bytes": teacher["bytes"] / student["bytes"] if known else None,
        "speed": student["tokens_per_second"] / teacher["tokens_per_second"],
    }


def finite(value: Any) -> Any:
    """The same plain data with None for numbers that JSON does not have (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
