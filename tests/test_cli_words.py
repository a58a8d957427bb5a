"""Recipes as words and back, over the whole registry: every option of every method, tuning, teacher and objective."""

import json
from dataclasses import replace

import pytest
from test_cli_app import recipe_of

from llm_finetuner.cli.settings import Setting, options_in, settings
from llm_finetuner.cli.typed import read_objectives, spell_objectives
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import NAMED
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Tuning
from llm_finetuner.recipe_file import from_dict, override
from llm_finetuner.registry import METHODS, OBJECTIVES, TEACHERS, TUNINGS, options_of, resolve

OTHERS = {  # values that no rule below can guess
    "options.objectives": {
        "jsd": {"weight": "1..0:cosine", "beta": 0.1, "layers": [[0, 1]]},
        "cross_entropy": 1,
    },
    "options.beta": "auto",
    "options.exits": [0, 2],
    "options.decay": 0.5,
    "options.feature_layers": "first-last",
    "options.layers": [[0, 1], [2, 3]],
    "options.temperature": "4..1:cosine",
    "teacher.options.members": ["a", "b c"],
    "teacher.options.weights": [0.25, 0.75],
    "teacher.options.decay": 0.5,
    "teacher.options.keep_layers": [1, 3],
    "tuning.options.target_modules": ["q_proj", "v_proj"],
    "tuning.options.target_r": 2,
    "tuning.options.init_r": 20,
}


OF_METHOD = {("regression_distillation", "beta"): 0.7}  # where another method takes a word


def another(setting: Setting):
    """A legal value that is not the default."""
    if setting.path in OTHERS:
        return OTHERS[setting.path]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if isinstance(setting.default, bool):
        return not setting.default
    if isinstance(setting.default, int):
        return setting.default + 1
    return setting.default / 2 + 0.1 if isinstance(setting.default, float) else "some/thing"


def there_and_back(recipe: Recipe) -> None:
    words = words_of(recipe)
    assert recipe_of(words) == recipe, words


def recipe_with(method: str = "vanilla_distillation", **fields) -> Recipe:
    taught = method not in ("fine_tuning", "self_distillation")
    given = {"teacher": Teacher("t")} if taught else {}
    return Recipe(method=method, student=Model("s"), data=Data("d"), **{**given, **fields})


def options(table: dict, prefix: str) -> list:
    return [
        pytest.param(s, id=f"{s.owner}-{s.name}") for name in table for s in options_in(table, name, prefix)
    ]


@pytest.mark.parametrize("setting", options(METHODS, "options"))
def test_options_of_methods(setting):
    by = {"by": "average"} if setting.path == "options.decay" else {}
    value = OF_METHOD.get((setting.owner, setting.name)) or another(setting)
    there_and_back(recipe_with(setting.owner, options={**by, setting.name: value}))


@pytest.mark.parametrize("setting", options(TUNINGS, "tuning.options"))
def test_options_of_tunings(setting):
    there_and_back(recipe_with(tuning=Tuning(setting.owner, {setting.name: another(setting)})))


@pytest.mark.parametrize("setting", options(TEACHERS, "teacher.options"))
def test_options_of_teachers(setting):
    needed = {"ensemble": {"members": ["a", "b"]}}.get(setting.owner, {})
    spec = Teacher(
        "" if needed else "t", kind=setting.owner, options={**needed, setting.name: another(setting)}
    )
    there_and_back(recipe_with(teacher=spec))


@pytest.mark.parametrize("setting", [pytest.param(s, id=s.path) for s in settings(True) if not s.owner])
def test_fields(setting):
    if setting.path in ("teacher.kind", "tuning.kind"):
        return  # above, with their options
    value = {"data.only": {"subject": "high school", "level": 3}}.get(setting.path)
    if value is None:
        lists = {
            "train.trackers": ["wandb"], "data.text_columns": ["a", "b"], "train.learning_rate": 1e-5,
            "data.label_names": ["bad", "very good"], "data.class_weights": "balanced",
            "student.shape": {"num_layers": 2}, "teacher.shape": {"backbone": "gpt2", "dropout": 0.5},
        }  # fmt: skip
        value = lists.get(setting.path) or ("x" if setting.default is None else another(setting))
        if setting.default is None and int in setting.kinds:
            value = 7
    base = recipe_with().to_dict()
    node = base
    *sections, name = setting.path.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    if setting.path == "student.init":  # of a student that is built here
        base["student"]["name"] = "s4d"
    there_and_back(from_dict(base))


@pytest.mark.parametrize(
    "weights", [{"bad": 2.5, "very good": 1}, {"a=b": 2}, {"0": 1, "1": 3}, {"a,b": 2}, {"": 1.5}, {"-x": 1}]
)
def test_weights_of_labels(weights):
    there_and_back(replace(recipe_with(), data=Data("d", class_weights=weights)))


@pytest.mark.parametrize("kind", TEACHERS)
def test_kinds_of_teachers(kind):
    there_and_back(
        recipe_with(teacher=Teacher("t", kind=kind, options={"members": ["x"]} if kind == "ensemble" else {}))
    )


@pytest.mark.parametrize(
    "members", [["a", {"name": "b", "load_in_4bit": True}], ["a"], ["a,b", "c"], ["-a", "b"]]
)
def test_members_that_are_no_plain_words(members):
    spec = Teacher(kind="ensemble", options={"members": members, "weights": [1.0] * len(members)})
    there_and_back(recipe_with(teacher=spec))


def test_the_tokens_of_an_objective():
    given = {"hidden_normalized": {"weight": 0.5, "layers": "skip", "tokens": "first"}}
    given["distance"] = {"weight": 0.5, "layers": "pooled"}
    recipe = recipe_with("distillation", options={"objectives": given})
    assert "tokens=first" in " ".join(words_of(recipe)) and "layers=pooled" in " ".join(words_of(recipe))
    there_and_back(recipe)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("layers", [None, *NAMED, [0, 3], [[0, 1], [3, 7]]])
def test_objectives(name, layers):
    own = {key: value for key, value in options_of(resolve(OBJECTIVES, name)).items() if value is not None}
    given = {"cross_entropy_2": 0.25, name: {"weight": 0.5, **own, **({"layers": layers} if layers else {})}}
    recipe = recipe_with("distillation", options={"objectives": given})
    words = words_of(recipe)
    assert "--set" not in words or given[name] == {"weight": 0.5}, words
    assert recipe_of(words) == recipe
    assignment = f"objectives={json.dumps(given)}"
    assert override(recipe_with("distillation"), [assignment]) == recipe


@pytest.mark.parametrize(
    "given", [{"jsd": {"beta": 0.1}}, {"jsd": {"weight": 1}}, {"jsd": {"weight": 1, "layers": None}}]
)
def test_objectives_that_cannot_be_typed_are_set(given):
    there_and_back(recipe_with("distillation", options={"objectives": given}))


def test_objectives_as_typed():
    typed = "cross_entropy=0.3, reverse_kl=0.7..0:cosine:temperature=4..1:cosine:layers=0:1,3:7 jsd"
    found = read_objectives([typed])
    assert found == {
        "cross_entropy": 0.3,
        "reverse_kl": {"weight": "0.7..0:cosine", "temperature": "4..1:cosine", "layers": [[0, 1], [3, 7]]},
        "jsd": 1.0,
    }
    assert read_objectives(spell_objectives(found)) == found


@pytest.mark.parametrize(
    "typed", ["", "=1", "jsd=x", "jsd=1 jsd=2", "jsd=1..x", "jsd=true", "jsd=1:layers=left"]
)
def test_objectives_that_are_none(typed):
    with pytest.raises(RecipeError):
        read_objectives([typed])


def test_a_flag_of_two_methods_goes_to_the_one_that_is_run():
    words = ["distill", "--student", "s", "--teacher", "t", "--data", "d", "--layers", "last"]
    assert recipe_of([*words, "--method", "5"]).options["feature_layers"] == "last"
    assert recipe_of([*words, "--method", "8"]).options["layers"] == "last"


def test_teachers_imply_their_kind():
    words = ["distill", "--student", "s", "--data", "d"]
    assert (
        recipe_of([*words, "--cache", "c"]).teacher
        == recipe_with(teacher=Teacher(kind="cached", options={"path": "c"})).teacher
    )
    assert recipe_of([*words, "--teacher", "m", "--url", "u"]).teacher.kind == "remote"
    assert recipe_of([*words, "--teacher", "m", "--teacher-k", "5"]).teacher.options["k"] == 5
    both = recipe_of([*words, "--teacher", "a", "b", "--weights", "loss", "--mixture", "logits"]).teacher
    assert (both.kind, both.options["members"], both.options["weights"]) == ("ensemble", ["a", "b"], "loss")


def test_stages_travel_too():
    there_and_back(recipe_with(stages=["a", {"student": "b", "temperature": 1.0}]))
