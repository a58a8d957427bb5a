"""The wizard's questions as data: key (a path in the recipe), title, explanation, what to draw."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llm_finetuner.cli import series_questions, signal_questions, spoken
from llm_finetuner.cli.answers import (
    NEW_CACHE,
    data_source,
    found_data,
    holds_weights,
    model_name,
    output_folder,
    student_name,
    teacher_name,
)
from llm_finetuner.cli.asking import (
    NEW_STAGE,
    STAGE,
    Answers,
    Question,
    Steps,
    describe,
    fitted,
    from_setting,
    known,
    plain,
)
from llm_finetuner.cli.fitting import NO_STATES
from llm_finetuner.cli.hub import is_on_hub
from llm_finetuner.cli.needed import OF_LABELS, TRANSFORMING, compares_blocks, fitting_kinds, is_part
from llm_finetuner.cli.plain import first_line
from llm_finetuner.cli.prompts import BACK, Ask, Mark, Pick
from llm_finetuner.cli.purpose import example, kinds_for, pick_task, pointless, task_of
from llm_finetuner.cli.settings import MEMBERS, OF_ONE_TASK, Setting, fields_of, options_in
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.recipe_series import FORECASTING, REGRESSION
from llm_finetuner.registry import METHODS, TEACHERS, TUNINGS, menu_entry, resolve
from llm_finetuner.scheme import Scheme

ASKED = ("train.epochs", "train.batch_size", "train.learning_rate", "data.max_length", "data.samples")
ELSEWHERE = (  # asked with the models and the data
    "student.name", "teacher.name", "teacher.kind", "data.source", "data.config", "data.split", "data.text_columns",
    "data.prefix",
)  # fmt: skip
FIRST = {  # of a kind of teacher, what is asked at once; the rest on request
    "ensemble": ("members", "weights", "mixture"),
    "cached": ("path",),
    "remote": ("url", "k"),
    "live_cached": ("path", "k"),
}
ON_REQUEST = ("fine_tuning", *OF_ONE_TASK)  # methods whose options few people change
WITHOUT_ADAPTERS = ("patch", "linear")
OF_NUMBERS = {FORECASTING: series_questions, REGRESSION: signal_questions}  # questions of their own
FEW_ANSWERS = (*OF_LABELS, *OF_NUMBERS)  # tasks whose caches keep all of an answer
NAMELESS = ("ensemble", "cached")  # kinds whose teacher has no name of its own
BLANK = "Enter alone: no more."


def questions(answers: Answers) -> Steps:
    """All questions for the answers so far, each with its one-line explanation."""
    job = answers.get("job", "train")
    return {"train": training, "chain": chain, "cache": caching, "write": writing}[job](answers)


def training(answers: Answers) -> Steps:
    """A run of one method."""
    method, _ = method_of(answers)
    own = OF_NUMBERS.get(task_of(answers))
    first = [plain("task", pick_task), *(own.data() if own else [])]
    steps = [*first, *student(answers), *teacher(answers)]
    if own is signal_questions:
        steps += own.shape()
    if method != "fine_tuning":
        steps.append(plain("tuning.kind", pick_tuning))
    steps += [] if own else data()
    asked = [] if method in ON_REQUEST else options_in(METHODS, method, "options")
    steps += [from_setting(s) for s in asked if s.path not in pointless(task_of(answers))]
    return [*steps, *(own.share() if method in OF_ONE_TASK else []), *last(answers)]


def chain(answers: Answers) -> Steps:
    """A teacher, and students one after the other until none is named."""
    steps = [plain("teacher.name", lambda a: Ask(spoken.EXAMPLE_TEACHER, teacher_name, is_path=True))]
    named = [key for key in answers if key.startswith(STAGE) and answers[key]]
    for number in range(1, len(named) + 2):
        first = number == 1

        def make(_: Answers, first: bool = first) -> Ask:
            return Ask(spoken.EXAMPLE_STUDENT if first else "", partial(stage_name, first), is_path=True)

        told = (
            "The largest student: it learns from the teacher."
            if first
            else f"It learns from the one before. {BLANK}"
        )
        key, new = f"{STAGE}{number}", "student.from_scratch"
        fresh = Question(f"{NEW_STAGE}{number}", partial(pick_scratch, key), spoken.TITLES[new])
        steps += [(Question(key, make, f"Student {number}"), told), (fresh, spoken.WHY[new])]
    method, _ = method_of(answers)
    steps += [plain("tuning.kind", pick_tuning), *data()]
    return [*steps, *[from_setting(s) for s in options_in(METHODS, method, "options")], *last(answers)]


def caching(answers: Answers) -> Steps:
    """What a teacher's answers are written down for."""
    own = OF_NUMBERS.get(task_of(answers))
    k = Question("job.k", lambda a: None if task_of(a) in FEW_ANSWERS else Ask("50", whole_number))
    return [
        plain("task", pick_task),
        *(own.data() if own else []),
        *student(answers),
        own.teacher() if own else plain("teacher.name", pick_teacher),
        *([] if own else [*data(), *known("data.max_length", "data.samples")]),
        (k, k.why()),
        plain("job.to", lambda a: Ask(NEW_CACHE, str, is_path=True)),
    ]


def writing(answers: Answers) -> Steps:
    """What a teacher is to write."""
    options = [s for s in options_in(METHODS, "sequence_distillation", "options") if s.name != "keep_data"]
    return [
        plain("teacher.name", lambda a: Ask(spoken.EXAMPLE_TEACHER, teacher_name, is_path=True)),
        *data(),
        *known("data.samples"),
        *[from_setting(s) for s in options],
        plain("job.to", lambda a: Ask("written.jsonl", str, is_path=True)),
    ]


def student(answers: Answers) -> Steps:
    """The student, and whether it starts from new weights."""
    method, _ = method_of(answers)
    kinds = fitting_kinds(scheme_of(method))
    if own := OF_NUMBERS.get(task_of(answers)):
        return own.student("live" in kinds)
    why = spoken.WHY["student.name"]
    told = f"{why} Or {spoken.FROM_TEACHER}" if "live" in kinds and method != "online_distillation" else why
    named = Question(
        "student.name",
        lambda a: Ask(example(a)[0], partial(student_name, bool(kinds)), is_path=True),
    )
    return [(named, told), plain("student.from_scratch", partial(pick_scratch, "student.name"))]


def teacher(answers: Answers) -> Steps:
    """What teaches, with the questions that its kind brings."""
    method, _ = method_of(answers)
    kinds = kinds_for(task_of(answers), fitting_kinds(scheme_of(method)))
    if not kinds:
        return []
    peers = method == "online_distillation"
    kind = answers.get("teacher.kind", "live")
    if any(compares_blocks(term) for term in scheme_of(method).terms):
        kinds = [kind for kind in kinds if kind not in NO_STATES]
    steps: Steps = [plain("teacher.kind", lambda a: pick_kind(kinds, peers))]
    if kind not in NAMELESS or is_part(answers.get("student.name", "")) and kind != "ensemble":
        own = OF_NUMBERS.get(task_of(answers))
        named = Question("teacher.name", partial(ask_teacher, kind, peers))
        told = spoken.PEER if peers else named.why()
        steps.append(own.teacher() if own else (named, told))
        if peers:
            steps.append(plain("teacher.from_scratch", partial(pick_scratch, "teacher.name")))
    options = options_in(TEACHERS, kind, "teacher.options")
    asked = FIRST.get(kind, tuple(s.name for s in options))
    steps += [from_setting(s) for s in options if s.name in asked]
    return steps


def data() -> Steps:
    """The data, and how they are read."""
    return [
        plain("data.source", lambda a: Ask(found_data(), data_source, is_path=True)),
        plain("data.config", pick_config),
        plain("data.split", pick_split),
        plain("data.prefix", ask_prefix),
        plain("data.look", lambda a: None),
    ]


def last(answers: Answers) -> Steps:
    """The training, other settings on request, the output."""
    more = further(answers)
    own = OF_NUMBERS.get(task_of(answers))
    return [
        *(own.training() if own else known(*ASKED)),
        plain("advanced", pick_advanced),
        plain("more", lambda a: mark_more(a, more)),
        *[from_setting(s) for s in more if s.path in answers.get("more", ())],
        plain("output", lambda a: Ask(free_folder(a), partial(folder_typed, a), is_path=True)),
    ]


def method_of(answers: Answers) -> tuple[str, str]:
    """(method, tuning) of the answers."""
    _, method, tuning, _ = menu_entry(answers["method"])
    return method, answers.get("tuning.kind", tuning)


def scheme_of(method: str) -> Scheme:
    """What the method comes to, as it is."""
    return resolve(METHODS, method)()


def further(answers: Answers) -> list[Setting]:
    """The settings that are asked for on request only."""
    method, tuning = method_of(answers)
    has_teacher = fitting_kinds(scheme_of(method))
    kind = answers.get("teacher.kind", "live")
    options = options_in(TEACHERS, kind, "teacher.options") if has_teacher else []
    part = is_part(answers.get("student.name", ""))
    settings = [
        *options_in(TUNINGS, tuning, "tuning.options"),
        *(options_in(METHODS, method, "options") if method in ON_REQUEST else []),
        *fields_of(Train, "train"), *fields_of(Data, "data"),
        *[s for s in fields_of(Model, "student") if part or not s.name.startswith("keep_")],
        *(fields_of(Teacher, "teacher") if has_teacher else []),
        *[s for s in options if s.name not in FIRST.get(kind, (s.name,))],
    ]  # fmt: skip
    models = ("student", "teacher")
    fresh = [f"{who}.from_scratch" for who in models if lacks_weights(answers, f"{who}.name")]
    own = OF_NUMBERS.get(task_of(answers))
    asked = (*(own.asked(answers) if own else ASKED), *ELSEWHERE, *fresh, *pointless(task_of(answers)))
    return [s for s in settings if s.path not in asked]


def pick_advanced(answers: Answers) -> Pick:
    """The gate before the settings that few people change."""
    return Pick([("no", "No, they are fine", "", None), ("yes", "Yes, show them", "", None)], "no")


def mark_more(answers: Answers, more: list[Setting]) -> Mark | None:
    return Mark([(s.path, describe(s)) for s in more]) if answers.get("advanced") == "yes" else None


# ---- the questions that no field can make


def stage_name(first: bool, typed: str) -> str:
    """A student of a chain as typed; nothing ends the chain. Raises RecipeError."""
    return student_name(True, typed) if first or typed.strip() else ""


def whole_number(typed: str) -> int:
    """A whole number from 1. Raises RecipeError."""
    if not typed.strip().isdigit() or not int(typed):
        raise RecipeError(f"{typed!r} is no whole number from 1")
    return int(typed)


def teacher_of(kind: str, peers: bool) -> Callable[[str], str]:
    """How a teacher's name is read: a model's, or what an endpoint calls it. A peer may start from new weights."""
    if peers:
        return model_name
    return str.strip if kind == "remote" else teacher_name


def pick_kind(kinds: list[str], peers: bool) -> Pick | None:
    """What answers; not asked where there is one way only."""
    words = spoken.PEERS if peers else spoken.KINDS
    choices = [(kind, *words.get(kind, (kind, first_line(resolve(TEACHERS, kind)))), None) for kind in kinds]
    return Pick(choices, kinds[0]) if len(kinds) > 1 else None


def lacks_weights(answers: Answers, key: str = "student.name") -> bool:
    """Whether the model of this answer is a folder that holds a configuration only."""
    name = answers.get(key)
    return bool(name) and Path(name).is_dir() and not holds_weights(Path(name))


def pick_scratch(key: str, answers: Answers) -> Pick | None:
    """Asked only where there is nothing else to start from."""
    yes = (True, "Yes, from scratch", "The folder holds no weights: they are drawn from the seed", None)
    no = (BACK, "No, another model", "", None)
    return Pick([yes, no], True) if lacks_weights(answers, key) else None


def pick_teacher(answers: Answers) -> Ask:
    """A teacher that is named before anything else that it could be held against."""
    return Ask(example(answers)[1], teacher_name, is_path=True)


def ask_teacher(kind: str, peers: bool, answers: Answers) -> Ask:
    """A teacher's name, held against what was named before."""
    return Ask(example(answers)[1], fitted(teacher_of(kind, peers), "teacher.name", answers), is_path=True)


def pick_tuning(answers: Answers) -> Pick | None:
    """Not asked of models that are small."""
    small = task_of(answers) == FORECASTING and answers.get("student.name") in WITHOUT_ADAPTERS
    if small or task_of(answers) == REGRESSION:
        return None
    described = [(name, name, first_line(resolve(TUNINGS, name)), None) for name in TUNINGS]
    return Pick(described, menu_entry(answers["method"])[2])


def field_of_data(path: str) -> Ask:
    """A line for a setting of the data that may be nothing."""
    setting = next(s for s in fields_of(Data, "data") if s.path == path)
    return Ask(setting.nothing, setting.parse)


def pick_config(answers: Answers) -> Ask | None:
    return field_of_data("data.config") if is_on_hub(answers["data.source"]) else None


def ask_prefix(answers: Answers) -> Ask | None:
    return field_of_data("data.prefix") if task_of(answers) in TRANSFORMING else None


def pick_split(answers: Answers) -> Ask | None:
    return Ask(Data.split) if is_on_hub(answers["data.source"]) else None


def free_folder(answers: Answers) -> str:
    """outputs/<student>-<method>, or the first number after it that is free."""
    student = Path(answers.get("student.name") or answers[f"{STAGE}1"]).name or "student"
    if is_part(answers.get("student.name") or answers[f"{STAGE}1"]):
        student = "part"
    first = f"outputs/{student}-{'chain' if answers.get('job') == 'chain' else answers['method']}"
    names = [first, *(f"{first}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not Path(name).exists())


def folder_typed(answers: Answers, typed: str) -> str:
    """The folder of the run as typed. Raises RecipeError where something is in the way."""
    members = answers.get(MEMBERS)
    teacher = Teacher(answers.get("teacher.name", ""))
    if members:
        teacher = Teacher(kind="ensemble", options={"members": members})
    elif "teacher.options.path" in answers:
        teacher = Teacher(teacher.name, kind="cached", options={"path": answers["teacher.options.path"]})
    student = Model(answers.get("student.name") or answers[f"{STAGE}1"])
    return output_folder(Recipe(student=student, teacher=teacher, data=Data(answers["data.source"])), typed)
