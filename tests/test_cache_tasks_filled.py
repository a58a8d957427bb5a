"""Teachers' answers on disk for tasks beside writing text: what fits, and folders that a run fills, killed or not."""

import copy
import functools

import classifiers
import datasets
import pytest
import test_in_place
from cache_models import listed
from cache_tasks import context_of, made, nearly, read, tasks, write
from label_tokenizers import bert
from step_reference import assert_resumes
from task_steps import gradient_of_step

from llm_finetuner.assembly import Parts
from llm_finetuner.data import label_names
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.models import labels
from llm_finetuner.output import Want
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.filling import fill
from llm_finetuner.teachers.identity import keys_of_rows
from llm_finetuner.teachers.store import Store
from llm_finetuner.trainer import fit

# ---- what does not fit


def test_labels_of_another_order_are_read_by_name(tmp_path):
    student, teacher, rows, context = made("classification")
    write(teacher, rows, tmp_path / "c", context)
    turned = copy.deepcopy(student)
    labels.rename(turned, classifiers.NAMES[::-1], 0)
    backwards = [[-100 if row["labels"] == [-100] else 2 - row["labels"][0]] for row in listed(rows)]
    renamed = rows.remove_columns("labels").add_column("labels", backwards)
    renamed = label_names.put(renamed, classifiers.NAMES[::-1])
    step = functools.partial(
        gradient_of_step, "classification", tmp_path, turned, rows=renamed, method="vanilla_distillation"
    )
    want, told = step(teacher=copy.deepcopy(teacher))
    got, record = step(teacher=read(tmp_path / "c", context_of("classification", turned)))
    nearly(got, want, record, told)
    other = classifiers.build_bert(names=["cat", "dog", "rabbit"])
    with pytest.raises(ModelError, match="other labels: cat, dog, rabbit against bad, fine, good"):
        read(tmp_path / "c", context_of("classification", other))
    unnamed = classifiers.build_bert(names=["LABEL_0", "LABEL_1"])
    read(tmp_path / "c", context_of("classification", unnamed))
    assert labels.names_of(unnamed) == classifiers.NAMES
    with pytest.raises(DataError, match="labels was .*bad.*, is .*good"):
        write(teacher, renamed, tmp_path / "c", context_of("classification", turned))


def test_a_cache_of_something_else_is_refused(tmp_path):
    _, teacher, rows, context = made("classification")
    write(teacher, rows, tmp_path / "c", context)
    student = classifiers.build_bert()
    with pytest.raises(DataError, match="made for one label a text, and this run is not"):
        read(tmp_path / "c", context_of("multi_label_classification", student))
    with pytest.raises(
        DataError, match="for another task: SequenceClassification, and this run is for MaskedLM"
    ):
        read(tmp_path / "c", context_of("masked_lm", test_in_place.filler()))
    _, teacher, several_rows, context = made("multi_label_classification")
    write(teacher, several_rows, tmp_path / "d", context)
    with pytest.raises(DataError, match="made for several labels a text, and this run is not"):
        read(tmp_path / "d", context_of("classification", student))


@tasks
def test_a_row_that_is_not_there_is_told_of_with_what_differs(tmp_path, task):
    _, teacher, rows, context = made(task)
    context.about = {"max_length": 64}
    write(teacher, rows.select(range(6)), tmp_path / "c", context)
    context.about = {"max_length": 128}
    cache = read(tmp_path / "c", context)
    cache.check(rows.select(range(6)))
    with pytest.raises(
        DataError, match=r"2 of 8 rows are not in the cache .*row 6: max_length was 64, is 128"
    ):
        cache.check(rows)
    with pytest.raises(DataError, match="row 1 of a batch is not in the cache: max_length was 64"):
        cache(context.task.collate([listed(rows)[i] for i in (0, 7)]), Want())


# ---- filled while training


def filler(folder, context, teacher, **options):
    """A teacher that fills a folder; None for one that must not be loaded."""
    spec = Teacher("t", kind="live_cached")
    return fill(spec, context, path=str(folder), given=(teacher, None) if teacher else None, **options)


@pytest.mark.parametrize(
    ("task", "kept"),
    [("classification", {}), ("masked_lm", {"k": 4}), ("seq2seq_lm", {"k": 4, "keep_layers": [1]})],
)
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path, task, kept):
    """The first epoch is live and writes, the second is read: where the cut run's answers come from is the same."""
    began = []

    def parts():
        student, teacher, rows, context = made(task)
        began.append(tmp_path / ("c" if not began else "d"))
        return Parts(
            student=student, teacher=filler(began[-1], context, teacher, **kept), train=rows, device="cpu"
        )

    settings = {"batch_size": 2, "gradient_accumulation_steps": 1, "precision": "fp32", "keep_best": False}
    objectives = {"forward_kl": 1.0, **({"cka": {"layers": [[1, 1]]}} if "keep_layers" in kept else {})}
    recipe = Recipe(
        task=task, method="distillation", options={"objectives": objectives}, student=Model("s"),
        teacher=Teacher("t"), train=Train(**settings),
    )  # fmt: skip
    assert_resumes(tmp_path, recipe, parts)
    assert began == [tmp_path / "c", tmp_path / "d", tmp_path / "d"]
    stores = [Store.open(folder) for folder in (tmp_path / "c", tmp_path / "d")]
    assert stores[0].places.keys() == stores[1].places.keys() and len(stores[0].places) == 8


@tasks
def test_the_second_epoch_asks_no_teacher(tmp_path, task):
    student, teacher, rows, context = made(task)
    notes, asked = [], []
    context.note = notes.append
    filling = filler(tmp_path / "c", context, teacher, mode="fp32")
    live = filling.live.task.run
    filling.live.task.run = lambda model, batch, want: asked.append(batch) or live(model, batch, want)
    recipe = Recipe(
        task=task, method="vanilla_distillation", student=Model("s"), teacher=Teacher("t"), output=str(tmp_path / "r"),
        train=Train(
            epochs=3, batch_size=2, gradient_accumulation_steps=1, precision="fp32", save_every=0, keep_best=False
        ),
    )  # fmt: skip
    parts = Parts(student=student, teacher=filling, train=rows, device="cpu")
    history = fit(recipe, parts).history
    assert len(history) == 12 and len(asked) == 4  # batches of the first epoch
    assert filling.live is None and any("leaves memory" in note for note in notes)
    parts = Parts(student=made(task)[0], teacher=read(tmp_path / "c", context), train=rows, device="cpu")
    stored = fit(recipe, parts).history
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in stored], rel=1e-5)


def test_hidden_tokens_are_the_same_each_time(tmp_path):
    """So that answers to them can be kept."""
    rows = datasets.Dataset.from_list([{"text": "the cat sees the dog . play"}] * 4)
    task = resolve(TASKS, "masked_lm")()
    twice = [list(keys_of_rows(task, task.prepare_rows(rows, bert(), Data(), None).dataset)) for _ in "ab"]
    assert twice[0] == twice[1]
