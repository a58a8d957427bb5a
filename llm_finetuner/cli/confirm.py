"""The one screen before a run: settings, sizes, steps, memory, time, tokenizers, warnings."""

from typing import Any

from llm_finetuner.benchmark.phrases import times
from llm_finetuner.cli import preview, series_estimate, signal_estimate
from llm_finetuner.cli.chains import as_planned, check_stages, named_students
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.doctor import memory_available
from llm_finetuner.cli.estimate import Estimate, Sized, look_ahead, together
from llm_finetuner.cli.fitting import check_fit
from llm_finetuner.cli.hub import NOT_HERE, models_in, names_in, prepare, whereabouts
from llm_finetuner.cli.needed import compares_blocks, is_part, teachers_of
from llm_finetuner.cli.plain import count, duration, listed, size
from llm_finetuner.cli.series_sight import SeriesSight
from llm_finetuner.cli.settings import fields_of
from llm_finetuner.cli.typed import spell_objectives
from llm_finetuner.cli.words import shape_given
from llm_finetuner.errors import FinetunerError
from llm_finetuner.layer_maps import POOLED_NAME
from llm_finetuner.recipe import Data, Recipe, Teacher, Train, members_of
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS, REGRESSION
from llm_finetuner.registry import TASKS, resolve

Rows = list[tuple[str, str]]


def confirm_screen(recipe: Recipe, screen: Screen) -> bool:
    """Show all of it; False where something will stop the run."""
    screen.say("Looking ahead ...", "dim")
    prepare(names_in(recipe), screen.warn)
    warnings, fits, sizes, sight, guess = list(recipe.warnings()), True, None, None, None
    tokenizers: Rows = []
    try:
        sight = preview.look(recipe)
        warnings += sight.doubts if isinstance(sight, SeriesSight) else []
        plans = as_planned(recipe) if recipe.stages else [recipe]
        check_stages(recipe) if recipe.stages else check_fit(recipe)
        guesses = [ahead(plan, sight) for plan in plans]
        sizes, guess = guesses[0][0], together([guess for _, guess in guesses])
        warnings += memory_warnings(guess)
        if teachers_of(recipe) and recipe.teacher.kind != "across" and recipe.task not in OF_NUMBERS:
            fits, words = vocabularies(recipe)
            tokenizers = [("tokenizers", words)]
            warnings += [] if fits else ["the run will be refused, because the tokenizers differ"]
        absent = missing_weights(recipe)
        warnings, fits = warnings + absent, fits and not absent
    except FinetunerError as error:
        screen.error(error)
        fits = False
    screen.heading("Settings")
    rows = [*method_rows(recipe), *model_rows(recipe, sizes), *tokenizers]
    if recipe.stages:
        students = [
            stage if isinstance(stage, str) else spelled_stage(stage, recipe) for stage in recipe.stages
        ]
        rows.insert(0, ("stages", " -> ".join([*(t.name for t in teachers_of(recipe)), *students])))
    screen.facts([*rows, *data_rows(recipe, sight), *training_rows(recipe), ("output", recipe.output)])
    if guess:
        screen.heading("Estimates")
        screen.facts(estimate_rows(guess))
    for words in warnings:
        screen.warn(words)
    screen.say()
    return fits


def ahead(plan: Recipe, sight: preview.Sight | SeriesSight) -> tuple[Sized, Estimate]:
    """Sizes of the models, and what the run will take. Raises ModelError."""
    if isinstance(sight, SeriesSight):
        return series_estimate.look_ahead(plan, sight)
    if plan.task == REGRESSION:
        return signal_estimate.look_ahead(plan, sight.examples, sight.length)
    return look_ahead(plan, sight.examples, sight.length)


def method_rows(recipe: Recipe) -> Rows:
    """What is learned and which weights move, each with its options; before them what is learned for."""
    rows = [("method", recipe.method), ("weights that move", recipe.tuning.kind)]
    for index, options in enumerate((recipe.options, recipe.tuning.options)):
        if options:
            told = ", ".join(f"{name} {'auto' if v is None else spelled(v)}" for name, v in options.items())
            rows[index] = (rows[index][0], f"{rows[index][1]}: {told}")
    return [*([("task", recipe.task)] if recipe.task != Recipe.task else []), *rows]


def spelled(value: Any) -> str:
    """A mixture of objectives as it is typed; all else as it is."""
    return " ".join(spell_objectives(value)) if isinstance(value, dict) else str(value)


def spelled_stage(changes: dict[str, Any], recipe: Recipe) -> str:
    """What a stage changes, its student first where it names one."""
    rest = ", ".join(f"{name} {value}" for name, value in changes.items() if name != "student")
    student = str(changes.get("student", recipe.student.name))
    return f"{student} ({rest})" if rest else student


def model_rows(recipe: Recipe, sizes: Sized | None) -> Rows:
    """The models, their parameters, and how much smaller the student is."""
    told = {"student": "", "teacher": ""}
    if sizes:
        student = sizes.student
        part = (
            "" if student.trainable >= student.parameters else f", {count(student.trainable)} of them trained"
        )
        told["student"] = f": {count(student.parameters)} parameters{part}"
        whole = sum(teacher.parameters for _, teacher in sizes.others)
        if whole:
            ratio = whole / student.parameters
            told["teacher"] = f": {count(whole)} parameters, compression {times(ratio)} times"
    rows = [("student", held(recipe.student) + told["student"])]
    if recipe.teacher and recipe.needs_teacher:
        rows.append(("teacher", teaching(recipe.teacher) + told["teacher"]))
    return rows


def teaching(teacher: Teacher) -> str:
    """What answers, in words."""
    if teacher.kind == "cached":
        return f"answers in {teacher.options['path']}"
    if teacher.kind == "remote":
        return f"{teacher.name} at {teacher.options['url']}"
    told = " + ".join(held(member) for member in members_of(teacher))
    return f"{told}, its answers kept in {teacher.options['path']}" if teacher.kind == "live_cached" else told


def missing_weights(recipe: Recipe) -> list[str]:
    """A warning for each model of the hub that cannot be had now."""
    names = [model.name for model in models_in(recipe) if not model.from_scratch]
    return [
        f"{name} is {NOT_HERE}, and the hub is out of reach"
        for name in names
        if whereabouts(name) == NOT_HERE
    ]


def data_rows(recipe: Recipe, sight: preview.Sight | SeriesSight | None) -> Rows:
    data = recipe.data
    if isinstance(sight, SeriesSight):
        return [
            ("data", f"{data.source}: {sight.sentence}"), ("times", sight.times),
            ("cut", f"{data.series.split}: {sight.cut}"), *_also_given(data),
        ]  # fmt: skip
    first = f", first {data.samples} rows" if data.samples else ""
    rows = [("data", f"{data.source}{first}{f': {sight.sentence}' if sight else ''}")]
    return [*rows, ("class weights", listed(sight.weights))] if sight and sight.weights else rows


def _also_given(data: Data) -> Rows:
    """What else is said of series and is not as usual."""
    shown = ("data.source", "data.series.split", *(f"data.series.{name}" for name in ("lookback", "horizon")))
    told = []
    for setting in fields_of(Data, "data"):
        value = vars(data.series if setting.owner == FORECASTING else data)[setting.name]
        if setting.path not in shown and value != setting.default:
            told.append(f"{setting.name.replace('_', ' ')} {setting.spell(value)}")
    return [("also of the data", "; ".join(told))] if told else []


def training_rows(recipe: Recipe) -> Rows:
    """The usual settings in one line; of the rest those that are not as usual."""
    plan = recipe.train
    length = f"{plan.steps} steps" if plan.steps else f"epochs {plan.epochs:g}"
    what = {FORECASTING: "windows", REGRESSION: "rows"}.get(recipe.task, "examples")
    a_step = f"{plan.batch_size} x {plan.gradient_accumulation_steps} {what} a step"
    rate = f"learning rate {plan.learning_rate or 'auto'}"
    told = [
        length,
        a_step,
        rate,
        *([] if recipe.task in OF_NUMBERS else [f"at most {recipe.data.max_length} tokens"]),
    ]
    shown = ("epochs", "steps", "batch_size", "gradient_accumulation_steps", "learning_rate")
    for setting in fields_of(Train, "train"):
        value = vars(plan)[setting.name]
        if setting.name not in shown and value != setting.default:
            told.append(f"{setting.name} {setting.spell(value)}")
    return [("training", ", ".join(told))]


def held(model: Any) -> str:
    """A model's name and how it is held; of one that is built here its shape, as far as it is not the usual one."""
    where = "" if model.from_scratch or is_part(model.name) else whereabouts(model.name)
    shape = [f"{name} {value}" for name, value in shape_given(model).items()]
    how = [
        (" ".join(shape), bool(shape)),
        (where, bool(where)),
        ("in 4 bits", model.load_in_4bit),
        ("in 8 bits", model.load_in_8bit),
        ("new weights", model.from_scratch),
    ]
    return ", ".join([model.name, *(words for words, on in how if on)])


def estimate_rows(guess: Estimate) -> Rows:
    """Steps, memory and time."""
    parts = ", ".join(f"{name} {size(value)}" for name, value in guess.memory.items() if value)
    return [
        (
            "steps",
            f"{guess.steps:,} over {guess.examples:,} {guess.counted[0]}, {count(guess.tokens)} {guess.counted[1]}",
        ),
        ("memory", f"about {size(guess.total)} ({parts})"),
        ("time", f"about {duration(guess.seconds)}, without evaluations{writing_time(guess)}"),
    ]


def writing_time(guess: Estimate) -> str:
    """How much of the time is for texts that a model writes."""
    return f"; {duration(guess.writing)} of it for texts that are written" if guess.writing else ""


def memory_warnings(guess: Estimate) -> list[str]:
    free, where = memory_available()
    if free and guess.total > free:
        return [
            f"the estimate of {size(guess.total)} is more than the {size(free)} free {where}: "
            "lower the batch size or the length, use an adapter, or hold the teacher in 4 bits"
        ]
    return []


def vocabularies(recipe: Recipe) -> tuple[bool, str]:
    """Whether the student can learn from these teachers with their tokenizers, in a sentence. Raises ModelError."""
    from llm_finetuner.checks import read_alike
    from llm_finetuner.models.loading import load_tokenizer
    from llm_finetuner.named_models import student_source

    own, task = load_tokenizer(student_source(recipe)), resolve(TASKS, recipe.task)()
    names = [member.name for member in teachers_of(recipe)]
    found = [read_alike(task, own, load_tokenizer(name)) for name in [*names, *named_students(recipe)]]
    same, words = next((said for said in found if not said[0]), found[0])
    if same:
        return True, words
    asks_tokens = any(compares_blocks(term) and term.layers != POOLED_NAME for term in recipe.terms)
    if task.keeps_texts and recipe.scheme.teacher == "given" and not asks_tokens:
        return True, f"each reads the texts in its own: {words}"
    return False, f"different: {words}"
