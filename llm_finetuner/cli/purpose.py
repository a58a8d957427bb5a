"""What a model is for, as the menu asks it: which tasks a method can be run for, and what a task leaves to ask."""

from llm_finetuner.cli import series_fit, settings, signal_fit, spoken
from llm_finetuner.cli.needed import FILLING, OF_ANY_TASK, OF_LABELS, TRANSFORMING, WRITING
from llm_finetuner.cli.prompts import Pick
from llm_finetuner.cli.settings import OF_ONE_TASK, fields_of
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS, REGRESSION
from llm_finetuner.registry import METHODS, TASKS, menu_entry, resolve

TEXT = Recipe.task
READ = {FORECASTING: series_fit.READ, REGRESSION: signal_fit.READ}  # of the data's settings
OF_TEXTS = tuple(name for name in TASKS if name not in OF_NUMBERS)
ONLY_FOR = {  # settings that are for models of these tasks only
    **{
        f"data.{name}": (*OF_TEXTS, *(task for task, read in READ.items() if name in read))
        for name in vars(Data())
    },
    **{s.path: (FORECASTING,) for s in fields_of(Data, "data") if s.owner == FORECASTING},
    "student.shape": OF_NUMBERS,
    "teacher.shape": OF_NUMBERS,
    "student.init": (REGRESSION,),
    "options.temperature": OF_TEXTS,
    "options.label_smoothing": OF_TEXTS,
    "train.max_tokens": OF_TEXTS,
    "train.packing": WRITING,
    "data.loss_on": WRITING,
    "student.keep_encoder": TRANSFORMING,
    "student.mixer": WRITING,
    "data.label_names": OF_LABELS,
    "data.class_weights": OF_LABELS,
    "data.mask": FILLING,
}


def task_of(answers: dict) -> str:
    """The task that was chosen; where nothing was asked what the method is for."""
    return settings.task_of(answers.get("task"), menu_entry(answers["method"])[1])


def pick_task(answers: dict) -> Pick | None:
    """Not asked where a model has to write."""
    _, method, _, _ = menu_entry(answers["method"])
    scheme = resolve(METHODS, method)()
    if scheme.writing or scheme.on_policy or method in OF_ONE_TASK:
        return None
    asked = (name for name in spoken.TASKS if name in TASKS)
    return Pick([(name, *spoken.TASKS[name], None) for name in asked], TEXT)


def kinds_for(task: str, kinds: tuple[str, ...]) -> list[str]:
    """Of these kinds of teachers, those that are asked for and answer models for the task."""
    return [kind for kind in kinds if kind != "average" and (task in WRITING or kind in OF_ANY_TASK)]


def example(answers: dict) -> tuple[str, str]:
    """A student and a teacher of the hub that are for the task."""
    return spoken.EXAMPLES[task_of(answers)]


def pointless(task: str) -> tuple[str, ...]:
    """Settings that are for other tasks."""
    return tuple(path for path, tasks in ONLY_FOR.items() if task not in tasks)
