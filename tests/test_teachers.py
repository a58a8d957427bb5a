"""Several teachers as one, and the moving average of the student, against references."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import build_gpt2, prepared_rows, save_model
from step_reference import (
    assert_close,
    assert_resumes,
    cross_entropy,
    follow,
    gradients,
    kl,
    recipe_of,
    said_of,
    step_of,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError
from llm_finetuner.output import Want
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.run import with_whole_paths
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.average import Average
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
    """Two teachers that are not of one mind, the second sure of itself."""
    models = [build_gpt2(V, width=24, seed=5).double(), build_gpt2(V, width=32, layers=3, seed=6).double()]
    with torch.no_grad():
        models[1].lm_head.weight *= 3
    return models


def ensemble(models, *args) -> Ensemble:
    return Ensemble([Live(TASK, copy.deepcopy(model)) for model in models], *args)


def mixture_gradient(student, models, rows, temperature, mix):
    """Of the KL to `mix(list of [N, V] logits, targets)`, the mixture's log-probabilities."""
    student = copy.deepcopy(student).train()
    total, count = 0.0, 0
    for row in rows:
        logits, targets, *_ = said_of(student, row)
        with torch.no_grad():
            told = mix([said_of(model.eval(), row)[0] for model in models], targets)
        total, count = total + kl(logits, told, temperature), count + len(targets)
    return gradients(total / count, student)


# ---- ensembles


@pytest.mark.parametrize("mixture", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, [3.0], "loss"])
def test_an_ensemble_of_one_is_that_teacher(tmp_path, student, members, mixture, weights):
    rows = prepared_rows(8, V)
    alone, record = step_of(tmp_path, student, members[0], rows, "vanilla_distillation")[0::2]
    for given in (ensemble(members[:1], weights, mixture), ensemble(members[:1], weights, mixture)):
        got, said = step_of(tmp_path, student, given, rows, "vanilla_distillation")[0::2]
        assert all(torch.equal(got[name], alone[name]) for name in alone)
        assert said["teacher_nll"] == record["teacher_nll"] and said["agreement"] == record["agreement"]
    features = step_of(
        tmp_path, student, ensemble(members[:1], weights, mixture), rows, "feature_distillation"
    )
    want = step_of(tmp_path, student, members[0], rows, "feature_distillation")
    assert all(torch.equal(features[0][name], want[0][name]) for name in alone)


@pytest.mark.parametrize(
    ("weights", "shares"), [(None, (0.5, 0.5)), ([1, 3], (0.25, 0.75)), ([0, 2], (0.0, 1.0))]
)
def test_mixtures_of_probabilities_and_of_logits(tmp_path, student, members, weights, shares):
    rows = prepared_rows(8, V)

    def probabilities(told, _targets):
        return sum(w * torch.softmax(z, -1) for w, z in zip(shares, told, strict=True)).log()

    def logits(told, _targets):
        return sum(w * z for w, z in zip(shares, told, strict=True))

    for name, mix in (("probabilities", probabilities), ("logits", logits)):
        got = step_of(
            tmp_path, student, ensemble(members, weights, name), rows, "vanilla_distillation", alpha=0.0,
            temperature=2.0,
        )[0]  # fmt: skip
        assert_close(got, mixture_gradient(student, members, rows, 2.0, mix))


@pytest.mark.parametrize("batch", [8, 2])
def test_weights_by_the_loss_on_each_example(tmp_path, student, members, batch):
    rows = prepared_rows(8, V)

    def mix(told, targets):
        losses = torch.stack([cross_entropy(z, targets) / len(targets) for z in told])
        return sum(
            w * torch.softmax(z, -1) for w, z in zip(torch.softmax(-losses, 0), told, strict=True)
        ).log()

    got = step_of(
        tmp_path, student, ensemble(members, "loss"), rows, "vanilla_distillation", alpha=0.0, temperature=2.0,
        batch_size=batch, gradient_accumulation_steps=8 // batch,
    )[0]  # fmt: skip
    assert_close(got, mixture_gradient(student, members, rows, 2.0, mix))


def test_members_that_know_other_columns_mix_over_what_all_know(members):
    """One knows the first 60 tokens, one every second, one all: the mixture is over the even ones below 60."""
    rows = prepared_rows(4, V)
    batch = TASK.collate(rows.to_list())
    even = torch.arange(0, V, 2).flip(0)  # in an order of its own
    third = copy.deepcopy(members[0])
    mixed = Ensemble([Live(TASK, members[0], 60), Live(TASK, members[1], even), Live(TASK, third)], [1, 2, 1])
    said = mixed(batch, Want())
    told = [Live(TASK, model)(batch, Want()) for model in (*members, third)]
    places = torch.arange(0, 60, 2)
    want = sum(
        w * torch.softmax(t.head(t.rows)[:, places], -1) for w, t in zip((0.25, 0.5, 0.25), told, strict=True)
    )
    assert torch.equal(mixed.columns, places)
    assert (said.head(said.rows).exp() - want).abs().max() < 1e-12
    assert mixed.view(torch.arange(V)[None])[0].tolist() == places.tolist()
    assert mixed.place(torch.tensor([4, 5, 58, 60])).tolist() == [2, -100, 29, -100]
    widths = Ensemble([Live(TASK, members[0], 60), Live(TASK, members[1])])
    assert widths.columns == 60 and widths(batch, Want()).head(widths(batch, Want()).rows).shape[-1] == 60


@pytest.mark.parametrize("method", ["feature_distillation", "relation_distillation"])
def test_an_ensemble_has_no_hidden_states(tmp_path, student, members, method):
    with pytest.raises(RecipeError, match="this teacher gives answers only"):
        step_of(tmp_path, student, ensemble(members), prepared_rows(8, V), method)


def test_members_are_names_or_settings_of_their_own(tmp_path, tokenizer, monkeypatch):
    folders = [
        save_model(tmp_path / name, build_gpt2(len(tokenizer), width=width, seed=width), tokenizer)
        for name, width in (("one", 16), ("two", 32))
    ]
    options = {"members": [folders[0], {"name": folders[1], "dtype": "float32"}], "weights": [1, 3]}
    spec = Teacher(kind="ensemble", options=options)
    recipe = recipe_of(tmp_path / "run", "vanilla_distillation", {}, teacher=spec, batch_size=2)
    rows = prepared_rows(4, len(tokenizer))
    parts = lambda: Parts(student=build_gpt2(len(tokenizer)), tokenizer=tokenizer, train=rows, device="cpu")  # noqa: E731
    record = fit(recipe, parts()).history[0]
    models = [build_gpt2(len(tokenizer), width=width, seed=width) for width in (16, 32)]
    given = replace(recipe, teacher=Teacher("t"), output=str(tmp_path / "given"))
    again = fit(given, replace(parts(), teacher=ensemble(models, [1, 3]))).history[0]
    assert record["forward_kl"] == pytest.approx(again["forward_kl"], rel=1e-6)
    muddled = {**options, "members": [folders[0], {"name": folders[1], "shuffled": True}]}
    other = fit(replace(recipe, teacher=replace(spec, options=muddled)), parts()).history[0]
    assert other["forward_kl"] != pytest.approx(record["forward_kl"], rel=1e-3)
    monkeypatch.chdir(tmp_path)
    near = replace(recipe, teacher=replace(spec, options={**options, "members": ["one", {"name": "two"}]}))
    assert with_whole_paths(near).teacher.options["members"] == [folders[0], {"name": folders[1]}]
    with pytest.raises(RecipeError, match="is the folder of a model of this run"):
        fit(replace(near, output=folders[1]), parts())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "an ensemble needs members, got None"),
        ({"members": []}, "an ensemble needs members"),
        ({"members": "gpt2"}, "an ensemble needs members, got 'gpt2'"),
        ({"members": ["a", 3]}, "a member must be a model's name or settings of a teacher, got 3"),
        ({"members": [{"nam": "a"}]}, "a member must be .* got {'nam': 'a'}"),
        ({"members": [{"name": "a", "load_in_4bit": True, "load_in_8bit": True}]}, "both set"),
        ({"members": [{"name": "a", "kind": "liv"}]}, "did you mean 'live'"),
        ({"members": [{"name": "a", "options": {"k": 3}}]}, "live has no options, got 'k'"),
        ({"member": ["a"]}, "unknown option of ensemble 'member'"),
    ],
)
def test_mistakes_in_members(options, said):
    with pytest.raises(RecipeError, match=said):
        Recipe(method="vanilla_distillation", teacher=Teacher(kind="ensemble", options=options))


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], "best", ["a", "b"]])
def test_weights_that_are_none(members, weights):
    with pytest.raises(RecipeError, match="weights of 2 teachers must be 2 numbers"):
        ensemble(members, weights)


def test_a_mixture_has_a_known_name(members):
    with pytest.raises(RecipeError, match="probabilities or logits, got 'votes'"):
        ensemble(members, None, "votes")


# ---- the moving average


def test_the_average_follows_the_student(tmp_path, student):
    """Three steps of SGD and of the average, written out; the first steps lean on the newest weights."""
    rows, rate, decay = prepared_rows(8, V), 0.5, 0.7
    options = {"by": "average", "decay": decay, "alpha": 0.3, "temperature": 2.0}
    trained = copy.deepcopy(student)
    recipe = recipe_of(tmp_path, "self_distillation", options, steps=3, learning_rate=rate)
    history = fit(replace(recipe, teacher=None), Parts(student=trained, train=rows, device="cpu")).history
    own, average = copy.deepcopy(student).train(), copy.deepcopy(student).eval()
    for step, record in enumerate(history, 1):
        said = [said_of(own, row) for row in rows]
        with torch.no_grad():
            told = [said_of(average, row)[0] for row in rows]
        count = sum(len(targets) for _, targets, *_ in said)
        ce = sum(cross_entropy(z, y) for z, y, *_ in said) / count
        distance = sum(kl(s[0], t, 2.0) for s, t in zip(said, told, strict=True)) / count
        assert record["cross_entropy"] == pytest.approx(ce.item(), rel=1e-9)
        assert record["forward_kl"] == pytest.approx(distance.item(), rel=1e-9, abs=1e-12)
        follow(own, 0.3 * ce + 0.7 * distance, rate)
        share = min(decay, 1 - 1 / (step + 1))
        with torch.no_grad():
            for slow, new in zip(average.parameters(), own.parameters(), strict=True):
                slow.copy_(share * slow + (1 - share) * new)
    assert history[2]["forward_kl"] > 1e-6
    for got, want in zip(trained.parameters(), own.parameters(), strict=True):
        assert (got - want).abs().max() < 1e-10


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_average_is_resumed(tmp_path, tuning):
    recipe = recipe_of(tmp_path, "self_distillation", {"by": "average", "decay": 0.9})
    recipe = replace(recipe, teacher=None, tuning=Tuning(tuning))
    assert_resumes(
        tmp_path, recipe,
        lambda: Parts(student=build_gpt2(V, dropout=0.1), train=prepared_rows(8, V), device="cpu"),
    )  # fmt: skip


def test_an_average_inside_an_ensemble_moves_and_is_kept(student, members):
    group = Shuffled(Ensemble([Average(TASK, student, 0.5), Live(TASK, members[0])]))
    with torch.no_grad():
        student.lm_head.weight += 1
    before = group.inner.members[0].model.lm_head.weight.clone()
    group.follow()
    assert (group.inner.members[0].model.lm_head.weight - before - 0.5).abs().max() < 1e-12
    again = Shuffled(Ensemble([Average(TASK, student, 0.5), Live(TASK, members[0])]))
    again.load_state(group.state())
    for got, want in zip(
        again.inner.members[0].model.parameters(), group.inner.members[0].model.parameters(), strict=True
    ):
        assert torch.equal(got, want)


def test_a_teacher_with_another_tokenizer_is_not_mixed(tmp_path, student_folder, teacher_folder, tokenizer):
    members = [teacher_folder, {"name": teacher_folder, "kind": "across"}]
    recipe = Recipe(
        method="vanilla_distillation", student=Model(student_folder), output=str(tmp_path / "run"),
        teacher=Teacher(kind="ensemble", options={"members": members}), train=Train(steps=1),
    )  # fmt: skip
    rows = prepared_rows(8, len(tokenizer))
    with pytest.raises(RecipeError, match="cannot be mixed"):
        fit(recipe, Parts(train=rows, tokenizer=tokenizer, device="cpu"))
