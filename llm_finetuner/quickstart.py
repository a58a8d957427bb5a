"""The quickstart: a recipe and a data set through the public doors, four trainings from one start, one verdict."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner import assets, comparison, recipe_file
from llm_finetuner.assembly import Parts, load_rows
from llm_finetuner.benchmark.verdict import Entry
from llm_finetuner.data import stdlib
from llm_finetuner.engine import default_device
from llm_finetuner.errors import OrderError
from llm_finetuner.models import loading
from llm_finetuner.named_models import load_teacher
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.trainer import OnEvent, fit

PROMPTS = 12  # that completions are generated for
TEACHER_SCRIPT = "examples/train_quickstart_teacher.py"


def run(
    steps: int | None = None,
    seed: int = 0,
    fresh_teacher: bool = False,
    hub: bool = False,
    output: str | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train a student by vanilla and by feature distillation and on cross-entropy alone, and return the verdict.

    steps, seed: of every training. fresh_teacher: train the teacher anew first (an hour or two of CPU). hub:
    gpt2-medium and gpt2 from the hub instead of the models that came with the package. Raises FinetunerError.
    """
    say = on_event or (lambda kind, record: None)
    recipe = _recipe(steps, seed, hub, output)
    if not hub:
        recipe = _with_shipped_models(recipe, fresh_teacher, say)
    device = default_device()
    tokenizer = loading.load_tokenizer(recipe.student.name)
    train, held_out = load_rows(
        recipe.data,
        resolve(TASKS, recipe.task)(),
        None,
        tokenizer,
        seed,
        recipe.output,
        lambda text: say("note", {"text": text}),
    )
    parts = Parts(
        tokenizer=tokenizer, teacher=load_teacher(recipe.teacher, device),
        teacher_tokenizer=loading.load_tokenizer(recipe.teacher.name), train=train, held_out=held_out,
    )  # fmt: skip
    second = recipe_file.load(assets.path("recipes/quickstart_feature.yaml"))
    feature = replace(recipe, method=second.method, options=second.options, output=f"{recipe.output}/feature")
    say("note", {"text": "1 of 4: vanilla distillation"})
    result = fit(recipe, parts, on_event=on_event)
    say("note", {"text": "2 of 4: feature distillation"})
    other = fit(feature, replace(parts, tuned=None), on_event=on_event)
    seconds = other.metrics["seconds"]
    entry = Entry(
        "feature distillation", "distilled", other.tuned.model, tokenizer, feature.output,
        other.metrics["steps"], seconds,
    )  # fmt: skip
    say("note", {"text": "3 and 4 of 4: the same student on cross-entropy alone, and the comparison"})
    subject = comparison.Subject(
        recipe=recipe, parts=parts, tokenizer=tokenizer, rows=held_out, history=result.history,
        untouched=lambda other: comparison.load_untouched(other, device, train),
    )  # fmt: skip
    pairs = comparison.pairs_of(subject, count=PROMPTS)
    return comparison.compare(
        subject, *pairs, baseline=True, on_event=on_event, others=[(entry, other.history)]
    )


def _recipe(steps: int | None, seed: int, hub: bool, output: str | None) -> Recipe:
    name = "recipes/quickstart_hub.yaml" if hub else "recipes/quickstart.yaml"
    recipe = recipe_file.load(assets.path(name))
    return replace(
        recipe,
        output=output or recipe.output,
        train=replace(recipe.train, seed=seed, steps=steps or recipe.train.steps),
    )


def _with_shipped_models(recipe: Recipe, fresh_teacher: bool, say: OnEvent) -> Recipe:
    """Write the data beside the run, and name the models by where they lie on this machine."""
    data = stdlib.write(Path(recipe.output) / "data")
    folder = assets.path("quickstart")
    if fresh_teacher:
        folder = Path(recipe.output) / "fresh"
        _train_teacher(folder, say)
    return replace(
        recipe,
        student=replace(recipe.student, name=str(folder / "student")),
        teacher=replace(recipe.teacher, name=str(folder / "teacher")),
        data=replace(recipe.data, source=str(data)),
    )


def _train_teacher(folder: Path, say: OnEvent) -> None:
    script = Path(__file__).resolve().parent.parent / TEACHER_SCRIPT
    if not script.exists():
        raise OrderError(
            f"{TEACHER_SCRIPT} is not here", "run --fresh-teacher from a clone of the repository"
        )
    say("note", {"text": f"training a fresh teacher into {folder}: an hour or two on a CPU"})
    command = [sys.executable, str(script), "--out", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise OrderError("the teacher was not trained", "its own messages stand above")
