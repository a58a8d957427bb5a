"""A live model as the teacher of a student: its tokens are the student's, the same under other numbers, or others."""

from typing import Any

from torch import nn

from llm_finetuner.checks import common_vocabulary, read_alike
from llm_finetuner.teachers.aligned import aligned_teacher
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.own_tokens import OwnTokens
from llm_finetuner.teachers.provider import Context, Provider


def live_teacher(model: nn.Module, tokenizer: Any, name: str, context: Context) -> Provider:
    """A model as the teacher of a student, whose tokens it must share, under the same numbers or others.

    Where rows keep their texts it may have any other tokens, and reads these itself. Raises ModelError.
    """
    task, student = context.task, context.student
    task.check_model(model, name)
    same, why = read_alike(task, context.tokenizer, tokenizer)
    if not same and task.writes:
        return aligned_teacher(model, tokenizer, name, context)
    if not same and task.keeps_texts:
        common_vocabulary(task, student, model, None, None, context.seed)
        context.note(f"{name} reads the texts in its own tokens, for the tokenizers differ: {why}")
        return OwnTokens(Live(task, model), tokenizer, name)
    columns = common_vocabulary(task, student, model, context.tokenizer, tokenizer, context.seed)
    return Live(task, model, columns)
