"""What a model is for, as the menu asks it: which tasks a method can be run for, and what a task leaves to ask."""

from llm_finetuner.cli import spoken
from llm_finetuner.cli.needed import FILLING, OF_ANY_TASK, OF_LABELS, TRANSFORMING, WRITING
from llm_finetuner.cli.prompts import Pick
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import METHODS, TASKS, menu_entry, resolve

TEXT = Recipe.task
ONLY_FOR = {  # settings that are for models of these tasks only
    "train.packing": WRITING,
    "data.loss_on": WRITING,
    "student.keep_encoder": TRANSFORMING,
    "data.label_names": OF_LABELS,
    "data.class_weights": OF_LABELS,
    "data.mask": FILLING,
}


def task_of(answers: dict) -> str:
    """The task that was chosen; writing text, where nothing was asked."""
    return answers.get("task", TEXT)


def pick_task(answers: dict) -> Pick | None:
    """Not asked where a model has to write."""
    _, method, _, _ = menu_entry(answers["method"])
    scheme = resolve(METHODS, method)()
    if scheme.writing or scheme.on_policy:
        return None
    return Pick([(name, *told, None) for name, told in spoken.TASKS.items() if name in TASKS], TEXT)


def kinds_for(task: str, kinds: tuple[str, ...]) -> list[str]:
    """Of these kinds of teachers, those that are asked for and answer models for the task."""
    return [kind for kind in kinds if kind != "average" and (task in WRITING or kind in OF_ANY_TASK)]


def example(answers: dict) -> tuple[str, str]:
    """A student and a teacher of the hub that are for the task."""
    return spoken.EXAMPLES[task_of(answers)]


def pointless(task: str) -> tuple[str, ...]:
    """Settings that are for other tasks."""
    return tuple(path for path, tasks in ONLY_FOR.items() if task not in tasks)
