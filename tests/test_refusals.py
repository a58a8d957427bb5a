"""Combinations that once trained or saved something else than they said: now right, or refused with the reason."""

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows, save_model
from other_tokenizers import build_other

from llm_finetuner.assembly import Parts
from llm_finetuner.chain import stages_of
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models.loading import load_trained
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.run import with_whole_paths
from llm_finetuner.trainer import fit

IDS = torch.arange(1, 9)[None]


def recipe_of(tmp_path, student, method="vanilla_distillation", teacher=None, tuning="full", **options):
    return Recipe(
        method=method, options=options, student=student, teacher=teacher, tuning=Tuning(tuning),
        output=str(tmp_path / "run"),
        train=Train(steps=2, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2, save_every=0),
    )  # fmt: skip


@pytest.mark.parametrize("scratch", [False, True])
def test_an_adapter_on_a_base_that_no_folder_holds_is_saved_merged(
    tmp_path, teacher_folder, tokenizer, scratch
):
    student = Model(teacher_folder, from_scratch=True) if scratch else Model("teacher/2")
    recipe = recipe_of(tmp_path, student, teacher=Teacher(teacher_folder), tuning="lora")
    result = fit(recipe, Parts(train=prepared_rows(8, len(tokenizer)), tokenizer=tokenizer, device="cpu"))
    loaded = load_trained(recipe.output)
    with torch.no_grad():
        want, got = result.tuned.model.eval()(IDS).logits, loaded.eval()(IDS).logits
    assert torch.allclose(want, got, atol=1e-5)


def test_a_teacher_that_writes_must_have_the_students_tokens(tmp_path, student_folder, tokenizer):
    other = build_other()
    folder = save_model(tmp_path / "other", build_llama(len(other)), other)
    recipe = recipe_of(tmp_path, Model(student_folder), "sequence_distillation", Teacher(folder))
    rows = prepared_rows(8, len(tokenizer))
    with pytest.raises(ModelError, match="different tokenizers"):
        fit(recipe, Parts(train=rows, tokenizer=tokenizer, device="cpu"))
    run = LLMFineTuner(student_folder, tmp_path / "live")
    run.load_model("vanilla_distillation")
    with pytest.raises(ModelError, match="different tokens"):
        run.load_teacher_model(folder)


def test_losses_of_numbers_are_not_for_tokens(tmp_path):
    recipe = recipe_of(tmp_path, Model("s"), "distillation", objectives={"mse": 1.0})
    with pytest.raises(RecipeError, match="the answers here are tokens"):
        fit(recipe, Parts(student=build_gpt2(64), train=prepared_rows(8, 64), device="cpu"))


def test_on_policy_without_a_teacher_is_refused():
    with pytest.raises(RecipeError, match="alpha=1"):
        Recipe(method="on_policy_distillation", options={"alpha": 1})


def test_an_adapter_cannot_be_trained_on_in_a_chain():
    base = Recipe(
        student=Model("a"), tuning=Tuning("lora"), stages=[{"student": "a"}, {"student": "previous"}]
    )
    with pytest.raises(RecipeError, match="stage 2: the stage before trains an adapter"):
        stages_of(base)


def test_the_next_stage_holds_its_teacher_as_the_recipe_says():
    teacher = Teacher("big", dtype="bfloat16", shuffled=True)
    base = Recipe("vanilla_distillation", student=Model("a"), teacher=teacher, stages=["medium", "small"])
    second = stages_of(base)[1].teacher
    assert (second.name, second.dtype, second.shuffled) == (f"{base.output}/stage_1", "bfloat16", True)


def test_a_stage_that_names_its_student_loads_its_weights():
    base = Recipe(
        student=Model("a", from_scratch=True),
        stages=[{}, "b", {"student": "c", "student.from_scratch": True}],
    )
    assert [stage.student.from_scratch for stage in stages_of(base)] == [True, False, True]


def test_the_folder_of_a_cache_is_kept_as_a_whole_path(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(
        "vanilla_distillation", student=Model("a"), teacher=Teacher(kind="cached", options={"path": "cache"})
    )
    assert with_whole_paths(recipe).teacher.options["path"] == str(tmp_path / "cache")


def test_a_cache_of_more_tokens_than_the_student_has(tmp_path, student_folder, teacher_folder, tokenizer):
    rows = prepared_rows(8, 64)
    run = LLMFineTuner(student_folder, tmp_path / "a")
    run.load_model("vanilla_distillation")
    run.load_teacher_model(teacher_folder)
    run.cache_teacher(rows, tmp_path / "cache", k=5)
    recipe = recipe_of(
        tmp_path, Model("s"), teacher=Teacher(kind="cached", options={"path": str(tmp_path / "cache")})
    )
    with pytest.raises(ModelError, match="has answers for"):
        fit(recipe, Parts(student=build_gpt2(64), train=rows, device="cpu"))


def test_rows_that_a_cache_lacks_are_scored_without_it(tmp_path, student_folder, teacher_folder, tokenizer):
    rows, others = prepared_rows(8, 64), prepared_rows(8, 64, seed=1)
    run = LLMFineTuner(student_folder, tmp_path / "a")
    run.load_model("vanilla_distillation")
    run.load_teacher_model(teacher_folder)
    run.cache_teacher(rows, tmp_path / "cache", k=5)
    run.load_teacher_model(cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match="scored without the teacher"):
        assert run.evaluate(others)["kl_to_teacher"] is None
    assert run.evaluate(rows)["kl_to_teacher"] > 0
