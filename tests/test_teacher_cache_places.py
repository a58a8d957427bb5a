"""A teacher that fills a cache, and the disk: weights that changed, places that are none, what an ended run leaves."""

import os

import pytest
from cache_models import CPU, NOTHING, TASK, V, build_teacher, open_cache
from conftest import build_gpt2, prepared_rows
from test_teacher_cache_filling import ROWS, Counting, filler, train

from llm_finetuner.assembly import Parts
from llm_finetuner.cache_job import cache_answers
from llm_finetuner.errors import DataError, RecipeError, TrainingError
from llm_finetuner.models import loading
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.teachers.cached import cached
from llm_finetuner.teachers.filling import Filling, fill
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context


def test_weights_that_changed_under_the_same_name_are_refused(tmp_path, monkeypatch):
    """Of the folder only what the disk tells is noted; where that differs, the weights themselves are compared."""
    rows, folder = prepared_rows(ROWS, V), tmp_path / "teacher"
    build_teacher().float().save_pretrained(folder)
    context = Context(TASK, build_gpt2(V), None, CPU, lambda text: None)

    def named(given=None) -> Filling:
        return fill(Teacher(str(folder)), context, path=str(tmp_path / "c"), k=20, given=given)

    monkeypatch.setattr(loading, "load_tokenizer", lambda name: None)  # the rows came prepared
    train(tmp_path / "a", named(), rows)
    teacher = named()
    train(tmp_path / "b", teacher, rows, epochs=1)
    assert not teacher.about  # it was not loaded
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the same weights, another time
    os.utime(weights, ns=(1, 1))
    teacher = named()
    train(tmp_path / "b", teacher, rows, epochs=1)
    assert teacher.about and teacher.live is None
    changed = build_teacher().float()
    changed.lm_head.weight.data[0, 0] += 1
    changed.save_pretrained(folder)
    for teacher in (named(), named((changed, None))):
        with pytest.raises(DataError, match="weights was"):
            train(tmp_path / "d", teacher, rows, epochs=1)
        with pytest.raises(DataError, match="weights was"):
            teacher.check(rows)  # nor to look at rows
    train(tmp_path / "b", named((build_teacher().float(), None)), rows, epochs=1)


def test_the_answers_of_an_unfinished_epoch_are_kept(tmp_path):
    rows, live = prepared_rows(ROWS, V), Counting(TASK, build_teacher())
    train(tmp_path / "a", filler(tmp_path / "c", live), rows, steps=4)
    assert len(open_cache(tmp_path / "c").store.places) == 16


def test_a_tilde_is_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    context, model = Context(TASK, build_gpt2(V), None, CPU, lambda text: None), build_teacher()
    filling = fill(Teacher("t"), context, path="~/c", k=20, given=(model, None))
    filling.prepare(NOTHING, ())
    filling.check(prepared_rows(4, V))
    assert (tmp_path / "c" / "manifest.json").exists()
    assert cached(Teacher("t"), context, path="~/c").store.folder == tmp_path / "c"


def test_a_place_where_no_cache_can_be(tmp_path):
    rows, live, file = prepared_rows(4, V), Live(TASK, build_teacher()), tmp_path / "file"
    file.write_text("rows of somebody")
    context = Context(TASK, build_gpt2(V), None, CPU, print)
    for path in (file, file / "c"):
        with pytest.raises(RecipeError, match="file is a file"):
            fill(Teacher("t"), context, path=str(path))
        teacher = filler(path, live)
        teacher.prepare(NOTHING, ())
        with pytest.raises(TrainingError, match="cannot write the cache"):
            teacher.check(rows)  # where it became one since
    teacher = filler(tmp_path / "c", live)
    teacher.prepare(NOTHING, ())
    (tmp_path / "c" / ".lock").mkdir(parents=True)
    with pytest.raises(TrainingError, match="cannot write the cache"):
        teacher.check(rows)
    with pytest.raises(RecipeError, match="cannot be looked at"):
        fill(Teacher("t"), context, path="x" * 300)
    assert file.read_text() == "rows of somebody"


@pytest.mark.parametrize("kept", ["x", 3, True, [True], [0.5], [-1]])
def test_blocks_to_keep_are_whole_numbers(tmp_path, kept):
    context = Context(TASK, build_gpt2(V), None, CPU, print)
    with pytest.raises(RecipeError, match="keep_layers must be a list of whole numbers"):
        fill(Teacher("t"), context, path=str(tmp_path / "c"), keep_layers=kept)


def test_a_cache_that_the_command_made_knows_the_files_of_its_teacher(tmp_path, monkeypatch):
    rows, folder = prepared_rows(ROWS, V), tmp_path / "teacher"
    build_teacher().float().save_pretrained(folder)
    monkeypatch.setattr(loading, "load_tokenizer", lambda name: None)  # the rows came prepared
    named, student = Teacher(str(folder)), build_gpt2(V)
    recipe = Recipe(
        method="vanilla_distillation", student=Model("s"), teacher=named, train=Train(batch_size=4)
    )
    for _ in range(2):  # to go on with it, its files are not compared
        cache_answers(recipe, tmp_path / "c", k=20, parts=Parts(student=student, train=rows, device="cpu"))
        os.utime(folder / "model.safetensors", ns=(1, 1))
    cache_answers(recipe, tmp_path / "d", k=20, parts=Parts(student=student, train=rows, device="cpu"))
    context = Context(TASK, student, None, CPU, lambda text: None)
    for path, loaded in (("c", True), ("d", False)):
        teacher = fill(named, context, path=str(tmp_path / path), k=20)
        train(tmp_path / f"run_{path}", teacher, rows, epochs=1)
        assert bool(teacher.about) == loaded
