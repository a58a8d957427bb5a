"""The soft labels that a live teacher of a classifier gives a few rows. Heavy imports stand inside the functions."""

from typing import Any

from llm_finetuner.cli.task_rows import names_of, read, with_labels
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve

EXAMPLES = 3


def check_soft(recipe: Recipe) -> None:
    """Raise RecipeError for a teacher that is named, and gives no soft labels."""
    if recipe.teacher and recipe.task != "classification":
        raise RecipeError(
            f"soft labels are shown for classification, and the task is {recipe.task}",
            "leave --teacher out, or give --task classification",
        )


def soft_labels(recipe: Recipe) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of benchmark.soft_labels.table, their texts): a few examples as the recipe's live teacher sees them.

    Loads the teacher. Raises FinetunerError.
    """
    from llm_finetuner.benchmark import soft_labels as soft
    from llm_finetuner.engine import default_device
    from llm_finetuner.models import labels, loading
    from llm_finetuner.named_models import load_teacher
    from llm_finetuner.output import Want, moved

    task, device = resolve(TASKS, recipe.task)(), default_device(None)
    teacher = load_teacher(recipe.teacher, device, task.auto)
    task.check_model(teacher, recipe.teacher.name)
    tokenizer = loading.load_tokenizer(recipe.teacher.name)
    data = recipe.data
    dataset = with_labels(recipe.task, read(data, task)[1], data, labels.names_of(teacher))
    step = max(1, len(dataset) // EXAMPLES)
    few = dataset.select(range(0, min(len(dataset), EXAMPLES * step), step))
    rows = task.prepare_rows(few, tokenizer, data, teacher).dataset.with_format(None)
    batch = moved(task.collate(list(rows)), device)
    output = task.run(teacher, batch, Want())
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["input_ids"]]
    names = names_of(dataset)
    return soft.table(output.head(output.rows), names, labels=[row[0] for row in rows["labels"]]), texts
