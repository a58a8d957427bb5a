"""What a sweep searches: spaces and what is wrong with them, budgets, Optuna and its pruning."""

import sys
from pathlib import Path

import pytest
from conftest import build_gpt2, build_llama
from sweep_runs import RATE, Heard, counting, losses, parts_of, recipe_in

from llm_finetuner import sweep as sweeping
from llm_finetuner.errors import OrderError, RecipeError, TrainingError
from llm_finetuner.search import space as spaces
from llm_finetuner.search.record import digest_of_model, digest_of_rows
from llm_finetuner.sweep import sweep
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.trainer import fit

# ---- spaces


def test_a_space_is_every_combination_and_methods_come_with_their_own_options(tmp_path):
    recipe = recipe_in(tmp_path, "vanilla_distillation")
    space = {"alpha": [0.1, 0.2], "method": ["vanilla_distillation", "feature_distillation"]}
    listed = spaces.grid(spaces.check(space, "grid", {}))
    assert [tuple(each.values()) for each in listed] == [
        (alpha, method) for alpha in space["alpha"] for method in space["method"]
    ]
    tried = [spaces.applied(recipe, settings) for settings in listed]
    assert [(one.options["alpha"], one.method) for one in tried] == [tuple(each.values()) for each in listed]
    assert (
        spaces.value_of(tried[1], "output_weight") == 0.0
        and spaces.value_of(tried[0], "output_weight") is None
    )
    layers = spaces.applied(tried[1], {"feature_layers": [[0, 1], [1, 3]]})
    assert layers.options["feature_layers"] == [[0, 1], [1, 3]]


def test_assignments_are_lists_and_ranges():
    given = [
        "temperature=1,2.5",
        "train.learning_rate=1e-5:1e-3:log",
        "a=1:4",
        "b=x:y",
        "layers=[0, 1],null",
        "r=4..1,1e-4",
    ]
    assert spaces.parse(given) == {
        "temperature": [1, 2.5],
        "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "a": {"low": 1, "high": 4, "log": False},
        "b": ["x:y"],
        "layers": [[0, 1], None],
        "r": ["4..1", 1e-4],
    }
    for wrong in ("alpha", "alpha=", "alpha=[1"):
        with pytest.raises(RecipeError):
            spaces.parse([wrong])


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        ({}, {}, "the space of a sweep is"),
        ([1], {}, "the space of a sweep is"),
        ({"tempreature": [1, 2]}, {}, "did you mean 'temperature'"),
        ({"data.samples": [1, 2]}, {}, "cannot vary data.samples"),
        ({"train.seed": [1, 2]}, {}, "seeds=3"),
        ({"temp": [1], "temperature": [2]}, {}, "under two names"),
        ({"alpha": 0.5}, {}, "must be a list of values"),
        ({"alpha": []}, {}, "no values"),
        ({"alpha": {"low": 0, "high": 1}}, {}, "a grid needs values"),
        ({"alpha": {"low": 1, "high": 0}}, {"search": "optuna", "trials": 1}, "from a low number"),
        ({"alpha": {"low": 0, "high": 1, "log": True}}, {"search": "optuna", "trials": 1}, "above 0"),
        ([{"alpha": 0.5}], {"search": "optuna", "trials": 1}, "tried as it is"),
        ({"alpha": [0.5]}, {"search": "optuna"}, "never end"),
        ({"alfa": [0.5]}, {"search": "optuna", "trials": 1}, "did you mean 'alpha'"),
        ({"alpha": [0.5]}, {"search": "genetic"}, "unknown search"),
        ({"alpha": [0.5]}, {"seeds": 0}, "seeds must be"),
        ({"student.dtype": ["float32"]}, {}, "given as an object"),
    ],
)  # fmt: skip
def test_a_space_or_budget_that_cannot_be_is_refused(tmp_path, space, options, said):
    recipe, parts = recipe_in(tmp_path, "vanilla_distillation"), parts_of(teacher=build_llama(64))
    with pytest.raises(RecipeError, match=said):
        sweep(recipe, space, parts=parts, **options)
    assert not (tmp_path / "trial_000").exists(), "before anything is trained"


def test_a_trained_student_and_several_processes_are_refused(tmp_path, monkeypatch):
    parts = parts_of()
    parts.tuned = fit(recipe_in(tmp_path / "run"), parts_of()).tuned
    with pytest.raises(OrderError, match="untouched"):
        sweep(recipe_in(tmp_path), {RATE: [1e-3]}, parts=parts)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process"):
        sweep(recipe_in(tmp_path), {RATE: [1e-3]}, parts=parts_of())


def test_digests_see_every_token_and_every_weight():
    rows = counting(4)
    moved = rows.map(
        lambda row, i: {"labels": [*row["labels"][:-1], 1 if i == 3 else row["labels"][-1]]},
        with_indices=True,
    )
    task = CausalLM()
    same = digest_of_rows(task, rows)
    assert same == digest_of_rows(task, counting(4)) != digest_of_rows(task, moved)
    assert same != digest_of_rows(task, rows.select([1, 0, 2, 3]))
    model = build_gpt2(64)
    before = digest_of_model(model)
    model.transformer.h[1].ln_1.bias.data[3] += 1
    assert digest_of_model(model) != before


# ---- budgets


def test_after_the_minutes_nothing_starts_and_the_next_call_goes_on(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sweeping, "clock", lambda: now[0])

    def late(kind: str, count: int) -> None:
        if kind == "checkpoint" and count == 3:  # of the second trial, half way
            now[0] = 61.0

    space = {RATE: [1e-3, 1e-4]}
    cut = sweep(recipe_in(tmp_path), space, parts=parts_of(), minutes=1, on_event=Heard(late))
    assert [line["state"] for line in cut["trials"]] == ["finished", "unfinished"]
    assert "minutes are spent" in cut["notes"][0] and "minutes are spent" in Path(cut["table"]).read_text()
    heard = Heard()
    done = sweep(recipe_in(tmp_path), space, parts=parts_of(), minutes=1, on_event=heard)
    assert [plan["resumed_from"] for plan in heard.of("plan")] == [2, 0]
    assert [line["state"] for line in done["trials"]] == ["finished"] * 3


def test_no_time_for_a_single_trial_says_so(tmp_path, monkeypatch):
    ticks = iter(range(0, 10**6, 100))
    monkeypatch.setattr(sweeping, "clock", lambda: next(ticks))
    with pytest.raises(TrainingError, match="no trial finished"):
        sweep(recipe_in(tmp_path), {RATE: [1e-3]}, parts=parts_of(), minutes=1)


def test_trials_bound_a_grid(tmp_path):
    result = sweep(recipe_in(tmp_path), {RATE: [1e-3, 1e-4, 1e-5]}, trials=1, parts=parts_of())
    assert sorted(losses(result)) == [0, 1], "beside the recipe as given"


# ---- optuna


def test_a_hopeless_trial_is_stopped_and_a_good_one_is_not(tmp_path):
    pytest.importorskip("optuna")
    recipe = recipe_in(tmp_path, steps=6)
    sweep(recipe, {RATE: [2e-2, 3e-2, 4e-2]}, parts=parts_of())
    heard = Heard()
    result = sweep(recipe, {RATE: [1e-9]}, search="optuna", trials=4, parts=parts_of(), on_event=heard)
    assert heard.tried == [4]
    last = result["trials"][-1]
    assert (last["number"], last["state"], last["steps"]) == (4, "stopped", 2)
    assert last["loss"] > max(loss for number, loss in losses(result).items() if number != 4)
    assert [record["step"] for record in heard.of("step")] == [1, 2], "at its first evaluation"
    better = sweep(recipe, {RATE: [3.5e-2]}, search="optuna", trials=5, parts=parts_of())
    assert [line["state"] for line in better["trials"]].count("finished") == 5
    assert "stopped" in Path(better["table"]).read_text()


def test_optuna_draws_from_ranges_and_goes_on_to_the_number_asked_for(tmp_path):
    pytest.importorskip("optuna")
    recipe = recipe_in(tmp_path, steps=2)
    space = {
        RATE: {"low": 1e-4, "high": 1e-2, "log": True},
        "train.warmup": [0, 0.5],
        "train.patience": {"low": 1, "high": 3},
    }
    first = sweep(recipe, space, search="optuna", trials=2, parts=parts_of())
    heard = Heard()
    result = sweep(recipe, space, search="optuna", trials=4, parts=parts_of(), on_event=heard)
    assert len(first["trials"]) == 3 and heard.tried == [3, 4]
    drawn = [line["settings"] for line in result["trials"] if not line["given"]]
    assert len({settings[RATE] for settings in drawn}) == 4
    for settings in drawn:
        assert 1e-4 <= settings[RATE] <= 1e-2 and settings["train.warmup"] in (0, 0.5)
        assert settings["train.patience"] in (1, 2, 3) and isinstance(settings["train.patience"], int)


def test_an_exhausted_space_ends_the_search(tmp_path):
    pytest.importorskip("optuna")
    result = sweep(
        recipe_in(tmp_path, steps=1), {RATE: [1e-3, 1e-2]}, search="optuna", trials=9, parts=parts_of()
    )
    assert len(result["trials"]) == 2 and "exhausted" in result["notes"][0]


def test_without_optuna_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"pip install .*search"):
        sweep(recipe_in(tmp_path), {RATE: [1e-3]}, search="optuna", trials=1, parts=parts_of())
    assert not (tmp_path / "trial_000").exists()
