"""What a student of sequences begins with where nobody says: its teacher's weights where one is loaded."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sequences import BIG, SMALL, arrays

from llm_finetuner import recipe_file
from llm_finetuner.chain import stages_of
from llm_finetuner.cli.app import main
from llm_finetuner.comparison import compare_run, load_untouched
from llm_finetuner.data import signals
from llm_finetuner.errors import RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.s4d import S4DConfig, S4DModel
from llm_finetuner.sweep import sweep
from llm_finetuner.trainer import fit

TASK = "sequence_regression"
SHAPE = {**SMALL, "preset": "tiny"}
PLAN = {
    "steps": 2,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-30,
    "eval_every": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rows")
    x, y = arrays(24)
    np.save(folder / "inputs.npy", x.astype(np.complex64))
    np.save(folder / "targets.npy", y.astype(np.complex64))
    return str(folder)


def recipe(folder, data, teacher="t", **changes):
    settings = {
        "task": TASK, "method": "regression_distillation", "student": {"name": "s4d", "shape": SHAPE},
        "teacher": {"name": teacher} if isinstance(teacher, str) else teacher,
        "tuning": {"kind": "full"}, "data": {"source": data}, "train": PLAN, "output": str(folder),
    }  # fmt: skip
    return recipe_file.from_dict({**settings, **changes})


def distill(data, teacher, shape) -> list[str]:
    """The command, but for its output."""
    words = [f"{name}={value}" for name, value in shape.items()]
    line = ["distill", "--task", TASK, "--data", data, "--student", "s4d", "--teacher", teacher]
    return [*line, "--shape", *words]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> str:
    folder = str(tmp_path_factory.mktemp("runs") / "teacher")
    shape = {"preset": "teacher", **BIG, "delay": 3}
    plain = recipe(folder, data, None, method="fine_tuning", student={"name": "s4d", "shape": shape})
    fit(replace(plain, train=replace(plain.train, learning_rate=1e-2)))
    return folder


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, True),
        ({"student": {"name": "s4d", "init": "seed"}}, False),
        ({"student": {"name": "outputs/run"}}, False),
        ({"teacher": {"name": "t", "kind": "live_cached"}}, True),
        ({"teacher": {"kind": "cached", "options": {"path": "c"}}}, False),
        ({"teacher": {"kind": "ensemble", "options": {"members": ["a", "b"]}}}, False),
        ({"method": "fine_tuning", "teacher": None}, False),
        ({"method": "fine_tuning"}, False),
    ],
)
def test_where_nobody_says(changes, begins):
    assert recipe("o", "d", **changes).inherits is begins


def test_a_run_begins_with_its_teacher_and_its_student_alone_does_not(tmp_path, data, teacher):
    """At a learning rate of 0 the trained student is the one that was begun; it has the teacher's delay."""
    one = recipe(tmp_path / "one", data, teacher)
    said = replace(one, student=replace(one.student, init="teacher"), output=str(tmp_path / "said"))
    seed = replace(
        one,
        student=replace(one.student, init="seed", shape={**SHAPE, "delay": 3}),
        output=str(tmp_path / "seed"),
    )
    made, want, other = (fit(run).tuned.model for run in (one, said, seed))
    assert made.config.delay == 3 and made.config.gate == "off"
    for (name, got), weight in zip(made.named_parameters(), want.parameters(), strict=True):
        assert torch.equal(got, weight), name
    assert not torch.equal(made.read_in.weight, other.read_in.weight)
    train = signals.read(data, one.data.eval_fraction).part("train")
    again = load_untouched(recipe_file.load(f"{one.output}/recipe.yaml"), torch.device("cpu"), train)
    assert torch.equal(again.read_in.weight, made.read_in.weight)


@pytest.mark.parametrize(
    ("order", "cached"), [("teacher first", False), ("student first", False), ("student first", True)]
)
def test_the_facade_begins_so_in_any_order(tmp_path, data, teacher, order, cached):
    tuner = LLMFineTuner("s4d", tmp_path / "facade", task=TASK, shape=SHAPE)
    kept = {"cache": tmp_path / "cache"} if cached else {}
    if order == "student first":
        tuner.load_model("regression_distillation")
        assert tuner.model.config.delay == 0  # nobody to begin with
    tuner.load_teacher_model(teacher, **kept)
    if order == "teacher first":
        tuner.load_model("regression_distillation")
    assert tuner.model.config.delay == 3
    tuner.setup_regression_distillation()
    one = recipe(tmp_path / "recipe", data, teacher)
    share = one.data.eval_fraction  # gates are measured on the rows to train on
    tuner.fit(data, epochs=1, eval_fraction=share, **{k: v for k, v in PLAN.items() if k != "steps"})
    want = fit(one).tuned.model
    for (name, got), weight in zip(tuner.model.named_parameters(), want.named_parameters(), strict=True):
        assert torch.allclose(got, weight[1], rtol=0, atol=1e-20), name


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"num_layers": 6}, "its num_layers is 6 against 3"),
        ({"delay": 4}, "has its delay: the teacher's is 3, the student's 4"),
        ({"gate": "layer"}, "the teacher's gate is 'channel'"),
    ],
)
def test_what_the_teacher_cannot_begin_is_told_before_anything_is_loaded(
    tmp_path, data, teacher, capsys, shape, said
):
    line = distill(data, teacher, {**SHAPE, **shape})
    assert main([*line, "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told and "init=seed" in told and not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="init=seed"):
        fit(recipe(tmp_path / "run", data, teacher, student={"name": "s4d", "shape": {**SHAPE, **shape}}))


def test_stages_begin_with_the_teacher_only_where_they_have_one(tmp_path, data, teacher):
    student = {"name": "s4d", "init": "teacher", "shape": SHAPE}
    plain = {"method": "fine_tuning", "train.steps": 3}
    first, second = stages_of(
        recipe(tmp_path, data, teacher, student=student, stages=[plain, {"student": "previous"}])
    )
    assert not first.inherits and first.student.init == "auto" and not second.inherits
    for both in ({"init": "teacher", "name": "previous"}, {"name": "previous", "init": "teacher"}):
        with pytest.raises(RecipeError, match="init=teacher is for a student s4d"):
            stages_of(recipe(tmp_path, data, teacher, stages=[{"alpha": 1}, {"student": both}]))


def test_the_truth_alone_is_no_plain_fine_tuning_for_a_student_that_is_begun():
    weights = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0}
    assert not recipe("o", "d", options=weights).warnings()
    (said,) = recipe("o", "d", options=weights, student={"name": "s4d", "init": "seed"}).warnings()
    assert "plain fine-tuning" in said


def test_the_student_alone_of_a_command_has_the_delay_and_weights_of_its_own(tmp_path, data, teacher, capsys):
    line = distill(data, teacher, SHAPE)
    assert main([*line, "--output", str(tmp_path / "run"), "--steps", "2", "--json"]) == 0
    roles = {m["role"]: m for m in json.loads(capsys.readouterr().out)["verdict"]["models"]}
    assert roles["baseline_steps"]["parameters"] == roles["distilled"]["parameters"]
    made, alone = (S4DModel.from_pretrained(tmp_path / "run" / name) for name in ("", "baseline_steps"))
    assert made.config.delay == alone.config.delay == 3
    assert not torch.allclose(made.read_in.weight, alone.read_in.weight, atol=0.1)


def test_students_alone_of_further_seeds_are_drawn_anew(tmp_path, data, teacher):
    """At a learning rate of next to nothing: those distilled are one model, those alone are as many as seeds."""
    fit(recipe(tmp_path / "run", data, teacher))
    compare_run(tmp_path / "run", seeds=3)
    pairs = {
        side: [S4DModel.from_pretrained(tmp_path / "run" / first).read_in.weight]
        + [S4DModel.from_pretrained(tmp_path / "run" / f"seed_{n}" / side).read_in.weight for n in (1, 2)]
        for side, first in (("distilled", ""), ("alone", "baseline_steps"))
    }
    assert all(torch.equal(one, pairs["distilled"][0]) for one in pairs["distilled"])
    both = [*pairs["alone"], pairs["distilled"][0]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(both, 2))


def test_weights_from_the_seed_are_other_ones_for_each_seed(tmp_path, data, teacher):
    student = {"name": "s4d", "init": "seed", "shape": {**SHAPE, "delay": 3}}
    fit(recipe(tmp_path / "run", data, teacher, student=student))
    compare_run(tmp_path / "run", seeds=2)
    one, other, alone = (
        S4DModel.from_pretrained(tmp_path / "run" / name).read_in.weight
        for name in ("", "seed_1/distilled", "seed_1/alone")
    )
    assert not torch.equal(one, other) and torch.equal(other, alone)


def test_the_facade_draws_the_student_anew_where_its_teacher_goes(tmp_path, data, teacher):
    """A cache alone begins nobody; a run without the teacher is that of its own recipe."""
    tuner = LLMFineTuner("s4d", tmp_path / "kept", task=TASK, shape=SHAPE)
    tuner.load_teacher_model(teacher)
    tuner.load_model("regression_distillation")
    tuner.cache_teacher(data, tmp_path / "cache")
    tuner.load_teacher_model(cache=tmp_path / "cache")
    assert not tuner.recipe.inherits and tuner.model.config.delay == 0
    tuner = LLMFineTuner("s4d", tmp_path / "plain", task=TASK, shape=SHAPE)
    tuner.load_teacher_model(teacher)
    tuner.load_model("regression_distillation")
    tuner.fit(data, method="standard", epochs=1, **{k: v for k, v in PLAN.items() if k != "steps"})
    want = fit(replace(recipe_file.load(tmp_path / "plain" / "recipe.yaml"), output=str(tmp_path / "again")))
    assert tuner.model.config.delay == 0
    assert torch.allclose(tuner.model.read_in.weight, want.tuned.model.read_in.weight, rtol=0, atol=1e-20)


def test_a_teacher_of_more_outputs_is_taken_in_any_order_and_one_that_is_refused_changes_nothing(
    tmp_path, data
):
    torch.manual_seed(0)
    two = S4DModel(S4DConfig(**{**BIG, "output_dim": 2}, gate="channel")).eval()
    shape = {"preset": "tiny", "model_dim": 4, "state_dim": 8, "num_layers": 2}
    tuner = LLMFineTuner("s4d", tmp_path, task=TASK, shape=shape)
    tuner.load_model("regression_distillation")
    tuner.load_teacher_model(two)
    assert tuner.model.config.output_dim == 2
    small = S4DModel(S4DConfig(**{**SMALL, "model_dim": 2}))
    before = tuner.recipe, tuner.model
    with pytest.raises(RecipeError, match="is no larger, and its model_dim is 4 against 2"):
        tuner.load_teacher_model(small)
    assert (tuner.recipe, tuner.model) == before


def test_a_sweep_begins_as_a_run_does_also_over_teachers(tmp_path, data, teacher):
    tuner = LLMFineTuner("s4d", tmp_path / "facade", task=TASK, shape=SHAPE)
    tuner.load_teacher_model(teacher)
    tuner.load_model("regression_distillation")
    tuner.setup_regression_distillation()
    plan = {"batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-30, "steps": 2}
    tuner.sweep({"gamma": [0.2, 1.0]}, data, **plan)
    one = recipe(tmp_path / "one", data, teacher)
    want = fit(one).tuned.model
    (made, *_) = sorted((tmp_path / "facade").rglob("model.safetensors"))
    got = S4DModel.from_pretrained(made.parent)
    assert torch.allclose(got.layers[0].linear.weight, want.layers[0].linear.weight, rtol=0, atol=1e-20)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    said = sweep(replace(one, output=str(tmp_path / "swept")), {"teacher.name": [teacher, str(other)]})
    assert len(said["trials"]) == 2


def test_the_truth_alone_from_the_teachers_weights_is_held_against_the_student_alone(tmp_path, data, teacher):
    fit(recipe(tmp_path / "run", data, teacher, options={"alpha": 1.0, "beta": 0.0, "gamma": 0.0}))
    said = compare_run(tmp_path / "run")
    roles = [line["role"] for line in said["models"]]
    assert "baseline_steps" in roles and "distilled" in roles and "not used" not in said["sentence"]


def test_chains_at_the_command_line(tmp_path, data, teacher, capsys):
    """Trained on with a teacher of another delay; and from one s4d to a smaller one."""
    student = {"name": "s4d", "shape": {**SHAPE, "delay": 4}}
    on = [
        {"method": "fine_tuning"},
        {"student": "previous", "method": "regression_distillation", "teacher.name": teacher},
    ]
    big = {"name": "s4d", "shape": {"preset": "teacher", **BIG, "delay": 3}}
    down = [
        {"student": big, "method": "fine_tuning"},
        {"student": {"name": "s4d", "shape": SHAPE}, "method": "regression_distillation"},
    ]
    for name, stages in (("on", on), ("down", down)):
        chain = recipe(tmp_path / name, data, None, student=student, stages=stages)
        recipe_file.save(chain, tmp_path / f"{name}.yaml")
        assert main(["run", str(tmp_path / f"{name}.yaml"), "--no-compare"]) == 0, capsys.readouterr().err
    assert S4DModel.from_pretrained(tmp_path / "on" / "stage_2").config.delay == 4
    assert S4DModel.from_pretrained(tmp_path / "down" / "stage_2").config.delay == 3


def test_a_key_that_is_no_text_is_told():
    with pytest.raises(RecipeError, match="unknown option of s4d"):
        recipe_file.change(recipe("o", "d"), [("student", {"name": "s4d", True: 2})])
