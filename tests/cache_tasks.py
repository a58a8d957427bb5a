"""Models, rows and caches of every task beside writing text, for the tests of teachers' answers on disk."""

import functools
from pathlib import Path

import classifiers
import pytest
import test_in_place
import test_seq2seq
from cache_models import CPU
from test_gradients import assert_close

from llm_finetuner.data import label_names
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.cached import answers_in
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.identity import of_answers
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context
from llm_finetuner.teachers.store import Store


def texts(unlabelled=(1, 6)):
    """Texts and pairs of texts, some of them without a label."""
    rows = classifiers.prepared(unlabelled=unlabelled)
    segments = [[0] * 2 + [i % 2] * (len(ids) - 2) for i, ids in enumerate(rows["input_ids"])]
    return label_names.put(rows.add_column("token_type_ids", segments), classifiers.NAMES)


def several():
    """Texts with several labels, or with none."""
    told = [[float((i >> j) & 1) for j in range(3)] for i in range(7)] + [[-100.0] * 3]
    rows = classifiers.prepared().remove_columns("labels").add_column("labels", told)
    return label_names.put(rows, classifiers.NAMES)


def masked():
    return test_seq2seq.prepared(masked=True)


bert = functools.partial(classifiers.build_bert, 32, 3, 1)
CASES = {  # task -> student, teacher, rows
    "classification": (classifiers.build_bert, bert, texts),
    "multi_label_classification": (classifiers.build_bert, bert, several),
    "token_classification": (
        test_in_place.tagger, functools.partial(test_in_place.tagger, 32, 3, 1),
        functools.partial(test_in_place.prepared, 3),
    ),
    "masked_lm": (
        test_in_place.filler, functools.partial(test_in_place.filler, 32, 3, 1),
        functools.partial(test_in_place.prepared, test_in_place.V),
    ),
    "seq2seq_lm": (test_seq2seq.build_t5, functools.partial(test_seq2seq.build_bart, 32, 1, 2, 1), masked),
}  # fmt: skip
tasks = pytest.mark.parametrize("task", CASES)


def made(task):
    """(student, teacher, rows, what a teacher is built for) in float64."""
    build, build_teacher, prepared = CASES[task]
    student, teacher = build().double(), build_teacher().double().eval()
    return student, teacher, prepared(), context_of(task, student)


def context_of(task, student) -> Context:
    return Context(resolve(TASKS, task)(), student, None, CPU, lambda text: None)


def write(teacher, rows, folder, context, **options):
    live = live_teacher(teacher, None, "t", context)
    options = {"vocabulary": context.task.vocabulary(context.student), **options}
    return write_cache(
        live, context.task, rows, folder, about=of_answers("t", teacher, live, context), **options
    )


def read(folder, context):
    return answers_in(Store.open(Path(folder)), context)


def nearly(got, want, record, other, tolerance=1e-6):
    """The gradients, and every figure of the step."""
    assert_close(got, want, tolerance)
    for name in ("loss", "cross_entropy", "forward_kl", "teacher_nll", "agreement"):
        assert record[name] == pytest.approx(other[name], rel=tolerance, abs=1e-9), name
