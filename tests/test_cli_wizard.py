"""The wizard, driven by keystrokes: answers become a Recipe, one can go back, mistakes are told at the prompt."""
# ruff: noqa: F811, I001  fixtures are arguments

import os
import shutil

import pytest
from menu_keys import CTRL_B, CTRL_C, CTRL_D, CTRL_U, DATA, DOWN, ENTER, MODELS, SPACE, TEXT, answers_to
from menu_keys import here, keys  # noqa: F401  fixtures

from llm_finetuner.cli import answers, jobs, prompts, wizard
from llm_finetuner.cli.prompts import BACK, Ask, Mark, Pick
from llm_finetuner.cli.settings import build
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_file import load


# ---- the walk


def test_all_defaults_of_vanilla_distillation(keys, here):
    # tuning, temperature, alpha, five training questions, advanced, output
    recipe = keys(
        answers_to("vanilla_distillation"), *MODELS, ENTER, *DATA, ENTER * 2, ENTER * 5, ENTER, ENTER
    )
    paths = {"student.name": "small", "teacher.name": "big", "data.source": "rows.jsonl"}
    assert recipe == build(4, {**paths, "output": "outputs/small-vanilla_distillation"})


def test_answers_of_feature_distillation(keys, here):
    typed = ["3", ENTER, "0.7", ENTER, "0:1,1:3", ENTER, "0.5", ENTER, DOWN, ENTER, ENTER]
    training = ["1", ENTER, "2", ENTER, "1e-3", ENTER, "64", ENTER, "20", ENTER, ENTER, "out", ENTER]
    recipe = keys(answers_to("feature_distillation"), *MODELS, DOWN, DOWN, ENTER, *DATA, *typed, *training)
    wanted = {
        "student.name": "small", "teacher.name": "big", "tuning.kind": "lora", "data.source": "rows.jsonl",
        "options.temperature": 3.0, "options.alpha": 0.7, "options.feature_layers": [[0, 1], [1, 3]],
        "options.output_weight": 0.5, "options.feature_loss": "hidden_cosine", "train.epochs": 1.0,
        "train.batch_size": 2, "train.learning_rate": 1e-3, "data.max_length": 64, "data.samples": 20,
        "output": "out",
    }  # fmt: skip
    assert recipe == build(5, wanted)


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "full"])
def test_fine_tuning_asks_for_no_teacher(keys, here, method):
    recipe = keys(answers_to(method), TEXT, "small", ENTER, *DATA, ENTER * 5, ENTER, ENTER)
    wanted = {"student.name": "small", "data.source": "rows.jsonl", "output": f"outputs/small-{method}"}
    assert recipe == build(method, wanted)


def test_advanced_settings_are_asked_when_marked(keys, here):
    marks = [DOWN, ENTER, SPACE, DOWN, SPACE, ENTER]  # yes; r and lora_alpha
    recipe = keys(
        answers_to("lora"), TEXT, "small", ENTER, *DATA, ENTER * 5, *marks, "4", ENTER, "16", ENTER, ENTER
    )
    assert (recipe.tuning.options["r"], recipe.tuning.options["lora_alpha"]) == (4, 16)


def test_going_back_keeps_what_was_typed_as_default(keys, here):
    # temperature 5, alpha asked; back to temperature; Enter keeps 5; alpha 0.2
    moves = ["5", ENTER, CTRL_B, ENTER, "0.2", ENTER]
    recipe = keys(answers_to("vanilla_distillation"), *MODELS, ENTER, *DATA, *moves, ENTER * 7)
    assert recipe.options == {"temperature": 5.0, "alpha": 0.2}


def test_going_back_changes_an_answer(keys, here):
    recipe = keys(answers_to("full"), TEXT, "big", ENTER, CTRL_B, "small", ENTER, *DATA, ENTER * 7)
    assert recipe.student.name == "small" and recipe.output == "outputs/small-full"


def test_back_from_the_first_question_leaves_the_walk(keys):
    assert keys(answers_to("lora"), CTRL_B) is BACK


def test_wrong_value_is_told_and_kept_for_mending(keys, here):
    # 11 is refused: the same prompt takes the correction
    moves = ["11", ENTER, CTRL_U, "4", ENTER]
    recipe = keys(answers_to("vanilla_distillation"), *MODELS, ENTER, *DATA, *moves, ENTER * 8)
    assert recipe.options["temperature"] == 4.0


def test_a_failing_preview_can_be_left_by_going_back(keys, here, capsys):
    (here / "bad.jsonl").write_text("{}\nno json\n")
    moves = ["bad.jsonl", ENTER, CTRL_B, *DATA]
    recipe = keys(answers_to("full"), TEXT, "small", ENTER, *moves, ENTER * 7)
    assert recipe.data.source == "rows.jsonl" and "error:" in capsys.readouterr().out


def test_bad_rows_can_be_left_out(keys, here):
    with open(here / "rows.jsonl", "a") as file:
        file.write("no json\n")
    recipe = keys(answers_to("full"), TEXT, "small", ENTER, *DATA, ENTER, ENTER * 7)
    assert recipe.data.on_bad_row == "skip"


@pytest.fixture
def bare(here):
    """A third folder: configuration and tokenizer, no weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(here / "small", here / "bare", ignore=ignored)


def test_a_student_without_weights_starts_from_new_ones(keys, bare):
    recipe = keys(answers_to("full"), TEXT, "bare", ENTER, ENTER, *DATA, ENTER * 7)
    assert recipe.student.name == "bare" and recipe.student.from_scratch


def test_a_student_without_weights_can_be_another_one(keys, bare):
    moves = ["bare", ENTER, DOWN, ENTER, CTRL_U, "small", ENTER]
    recipe = keys(answers_to("full"), TEXT, *moves, *DATA, ENTER * 7)
    assert recipe.student.name == "small" and not recipe.student.from_scratch


def test_a_student_that_cannot_be_loaded_is_asked_for_again(keys, here, capsys):
    moves = ["no-such-model", ENTER, "rows.jsonl", ENTER, ENTER, "small", ENTER]
    recipe = keys(answers_to("full"), TEXT, *moves, ENTER, ENTER, ENTER * 7)
    assert "cannot load 'no-such-model'" in capsys.readouterr().out
    assert (recipe.student.name, recipe.data.source) == ("small", "rows.jsonl")


def test_what_is_typed_stays_as_typed(keys, here):
    recipe = keys(
        answers_to("full"), TEXT, "./small", ENTER, "./rows.jsonl", ENTER, ENTER, ENTER * 6, "./out", ENTER
    )
    assert (recipe.student.name, recipe.data.source, recipe.output) == ("./small", "./rows.jsonl", "./out")


def test_columns_can_be_named(keys, here):
    moves = ["rows.jsonl", ENTER, DOWN, ENTER, "answer", ENTER, ENTER]
    recipe = keys(answers_to("full"), TEXT, "small", ENTER, *moves, ENTER * 7)
    assert recipe.data.text_columns == ["answer"]


def test_output_is_the_next_free_number(keys, here):
    (here / "outputs" / "small-full").mkdir(parents=True)
    recipe = keys(answers_to("full"), TEXT, "small", ENTER, *DATA, ENTER * 7)
    assert recipe.output == "outputs/small-full-2"


# ---- leaving


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D])
@pytest.mark.parametrize("before", [[], [TEXT, "small", ENTER]])
def test_ctrl_c_and_ctrl_d_leave(keys, here, key, before):
    with pytest.raises(KeyboardInterrupt):
        keys(answers_to("full"), *before, key)


def test_menu_can_be_left(keys):
    assert keys(wizard.menu, "q", ENTER) == 0
    assert keys(wizard.menu, CTRL_B) == 0


def test_menu_comes_again_after_going_back(keys):
    assert keys(wizard.menu, "4", ENTER, CTRL_B, "q", ENTER) == 0


def test_first_screen_has_the_methods_under_their_numbers():
    shortcuts = [key for *_, key in wizard.first_screen(1).choices]
    assert shortcuts[:12] == [str(number) for number in range(1, 13)]


# ---- the confirmation


def test_saving_the_recipe_only(keys, here, capsys):
    baselines = [DOWN, ENTER]  # yes, please
    moves = [*MODELS, ENTER, *DATA, ENTER * 8, ENTER, *baselines, DOWN, DOWN, ENTER, ENTER]
    assert keys(lambda: jobs.distil_or_finetune("vanilla_distillation"), *moves) == 0
    saved = load("outputs/small-vanilla_distillation.yaml")
    assert saved.teacher.name == "big" and not (here / "outputs/small-vanilla_distillation").exists()
    out = capsys.readouterr().out
    for words in ("parameters", "compression", "steps", "memory", "time", "tokenizers", "the same"):
        assert words in out
    assert "distill --method vanilla_distillation" in out and out.count("--baseline") == 2


def test_back_from_the_confirmation_asks_for_the_output_again(keys, here):
    moves = ["small", ENTER, *DATA, ENTER * 7, CTRL_B, "other", ENTER, DOWN, DOWN, ENTER, ENTER]
    assert keys(lambda: jobs.distil_or_finetune("full"), TEXT, *moves) == 0
    assert load("other.yaml").output == "other"


def test_leaving_at_the_confirmation_changes_nothing(keys, here, capsys):
    before = sorted(os.listdir(here))
    assert (
        keys(lambda: jobs.distil_or_finetune("full"), TEXT, "small", ENTER, *DATA, ENTER * 7, "\x1b[A", ENTER)
        == 0
    )
    assert sorted(os.listdir(here)) == before and "Nothing was changed" in capsys.readouterr().out


def test_temperature_without_effect_is_warned_of(keys, here, capsys):
    moves = [*MODELS, ENTER, *DATA, ENTER * 6, ENTER * 5, ENTER, ENTER, ENTER, "\x1b[A", ENTER]
    keys(lambda: jobs.distil_or_finetune("feature_distillation"), *moves)
    assert "temperature=2.0 has no effect" in capsys.readouterr().out


# ---- single prompts


@pytest.mark.parametrize(
    "prompt, typed, answer",
    [
        (Ask("5", int), ENTER, 5),
        (Ask("5", int), "7\r", 7),
        (Ask("ab"), "\x1b[C" + "c\r", "abc"),  # right arrow: the default, to be edited
        (Pick([("a", "A", "", None), ("b", "B", "", None)], "b"), ENTER, "b"),
        (Pick([(True, "yes", "", None), (False, "no", "", None)], False), ENTER, False),
        (Mark([("a", "A"), ("b", "B")], ("b",)), ENTER, ["b"]),
        (Ask("5", int), CTRL_B, BACK),
        (Pick([("a", "A", "", None)]), CTRL_B, BACK),
        (Mark([("a", "A")]), CTRL_B, BACK),
        (Ask("5", int), "\x1b", BACK),  # a lone Esc
    ],
)
def test_prompts(keys, prompt, typed, answer):
    assert keys(lambda: prompts.ask("Title", "why", prompt), typed) == answer


@pytest.mark.parametrize("name", ["./missing", "two words", "", "a/b/c"])
def test_model_names_are_checked(name):
    with pytest.raises(RecipeError):
        answers.model_name(name)


@pytest.mark.parametrize("name", ["./missing.jsonl", "missing.csv", "two words", ""])
def test_data_sources_are_checked(name):
    with pytest.raises(RecipeError):
        answers.data_source(name)


def test_hub_names_pass():
    assert answers.model_name("org/model-1.5") == "org/model-1.5"
    assert answers.data_source("wikitext") == "wikitext"
