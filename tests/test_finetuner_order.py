"""LLMFineTuner: students cut from a teacher, folders that hold another run, and settings that are misspelt."""

import warnings
from dataclasses import replace

import pytest
import torch
from conftest import QUICK

from llm_finetuner.errors import OrderError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Data


def test_a_student_named_as_a_part_waits_for_its_teacher_and_is_cut_from_it(teacher_folder, tmp_path, rows):
    tuner = LLMFineTuner("teacher/2", tmp_path / "run")
    for call in (
        lambda: tuner.load_model(method="vanilla_distillation"),
        lambda: tuner.load_model(),
        lambda: tuner.generate(["a"]),
        lambda: tuner.load_teacher_model([teacher_folder, teacher_folder]),
        lambda: tuner.tokenizer,
    ):
        with pytest.raises(OrderError, match="cut from") as caught:
            call()
        assert caught.value.hint.startswith("call load_teacher_model(")
        assert "load_model(...) or student_from_teacher" in caught.value.hint
    tuner.load_teacher_model(teacher_folder)
    for options in ({"load_in_8bit": True}, {"from_scratch": True}, {"method": "qlora"}):
        with pytest.raises(RecipeError, match="teacher's weights as they are"):
            tuner.load_model(**options)
    tuner.load_model(method="vanilla_distillation")
    other = LLMFineTuner("teacher/2", tmp_path / "other")
    other.load_teacher_model(teacher_folder)
    other.student_from_teacher(2)
    mine, theirs = tuner.model.state_dict(), other.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    cut = {name: value.clone() for name, value in mine.items()}
    assert tuner.recipe.student.name == "teacher/2" and tuner.tokenizer is not None
    assert tuner.train(rows, **QUICK, steps=1).history
    tuner.load_model(method="vanilla_distillation")  # anew, from the same part
    assert all(torch.equal(value, cut[name]) for name, value in tuner.model.state_dict().items())


def test_a_run_of_another_object_is_written_over_with_a_warning_that_names_it(student_folder, tmp_path, rows):
    """The guide prints two scripts with one folder, so it is no error."""
    folder = tmp_path / "run"

    def fresh():
        tuner = LLMFineTuner(student_folder, folder)
        tuner.load_model(adapter="lora")
        return tuner

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = fresh()
        first.train(rows, **QUICK, steps=1)
        first.train(rows, **QUICK, steps=1)
        first.load_model()
        first.train(rows, **QUICK, steps=1)
        fresh().train(rows, **QUICK, steps=1, overwrite=True)
    second = fresh()
    with pytest.warns(UserWarning, match="already holds a run") as caught:
        second.train(rows, **QUICK, steps=1)
    said = next(str(one.message) for one in caught if "holds a run" in str(one.message))
    assert str(folder) in said and "overwrite=True" in said and "resume=True" in said


def test_unknown_settings_of_a_chain_and_of_a_sweep_are_named(finetuner, rows, tmp_path):
    finetuner.load_model()
    with pytest.raises(RecipeError, match="reads the data that the recipe names") as caught:
        finetuner.progressive(["gpt2"], dataset=rows)
    assert "load_dataset_from_source" in caught.value.hint
    finetuner.recipe = replace(finetuner.recipe, data=Data(source="rows.jsonl"))
    for call in (
        lambda: finetuner.progressive(["gpt2"], stps=2),
        lambda: finetuner.sweep({"temperature": [2]}, rows, stps=2),
        lambda: finetuner.train(rows, stps=2),
    ):
        with pytest.raises(RecipeError, match="stps") as caught:
            call()
        assert "did you mean 'train.steps'" in caught.value.hint


def test_learning_on_its_own_texts_draws_them(finetuner, teacher_folder):
    finetuner.load_model(method="on_policy_distillation")
    finetuner.load_teacher_model(teacher_folder)
    with pytest.raises(RecipeError, match="sampling_temperature must be a number above 0"):
        finetuner.setup_on_policy(sampling_temperature=0)
    assert "sampling_temperature that of the writing, above 0" in finetuner.setup_on_policy.__doc__
