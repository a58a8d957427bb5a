"""The shuffled control: every position hears the answer to another one, or the recipe is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from step_reference import recipe_of, step_of

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.output import Want
from llm_finetuner.recipe import Teacher
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.trainer import fit

V = 64
TASK = CausalLM()


@pytest.fixture
def student():
    return build_gpt2(V).double()


@pytest.fixture
def members():
    return [build_gpt2(V, width=24, seed=5).double(), build_gpt2(V, width=32, layers=3, seed=6).double()]


def ensemble(models) -> Ensemble:
    return Ensemble([Live(TASK, copy.deepcopy(model)) for model in models])


def test_every_position_hears_the_answer_to_another(members):
    batch = TASK.collate(prepared_rows(4, V).to_list())
    want = Want(layers=(1,), attention=(0,), states=(1,), embeddings=True)
    teacher = Live(TASK, members[0])
    control = Shuffled(teacher)
    control.prepare(want, ())
    told, said = teacher(batch, want), control(batch, want)
    half = len(told.targets) // 2
    assert half > 5
    for got, other in (
        (said.head(said.rows), told.head(told.rows)), (said.features[1], told.features[1]),
        (said.attention[0], told.attention[0]), (said.states[1]["key"], told.states[1]["key"]),
        (said.embeddings, told.embeddings),
    ):  # fmt: skip
        # a matrix product rounds by where a row stands in it
        assert torch.allclose(got, torch.cat([other[-half:], other[:-half]]), rtol=0, atol=1e-12)
    assert torch.equal(said.targets, told.targets)


@pytest.mark.parametrize("method", ["vanilla_distillation", "feature_distillation"])
def test_the_control_teaches_something_else(tmp_path, student, method):
    rows, teacher = prepared_rows(8, V), build_llama(V).double()
    extra = {"feature_loss": "attention_kl"} if method == "feature_distillation" else {}
    got, control = (
        step_of(tmp_path, student, teacher, rows, method, spec=Teacher("t", shuffled=shuffled), **extra)
        for shuffled in (False, True)
    )
    scale = max(g.abs().max() for g in got[0].values())
    assert max((got[0][name] - control[0][name]).abs().max() for name in got[0]) > 0.05 * scale
    assert got[2]["cross_entropy"] == pytest.approx(control[2]["cross_entropy"], rel=1e-12)


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        ("sequence_distillation", {"shuffled": True}),
        ("online_distillation", {"shuffled": True}),
        ("online_distillation", {"kind": "ensemble", "options": {"members": ["a", {"name": "b", "shuffled": True}]}}),
        ("self_distillation", {"shuffled": True}),
    ],
)  # fmt: skip
def test_a_control_without_effect_is_refused(tmp_path, student, members, method, spec):
    recipe = recipe_of(tmp_path, method, {}, teacher=Teacher(**spec))
    for parts in (Parts(student=student), Parts(student=student, teacher=members[0], peers=members[:1])):
        with pytest.raises(RecipeError, match=f"teacher.shuffled has no effect with {method}"):
            fit(recipe, replace(parts, train=prepared_rows(8, V), device="cpu"))


def test_members_given_as_objects_are_not_shuffled_one_by_one(tmp_path, student, members):
    spec = Teacher(kind="ensemble", options={"members": ["a", {"name": "b", "shuffled": True}]})
    with pytest.raises(RecipeError, match="given as objects"):
        step_of(tmp_path, student, ensemble(members), prepared_rows(8, V), "vanilla_distillation", spec=spec)


def test_the_control_of_the_moving_average(tmp_path, student):
    recipe = recipe_of(tmp_path, "self_distillation", {"by": "average"}, teacher=Teacher(shuffled=True))
    plain, control = (
        fit(
            replace(recipe, teacher=teacher, output=str(tmp_path / name)),
            Parts(student=copy.deepcopy(student), train=prepared_rows(8, V), device="cpu"),
        ).history[0]
        for name, teacher in (("plain", None), ("control", recipe.teacher))
    )
    assert plain["forward_kl"] == pytest.approx(0, abs=1e-12) and control["forward_kl"] > 0.01


@pytest.mark.parametrize("several", [False, True])
def test_the_control_of_live_models_in_the_facade(tmp_path, members, several):
    """load_teacher_model takes models as objects; the recipe's setting reaches them."""
    rows, told = prepared_rows(8, V), []
    taken = [copy.deepcopy(model).float() for model in members][: 2 if several else 1]
    for shuffled in (False, True):
        run = LLMFineTuner(build_gpt2(V), tmp_path / str(shuffled), device="cpu")
        run.load_model("vanilla_distillation")
        run.load_teacher_model(taken if several else taken[0])
        run.recipe = replace(run.recipe, teacher=replace(run.recipe.teacher, shuffled=shuffled))
        told.append(run.train(rows, batch_size=8, steps=1).history[0]["forward_kl"])
    recipe = replace(run.recipe, teacher=Teacher("t"), output=str(tmp_path / "control"))
    parts = Parts(student=build_gpt2(V), teacher=Shuffled(ensemble(taken)), train=rows, device="cpu")
    assert told[1] == pytest.approx(fit(recipe, parts).history[0]["forward_kl"], rel=1e-6)
    assert told[1] != pytest.approx(told[0], rel=1e-3)
