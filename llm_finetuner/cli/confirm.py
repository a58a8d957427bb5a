"""The one screen before a run: settings, sizes, steps, memory, time, tokenizers, warnings."""

from typing import Any

from llm_finetuner.cli import preview
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.doctor import memory_available
from llm_finetuner.cli.estimate import Estimate, Sizes, look_ahead
from llm_finetuner.cli.plain import count, duration, size
from llm_finetuner.cli.settings import fields_of
from llm_finetuner.errors import FinetunerError
from llm_finetuner.recipe import Recipe, Train

Rows = list[tuple[str, str]]


def confirm_screen(recipe: Recipe, screen: Screen) -> bool:
    """Show all of it; False where something will stop the run."""
    screen.say("Looking ahead ...", "dim")
    warnings, ahead, fits = list(recipe.warnings()), [], True
    try:
        sight = preview.look(recipe)
        sizes, guess = look_ahead(recipe, sight.examples, sight.length)
        ahead = [("rows", sight.sentence), *size_rows(sizes), *estimate_rows(guess)]
        warnings += memory_warnings(guess)
        if recipe.teacher:
            same, words = vocabularies(recipe)
            ahead.append(("tokenizers", words if same else "different"))
            fits = same
            if not same:
                warnings.append(f"the run will be refused: {words}")
    except FinetunerError as error:
        screen.error(error)
        fits = False
    screen.heading("Settings")
    screen.facts(setting_rows(recipe))
    if ahead:
        screen.heading("What to expect (estimates)")
        screen.facts(ahead)
    for words in warnings:
        screen.warn(words)
    screen.say()
    return fits


def setting_rows(recipe: Recipe) -> Rows:
    """The settings that matter, and of the rest those that are not as usual."""
    plan, data = recipe.train, recipe.data
    rows = [("method", recipe.method), ("student", held(recipe.student))]
    if recipe.teacher:
        rows.append(("teacher", held(recipe.teacher)))
    options = {
        **recipe.options,
        **{f"{recipe.tuning.kind}: {k}": v for k, v in recipe.tuning.options.items()},
    }
    rows += [(name, "auto" if value is None else str(value)) for name, value in options.items()]
    rows.append(("weights that move", recipe.tuning.kind))
    rows.append(("data", f"{data.source}{f', first {data.samples} rows' if data.samples else ''}"))
    rate = plan.learning_rate or "auto"
    length = f"{plan.steps} steps" if plan.steps else f"{plan.epochs:g} epochs"
    a_step = f"{plan.batch_size} x {plan.gradient_accumulation_steps} examples a step"
    rows.append(("training", f"{length}, {a_step}, rate {rate}, at most {data.max_length} tokens"))
    told = ("epochs", "steps", "batch_size", "gradient_accumulation_steps", "learning_rate")
    for setting in fields_of(Train, "train"):
        value = vars(plan)[setting.name]
        if setting.name not in told and value != setting.default:
            rows.append((setting.name, setting.spell(value)))
    return [*rows, ("output", recipe.output)]


def held(model: Any) -> str:
    """A model's name and how it is held."""
    how = [
        ("in 4 bits", model.load_in_4bit),
        ("in 8 bits", model.load_in_8bit),
        ("new weights", model.from_scratch),
    ]
    return ", ".join([model.name, *(words for words, on in how if on)])


def size_rows(sizes: dict[str, Sizes | None]) -> Rows:
    """Parameters, and how much smaller the student is."""
    student, teacher = sizes["student"], sizes["teacher"]
    part = "" if student.trainable >= student.parameters else f", {count(student.trainable)} of them trained"
    rows = [("student", f"{count(student.parameters)} parameters{part}")]
    if teacher:
        ratio = teacher.parameters / student.parameters
        rows.append(("teacher", f"{count(teacher.parameters)} parameters"))
        rows.append(("compression", f"{ratio:.1f} times fewer parameters" if ratio > 1 else "none"))
    return rows


def estimate_rows(guess: Estimate) -> Rows:
    """Steps, memory and time."""
    parts = ", ".join(f"{name} {size(value)}" for name, value in guess.memory.items() if value)
    return [
        ("steps", f"{guess.steps:,} over {guess.examples:,} examples, {count(guess.tokens)} tokens"),
        ("memory", f"about {size(guess.total)} ({parts})"),
        ("time", f"about {duration(guess.seconds)}, without evaluations"),
    ]


def memory_warnings(guess: Estimate) -> list[str]:
    free, where = memory_available()
    if free and guess.total > free:
        return [
            f"the estimate of {size(guess.total)} is more than the {size(free)} free {where}: "
            "lower the batch size or the length, use an adapter, or hold the teacher in 4 bits"
        ]
    return []


def vocabularies(recipe: Recipe) -> tuple[bool, str]:
    """Whether student and teacher have the same tokens, in a sentence. Raises ModelError."""
    from llm_finetuner.models.loading import load_tokenizer, same_vocabulary

    return same_vocabulary(load_tokenizer(recipe.student.name), load_tokenizer(recipe.teacher.name))
