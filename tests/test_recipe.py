"""Recipes: they round-trip, the shipped ones load, and every mistake names field, value and what was expected."""

from pathlib import Path

import pytest

from llm_finetuner import recipe_file
from llm_finetuner.chain import stages_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, Tuning, with_method

ROOT = Path(__file__).resolve().parents[1]
FULL = Recipe(
    method="feature_distillation", options={"feature_layers": [[0, 1], 1], "output_weight": 0.5}, student=Model("s"),
    teacher=Teacher("t", load_in_4bit=True), tuning=Tuning("lora", {"r": 4}), train=Train(learning_rate=2e-4),
)  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = recipe_file.load(path)
    for stage in stages_of(recipe) or [recipe]:
        assert stage.terms and stage.data.source and (stage.teacher is not None) >= stage.needs_teacher


def test_round_trip(tmp_path):
    recipe_file.save(FULL, tmp_path / "recipe.yaml")
    assert recipe_file.load(tmp_path / "recipe.yaml") == FULL


def test_overrides(tmp_path):
    words = ["temperature=3", "train.learning_rate=1e-4", "r=8", "data.text_columns=[a, b]", "train.steps=5"]
    changed = recipe_file.override(FULL, words)
    assert changed.options["temperature"] == 3 and changed.train.learning_rate == 1e-4
    assert (
        changed.tuning.options["r"] == 8
        and changed.data.text_columns == ["a", "b"]
        and changed.train.steps == 5
    )
    other = recipe_file.override(
        FULL, ["method=vanilla_distillation", "temperature=4", "tuning.kind=adalora", "init_r=10"]
    )
    assert other.options == {"temperature": 4, "alpha": 0.3} and other.tuning.options["init_r"] == 10


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("alpha=2", "alpha must be a number between 0 and 1, got 2"),
        ("alph=.3", "unknown setting 'alph'"),
        ("temperature=nan", "temperature must be a number between 1 and 10"),
        ("train.stepps=4", "unknown setting 'train.stepps'"),
        ("train.steps=a", "train.steps must be a whole number or null, got 'a'"),
        ("train.batch_size=1.5", "train.batch_size must be a whole number, got 1.5"),
        ("train.precision=fp8", "train.precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ("method=foo", "unknown method 'foo'"),
        ("tuning.kind=lara", "unknown tuning 'lara'"),
        ("data=3", "data must be a section"),
        ("train.steps: 4", "is not key=value"),
        ("train.trackers=[tensorbord]", "unknown tracker 'tensorbord'"),
        ("student.load_in_8bit=2", "student.load_in_8bit must be true or false, got 2"),
        ("options.feature_layers.2=1", "'options.feature_layers.2': 2 is no place in the list"),
        ("options.feature_layers.-1=1", "-1 is no place in the list"),
        ("options.feature_layers.1.x=1", "unknown setting 'options.feature_layers.1.x'"),
        ("stages.0.train.steps=1", "'stages.0': 0 is no place in the list stages"),
    ],
)
def test_mistakes_name_field_value_and_what_was_expected(word, says):
    with pytest.raises(RecipeError) as caught:
        recipe_file.override(FULL, [word])
    assert says in caught.value.what


def test_items_of_lists_go_by_their_place():
    changed = recipe_file.override(FULL, ["options.feature_layers.1=2", "options.feature_layers.0.1=3"])
    assert changed.options["feature_layers"] == [[0, 3], 2]
    few = ROOT / "recipes" / "time_llm_few.yaml"
    words = ["stages.0.train.steps=10", "stages.1.student.shape.num_layers=2", "stages.1.alpha=0.25"]
    plain, short = (stages_of(recipe_file.load(few, given)) for given in ([], words))
    assert [stage.train.steps for stage in plain] == [630, 200]
    assert [stage.train.steps for stage in short] == [10, 200]
    assert [stage.student.shape["num_layers"] for stage in short] == [3, 2]
    assert short[1].student.shape == {**plain[1].student.shape, "num_layers": 2}
    assert [stage.options["alpha"] for stage in short] == [0.5, 0.25]
    named = recipe_file.override(Recipe(stages=["a", {}]), ["stages.0.train.steps=3", "stages.1=b"])
    assert named.stages == [{"student": "a", "train.steps": 3}, "b"]


@pytest.mark.parametrize(
    "word, says",
    [
        ("stages.2.train.steps=10", ("'stages.2': 2 is no place in the list stages", "stages.0 to stages.1")),
        ("stages.train.steps=10", ("'stages.train': train is no place in the list stages", "holds 2")),
    ],
)
def test_a_stage_that_is_not_there_is_told(word, says):
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(ROOT / "recipes" / "time_llm_few.yaml", [word])
    assert says[0] in caught.value.what and says[1] in caught.value.hint
    with pytest.raises(RecipeError, match="stage 1: unknown setting 'train.stepps'"):
        stages_of(recipe_file.load(ROOT / "recipes" / "time_llm_few.yaml", ["stages.0.train.stepps=1"]))


@pytest.mark.parametrize("given", [60.5, 0, True, "60"])
def test_tokens_of_a_pass_are_counted(given):
    with pytest.raises(RecipeError, match="train.max_tokens must be a whole number of at least 1"):
        Train(max_tokens=given)


@pytest.mark.parametrize("options", [{}, {"by": "average"}])
def test_a_teacher_that_nobody_asks_is_told(options):
    given = Teacher("big"), Teacher(kind="cached", options={"path": "answers"})
    for teacher, name in zip(given, ("big", "answers"), strict=True):
        (said,) = Recipe("self_distillation", options, student=Model("s"), teacher=teacher).warnings()
        assert said.startswith(f"the teacher {name} is not used: self_distillation")
    assert not Recipe("self_distillation", options, student=Model("s")).warnings()
    assert not Recipe("self_distillation", options, student=Model("teacher/2"), teacher=given[0]).warnings()


def test_a_file_that_is_no_recipe(tmp_path):
    for text in ("- a list", "method: [", "\x00"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match="recipe.yaml"):
            recipe_file.load(path)
    with pytest.raises(RecipeError, match="cannot read"):
        recipe_file.load(tmp_path / "nothing.yaml")


def test_zero_weights_leave_the_loss():
    assert [t.objective for t in with_method(FULL, "vanilla_distillation", alpha=1).terms] == [
        "cross_entropy"
    ]
    assert [t.objective for t in with_method(FULL, "vanilla_distillation", alpha=0).terms] == ["forward_kl"]
    assert [t.objective for t in with_method(FULL, "feature_distillation").terms] == [
        "cross_entropy",
        "hidden_mse",
    ]
    assert with_method(FULL, "fine_tuning").teacher is None
