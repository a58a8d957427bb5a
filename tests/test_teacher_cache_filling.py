"""A teacher that fills a cache as it teaches: live answers first, stored ones and no model from the next epoch on."""

import copy
import gc
import json
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from cache_models import CPU, NOTHING, TASK, V, answers, build_teacher, listed, open_cache
from conftest import build_gpt2, prepared_rows

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.output import Want
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.filling import Filling, fill
from llm_finetuner.teachers.identity import fingerprint
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.trainer import fit

ROWS = 24


class Counting(Live):
    """A live teacher that counts the rows it is asked about."""

    asked = 0

    def __call__(self, batch, want):
        self.asked += len(batch["input_ids"])
        return super().__call__(batch, want)


def never():
    raise AssertionError("the model was loaded")


def filler(folder, live=None, notes=None, k=20, mode="top_k", layers=(), rank=0, name="t") -> Filling:
    """live: the model's provider; None where it must not be loaded."""
    note = (lambda text: None) if notes is None else notes.append
    context = Context(TASK, build_gpt2(V), None, CPU, note, rank=rank)

    def load():
        return live, {"teacher": name, "weights": fingerprint(live.model)}

    return Filling(Path(folder), name, load if live is not None else never, context, (mode, k, layers), {})


def train(folder, teacher, rows, method="vanilla_distillation", resume=False, on_event=None, **plan):
    """The loss of every step of two epochs, and the parts that were trained."""
    settings = {
        "epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "precision": "fp32",
        "save_every": 0, "keep_best": False, **plan,
    }  # fmt: skip
    recipe = Recipe(
        method=method, student=Model("s"), teacher=Teacher("t"), train=Train(**settings), output=str(folder)
    )
    parts = Parts(student=build_gpt2(V), teacher=teacher, train=rows, device="cpu")
    result = fit(recipe, parts, resume=resume, on_event=on_event)
    return [record["loss"] for record in result.history]


class Switched(Provider):
    """Live for an epoch, then stored: what a filling teacher has to be equal to."""

    def __init__(self, live, folder):
        self.live, self.folder, self.now = live, folder, live
        self.columns, self.width, self.depth = V, live.width, live.depth

    def __call__(self, batch, want):
        return self.now(batch, want)

    def follow(self, epoch_ends=False):
        self.now = open_cache(self.folder) if epoch_ends else self.now


def test_the_first_epoch_is_live_and_the_second_is_cached(tmp_path):
    rows, live, notes = prepared_rows(ROWS, V), Counting(TASK, build_teacher()), []
    got = train(tmp_path / "a", filler(tmp_path / "c", live, notes), rows)
    assert live.asked == 2 * ROWS  # the fit, and an epoch
    always = train(tmp_path / "b", Live(TASK, build_teacher()), rows)
    assert got[:6] == always[:6] and len(got) == 12
    assert got == train(tmp_path / "d", Switched(Live(TASK, build_teacher()), tmp_path / "c"), rows)
    assert got[6:] != always[6:] and got[6:] == pytest.approx(always[6:], rel=0.05)
    (said,) = [text for text in notes if "mean error" in text]
    measured = json.loads((tmp_path / "c" / "manifest.json").read_text())["measured"]
    assert f"{measured['mean_kl']:.5f} nats" in said and f"{measured['bytes_per_token']} bytes" in said
    assert measured["rows"] == ROWS and 0 < measured["mean_kl"] < 0.05 and 0.5 < measured["top_mass"] < 1
    again = train(tmp_path / "e", filler(tmp_path / "c"), rows)  # not loaded at all
    assert again == train(tmp_path / "f", open_cache(tmp_path / "c"), rows)


@pytest.mark.parametrize("way", [{"mode": "fp32"}, {"k": V}])
def test_exact_answers_are_those_of_the_live_teacher(tmp_path, way):
    rows, live = prepared_rows(ROWS, V), Live(TASK, build_teacher())
    got = train(tmp_path / "a", filler(tmp_path / "c", live, **way), rows)
    assert got == pytest.approx(train(tmp_path / "b", live, rows), rel=1e-5)


@pytest.mark.parametrize(
    "plan",
    [{"batch_size": 3}, {"packing": True}, {"max_tokens": 30, "packing": True}, {"seed": 5}],
    ids=str,
)
def test_other_batches_find_what_was_stored(tmp_path, plan):
    rows = prepared_rows(ROWS, V)
    train(tmp_path / "a", filler(tmp_path / "c", Live(TASK, build_teacher())), rows, epochs=1, packing=True)
    train(tmp_path / "b", filler(tmp_path / "c"), rows, **plan)


def test_what_it_leaves_is_an_ordinary_cache(tmp_path):
    rows, live = prepared_rows(ROWS, V), Counting(TASK, build_teacher())
    train(tmp_path / "a", filler(tmp_path / "c", live), rows, epochs=1)
    about = {"teacher": "t", "weights": fingerprint(live.model)}
    live.asked, said = 0, {"vocabulary": V, "about": about, "k": 20}
    write_cache(live, TASK, rows, tmp_path / "d", **said)
    live.asked = 0
    assert write_cache(live, TASK, rows, tmp_path / "c", **said)["rows"] == ROWS
    assert live.asked == ROWS  # the error is measured on them, and no row is asked for
    stored, written = open_cache(tmp_path / "c"), open_cache(tmp_path / "d")
    for (ours, _), (theirs, _) in zip(
        answers(stored, listed(rows)), answers(written, listed(rows)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_rows_that_are_stored_are_not_asked_for_and_mixed_batches_are_live(tmp_path):
    data, live = prepared_rows(12, V), Counting(TASK, build_teacher())
    rows = listed(data)
    about = {"teacher": "t", "weights": fingerprint(live.model)}
    write_cache(live, TASK, rows[:6], tmp_path / "c", vocabulary=V, about=about, k=20)
    teacher, stored = filler(tmp_path / "c", live), open_cache(tmp_path / "c")
    teacher.prepare(NOTHING, ())
    teacher.check(data)
    live.asked = 0
    first = answers(teacher, rows)
    assert live.asked == 8  # rows 4 to 7 are a batch of both
    for number, source in ((0, stored), (4, live), (8, live)):
        want = answers(source, rows[number : number + 4])
        for (got, _), (told, _) in zip(first[number : number + 4], want, strict=True):
            assert torch.equal(got, told)
    teacher.follow(epoch_ends=True)
    live.asked = 0
    for (got, _), (told, _) in zip(
        answers(teacher, rows), answers(open_cache(tmp_path / "c"), rows), strict=True
    ):
        assert torch.equal(got, told)
    assert live.asked == 0 and teacher.cache.store.tokens == sum(len(said) for said, _ in first)


def test_the_model_leaves_memory(tmp_path):
    rows, model = prepared_rows(ROWS, V), build_teacher()
    alive = weakref.ref(model)
    made = [Live(TASK, model)]
    del model
    context = Context(TASK, build_gpt2(V), None, CPU, lambda text: None)
    teacher = Filling(tmp_path / "c", "t", lambda: (made.pop(), {}), context, ("top_k", 20, ()))
    assert alive() is not None
    train(tmp_path / "a", teacher, rows)
    gc.collect()
    assert alive() is None


def test_hidden_states_are_kept_or_the_model_stays(tmp_path):
    rows, notes = prepared_rows(ROWS, V), []
    options = {"method": "feature_distillation"}
    kept = Counting(TASK, build_teacher())
    first = train(tmp_path / "a", filler(tmp_path / "c", kept, notes, layers=(0, 2)), rows, **options)
    assert kept.asked == 2 * ROWS and not any("stays" in text for text in notes)
    live = train(tmp_path / "b", Live(TASK, build_teacher()), rows, **options)
    assert first[:6] == live[:6] and first[6:] == pytest.approx(live[6:], rel=1e-2)
    stays = Counting(TASK, build_teacher())
    got = train(tmp_path / "d", filler(tmp_path / "e", stays, notes), rows, **options)
    assert got == live and stays.asked == 3 * ROWS
    assert any("keep_layers=[0, 2]" in text for text in notes)
    open_cache(tmp_path / "e").check(rows)


def test_two_processes_fill_one_folder(tmp_path):
    data = prepared_rows(ROWS, V)
    rows = listed(data)
    teachers = [filler(tmp_path / "c", Counting(TASK, build_teacher()), rank=rank) for rank in (0, 1)]
    for teacher in teachers:
        teacher.prepare(NOTHING, ())
        teacher.check(data)
    assert teachers[1].live.asked == 0  # the first one fitted
    counters = [teacher.live for teacher in teachers]
    for rank, teacher in enumerate(teachers):  # both see the row in the middle
        answers(teacher, rows[:13] if rank == 0 else rows[12:])
    for teacher in teachers:
        teacher.follow(epoch_ends=True)
    for live in counters:
        live.asked = 0
    stored = answers(open_cache(tmp_path / "c"), rows)
    for teacher in teachers:
        for (got, _), (told, _) in zip(answers(teacher, rows), stored, strict=True):
            assert torch.equal(got, told)
        assert teacher.live is None
    assert [live.asked for live in counters] == [0, 0]
    assert teachers[0].cache.store.tokens == sum(len(said) for said, _ in stored)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_teacher_cache_filling import *
def kill(kind, record):
    if kind == "step" and record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
teacher = filler({cache!r}, Live(TASK, build_teacher()))
train({run!r}, teacher, prepared_rows(ROWS, V), save_every=2, on_event=kill)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    rows = prepared_rows(ROWS, V)
    whole = train(tmp_path / "a", filler(tmp_path / "c", Live(TASK, build_teacher())), rows, save_every=2)
    code = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path / "d"), run=str(tmp_path / "b"))
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(open_cache(tmp_path / "d").store.places) == 16  # of 4 steps, the last checkpoint
    teacher = filler(tmp_path / "d", Counting(TASK, build_teacher()))
    assert train(tmp_path / "b", teacher, rows, save_every=2, resume=True) == whole
    ours, theirs = (answers(open_cache(tmp_path / name), listed(rows)) for name in "dc")
    for (got, _), (told, _) in zip(ours, theirs, strict=True):
        assert torch.equal(got, told)


def test_a_run_begun_anew_uses_what_is_whole(tmp_path):
    data, live = prepared_rows(ROWS, V), Counting(TASK, build_teacher())
    rows = listed(data)
    teacher = filler(tmp_path / "c", live)
    teacher.prepare(NOTHING, ())
    teacher.check(data)
    answers(teacher, rows[:8])
    teacher.state()
    answers(teacher, rows[8:16])  # held back, and lost
    live.asked = 0
    train(tmp_path / "a", filler(tmp_path / "c", live), data, batch_size=1)
    assert live.asked == ROWS - 8


def test_what_does_not_fit_is_refused(tmp_path):
    rows, live = prepared_rows(ROWS, V), Live(TASK, build_teacher())
    train(tmp_path / "a", filler(tmp_path / "c", live), rows, epochs=1)
    with pytest.raises(DataError, match="k was 20, is 10"):
        filler(tmp_path / "c", live, k=10).check(rows)
    other = copy.deepcopy(live.model)
    other.lm_head.weight.data[0, 0] += 1
    with pytest.raises(DataError, match="weights was"):
        train(tmp_path / "b", filler(tmp_path / "c", Live(TASK, other), name="u"), rows)
    train(tmp_path / "b", filler(tmp_path / "c", live, name="u"), rows, epochs=1)  # the same, elsewhere
    context = Context(TASK, build_gpt2(V), None, CPU, print)
    with pytest.raises(RecipeError, match="needs its folder"):
        fill(Teacher("t"), context, path="")
    with pytest.raises(RecipeError, match="top_k, fp16, fp32"):
        fill(Teacher("t"), context, path="x", mode="sampled")


def test_rows_of_somebody_else_are_answered_and_not_kept(tmp_path):
    rows, data = prepared_rows(ROWS, V), prepared_rows(4, V, seed=3)
    others = listed(data)
    live = Live(TASK, build_teacher())
    teacher = filler(tmp_path / "c", live)
    train(tmp_path / "a", teacher, rows, epochs=1)
    assert teacher.live is None
    teacher.check(data)
    for (got, _), (told, _) in zip(
        answers(teacher, others, Want()), answers(live, others, Want()), strict=True
    ):
        assert torch.equal(got, told)
    teacher.follow(epoch_ends=True)
    assert len(teacher.cache.store.places) == ROWS


def test_it_is_a_kind_of_teacher_and_an_argument(tmp_path, student_folder, teacher_folder, data_file):
    """By name in a recipe, by name and cache in Python, and the words of the command."""
    from finetune_cli import LLMFineTuner
    from llm_finetuner.cli.settings import build, paths_in
    from llm_finetuner.recipe import Data

    told = paths_in(
        {"--teacher": [teacher_folder], "--cache": str(tmp_path / "c"), "--teacher-k": "30"}, True
    )
    spec = build("vanilla_distillation", told).teacher
    assert (spec.kind, spec.name, spec.options["k"]) == ("live_cached", teacher_folder, 30)
    assert build("vanilla_distillation", paths_in({"--cache": "c"}, True)).teacher.kind == "cached"
    recipe = Recipe(
        "vanilla_distillation", student=Model(student_folder), teacher=spec, data=Data(data_file, max_length=48),
        train=Train(epochs=2, batch_size=8, save_every=0, keep_best=False), output=str(tmp_path / "a"),
    )  # fmt: skip
    notes = []
    fit(recipe, on_event=lambda kind, record: notes.append(record.get("text")))
    assert any(text and "leaves memory" in text for text in notes)
    about = json.loads((tmp_path / "c" / "manifest.json").read_text())["about"]
    assert about["teacher"] == teacher_folder and {"weights", "tokenizer", "max_length"} <= about.keys()
    finetuner = LLMFineTuner(student_folder, str(tmp_path / "b"))
    finetuner.load_model("vanilla_distillation")
    finetuner.load_teacher_model(teacher_folder, cache=tmp_path / "d")
    rows = finetuner.load_dataset_from_source(data_file)
    finetuner.train(rows, num_epochs=2, batch_size=8)
    assert finetuner.recipe.teacher.kind == "live_cached"
    assert finetuner.evaluate(rows)["agreement"] > 0
    finetuner.load_teacher_model(build_gpt2(len(finetuner.tokenizer)), cache=tmp_path / "e")
    finetuner.train(rows, num_epochs=1, batch_size=8)
    assert json.loads((tmp_path / "e" / "manifest.json").read_text())["shards"]
