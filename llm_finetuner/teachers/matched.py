"""A live model as the teacher of a student: its tokens are the student's, or the same under other numbers."""

from typing import Any

from torch import nn

from llm_finetuner.checks import common_vocabulary
from llm_finetuner.models import loading
from llm_finetuner.teachers.aligned import aligned_teacher
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context, Provider


def live_teacher(model: nn.Module, tokenizer: Any, name: str, context: Context) -> Provider:
    """A model as the teacher of a student, whose tokens it must share, under the same numbers or others.

    Raises ModelError.
    """
    task = context.task
    task.check_model(model, name)
    if (
        task.writes
        and None not in (tokenizer, context.tokenizer)
        and not loading.same_vocabulary(context.tokenizer, tokenizer)[0]
    ):
        return aligned_teacher(model, tokenizer, name, context)
    columns = common_vocabulary(task, context.student, model, context.tokenizer, tokenizer, context.seed)
    return Live(task, model, columns)
