"""Whether rows, student and teacher fit together, asked before time is spent."""

from typing import Any

from torch import nn

from llm_finetuner.data import columns
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.models import labels, loading, vocabulary


def common_vocabulary(task, student, teacher, tokenizer, teacher_tokenizer, seed: int = 0) -> int | None:
    """Columns of the logits that name a token of both; None when all do. Raises ModelError when the tokens differ.

    Checkpoints pad their vocabulary to different widths; the padding names no token and is masked on both sides. Where
    the answers are labels, both models are brought to one order of them; the seed draws what a student lacks.
    """
    if task.numbers:
        return task.check_pair(student, teacher)
    if task.labels:
        return _common_labels(task, student, teacher, tokenizer, teacher_tokenizer, seed)
    ours, theirs = task.vocabulary(student), task.vocabulary(teacher)
    if tokenizer is None or teacher_tokenizer is None:
        if ours != theirs:
            raise ModelError(
                f"the student has {ours} logits and the teacher {theirs}; without tokenizers nobody knows which",
                "give both models with their tokenizers",
            )
        return None
    same, why = loading.same_vocabulary(tokenizer, teacher_tokenizer)
    if not same:
        raise ModelError(
            f"student and teacher have different tokenizers: {why}",
            "take a teacher with the student's tokenizer, or teacher.kind=across, which needs no common tokens",
        )
    tokens = max(tokenizer.get_vocab().values()) + 1
    return None if ours == theirs <= tokens else min(tokens, ours, theirs)


def _common_labels(task, student, teacher, tokenizer, teacher_tokenizer, seed: int) -> None:
    labels.match(student, teacher, seed)
    same, why = read_alike(task, tokenizer, teacher_tokenizer)
    if not same:
        raise ModelError(
            f"student and teacher have different tokenizers: {why}",
            "take a teacher with the student's tokenizer",
        )


def read_alike(task: Any, tokenizer: Any, other: Any) -> tuple[bool, str]:
    """Whether a teacher reads the student's rows as they are, with what differs in a sentence. None: nobody knows.

    Where rows keep their texts, so that a teacher could read these itself, both have to cut texts alike, too.
    """
    if tokenizer is None or other is None:
        return True, "the tokenizers are not known"
    same, why = loading.same_vocabulary(tokenizer, other)
    if same and task.keeps_texts and vocabulary.probe(tokenizer) != vocabulary.probe(other):
        return False, "they know the same tokens but cut a text otherwise (case, accents or special tokens)"
    return same, why


def check_numbers(rows: Any, count: int) -> None:
    """Raise DataError for labels of prepared rows that are none of `count`."""
    highest = max((int(found.max()) for found in columns.flat(rows, "labels") if len(found)), default=-1)
    if highest >= count:
        raise DataError(
            f"the rows hold label {highest}, the model has labels 0 to {count - 1}",
            "prepare the rows from their texts with this model, or load one with as many labels",
        )


def check_rows(rows: Any, model: nn.Module) -> None:
    """Raise DataError when the rows do not fit the model: token ids or lengths out of range."""
    size, positions = model.get_input_embeddings().num_embeddings, loading.positions_of(model)
    highest = max(int(ids.max()) for ids in columns.flat(rows, "input_ids"))
    longest = int(columns.lengths(rows).max())
    if highest >= size:
        raise DataError(
            f"token id {highest} does not exist: the model knows ids 0 to {size - 1}",
            "prepare the data with the tokenizer of this model",
        )
    if positions and longest > positions:
        raise DataError(
            f"a row has {longest} tokens, the model has {positions} positions",
            "prepare with a smaller max_length",
        )
