"""Losses of several named terms: what they add up to while weights and temperatures change, names, mistakes."""

import copy

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from step_reference import assert_close, cross_entropy, gradients, kl, recipe_of, said_of, step_of

from llm_finetuner import ramp
from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import layer_pairs
from llm_finetuner.models import anatomy
from llm_finetuner.recipe import Recipe, Teacher
from llm_finetuner.trainer import fit

V = 64


@pytest.fixture
def models():
    return build_gpt2(V).double(), build_llama(V).double()


def sums_of(student, teacher, rows):
    """Cross-entropy, and a function of the temperature that gives the KL: both divided by all positions."""
    said = [said_of(student, row) for row in rows]
    with torch.no_grad():
        told = [said_of(teacher.eval(), row)[0] for row in rows]
    count = sum(len(targets) for _, targets, *_ in said)
    ce = sum(cross_entropy(logits, targets) for logits, targets, *_ in said) / count
    return ce, lambda t: sum(kl(s[0], other, t) for s, other in zip(said, told, strict=True)) / count


# ---- what is added up


def test_one_objective_twice_at_two_temperatures(tmp_path, models):
    rows = prepared_rows(8, V)
    objectives = {
        "cross_entropy": 0.2,
        "forward_kl": {"weight": 0.5, "temperature": 1.0},
        "forward_kl_2": {"weight": 0.3, "temperature": 4.0},
        "reverse_kl": 0.0,
    }
    got, _, record, _ = step_of(tmp_path, *models, rows, "distillation", objectives=objectives)
    student = copy.deepcopy(models[0]).train()
    ce, at = sums_of(student, models[1], rows)
    assert_close(got, gradients(0.2 * ce + 0.5 * at(1.0) + 0.3 * at(4.0), student))
    assert record["forward_kl"] == pytest.approx(at(1.0).item(), rel=1e-9)
    assert record["forward_kl_2"] == pytest.approx(at(4.0).item(), rel=1e-9)
    assert record["loss"] == pytest.approx((0.2 * ce + 0.5 * at(1.0) + 0.3 * at(4.0)).item(), rel=1e-9)
    assert "reverse_kl" not in record


def test_weights_and_temperatures_change_over_the_run(tmp_path, models):
    """Three steps of SGD beside the same written out: the terms weigh what they should at the start, middle and end."""
    rows, rate = prepared_rows(8, V), 0.2
    objectives = {
        "cross_entropy": "1..0",
        "forward_kl": {"weight": "0..1:cosine", "temperature": "4..1"},
        "forward_kl_2": {"weight": 0.25, "temperature": "1..9:cosine"},
    }
    student = copy.deepcopy(models[0])
    recipe = recipe_of(tmp_path, "distillation", {"objectives": objectives}, steps=3, learning_rate=rate)
    result = fit(recipe, Parts(student=student, teacher=copy.deepcopy(models[1]), train=rows, device="cpu"))
    own = copy.deepcopy(models[0]).train()
    plan = [(1.0, 0.0, 4.0, 1.0), (0.5, 0.5, 2.5, 5.0), (0.0, 1.0, 1.0, 9.0)]
    for record, (truth, weight, first, second) in zip(result.history, plan, strict=True):
        ce, at = sums_of(own, models[1], rows)
        loss = truth * ce + weight * at(first) + 0.25 * at(second)
        assert record["cross_entropy"] == pytest.approx(ce.item(), rel=1e-9)
        assert record["forward_kl"] == pytest.approx(at(first).item(), rel=1e-9)
        assert record["forward_kl_2"] == pytest.approx(at(second).item(), rel=1e-9)
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-9)
        with torch.no_grad():
            for (_, p), g in zip(own.named_parameters(), gradients(loss, own).values(), strict=True):
                p -= rate * g
    for (name, got), want in zip(student.named_parameters(), own.parameters(), strict=True):
        assert (got - want).abs().max() < 1e-10, name


def test_a_ramp_in_one_step_is_at_its_start(tmp_path, models):
    rows = prepared_rows(8, V)
    ramped = step_of(tmp_path, *models, rows, "vanilla_distillation", temperature="4..1", alpha=0.5)
    fixed = step_of(tmp_path, *models, rows, "vanilla_distillation", temperature=4.0, alpha=0.5)
    assert all(torch.equal(ramped[0][name], fixed[0][name]) for name in fixed[0])


def test_ramps_are_read_and_followed():
    assert [ramp.at("4..1", p) for p in (0, 0.5, 1)] == [4.0, 2.5, 1.0]
    assert [ramp.at(" 0.5 .. 1.5 : cosine ", p) for p in (0, 0.5, 1)] == pytest.approx([0.5, 1.0, 1.5])
    assert ramp.at("0..1:cosine", 0.25) == pytest.approx((1 - 2**-0.5) / 2)
    assert ramp.at(3, 0.7) == 3.0


def test_a_term_of_weight_zero_reads_nothing(tmp_path, models, monkeypatch):
    """No hook is set and no attention exposed for it; with nothing else to hear, the teacher is not even run."""
    wanted = []
    spy = anatomy.capture
    monkeypatch.setattr(
        "llm_finetuner.tasks.causal_lm.capture", lambda model, want: wanted.append(want) or spy(model, want)
    )
    passes = []
    models[1].model.register_forward_hook(lambda *_: passes.append(1))
    objectives = {"cross_entropy": 1, "attention_mse": 0, "hidden_mse": 0.0, "forward_kl": 0}
    teacher = Teacher("t")
    recipe = recipe_of(tmp_path, "distillation", {"objectives": objectives}, teacher=teacher)
    parts = Parts(student=models[0], teacher=models[1], train=prepared_rows(8, V), device="cpu")
    record = fit(recipe, parts).history[0]
    assert not passes and models[0].config._attn_implementation != "eager"
    assert all(not want.layers and not want.attention and not want.states for want in wanted)
    assert not {"attention_mse", "hidden_mse", "forward_kl"} & record.keys()


# ---- mistakes


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ({"forward_kll": 1}, "did you mean 'forward_kl'"),
        ({"forward_kll_2": 1}, "unknown objective 'forward_kll_2'"),
        ({"cross_entropy": -1}, "weight of cross_entropy must be a number at least 0, got -1"),
        ({"cross_entropy": "1"}, "weight of cross_entropy"),
        ({"cross_entropy": True}, "weight of cross_entropy"),
        ({"cross_entropy": "1.."}, r"weight of cross_entropy: '1\.\.' is not"),
        ({"cross_entropy": "1..-1"}, "weight of cross_entropy"),
        ({"cross_entropy": "4...1"}, r"weight of cross_entropy: '4\.\.\.1'"),
        ({"cross_entropy": "1.2.3..4"}, r"weight of cross_entropy: '1\.2\.3\.\.4'"),
        ({"cross_entropy": "1..0:sine"}, "weight of cross_entropy: '1..0:sine'"),
        ({"forward_kl": {"temperature": 0}}, "temperature of forward_kl must be"),
        ({"forward_kl": {"temperature": "0..2"}}, "temperature of forward_kl must be"),
        ({"hidden_mse": {"projection": "random"}}, "projection of hidden_mse must be linear or orthogonal"),
        ({"cross_entropy": 0, "forward_kl": {"weight": 0}}, "no objective has a weight"),
        (["forward_kl"], "objectives must be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_in_objectives_name_the_field(objectives, said):
    with pytest.raises(RecipeError, match=said):
        Recipe(method="distillation", options={"objectives": objectives}, teacher=Teacher("t"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"jsd": {"bta": 0.5}}, "unknown option of jsd 'bta'\ndid you mean 'beta'"),
        ({"cross_entropy": {"temperature": 2.0}}, "unknown option of cross_entropy 'temperature'"),
        ({"hidden_mse": {"layers": "middle"}}, "names no map 'middle'"),
        ({"hidden_mse": {"layers": [2]}}, "the student has blocks 0 to 1"),
        ({"hidden_mse": {"layers": [[1, 4]]}}, "the teacher has blocks 0 to 3"),
        ({"jsd": {"beta": 2}}, "beta"),
    ],
)
def test_mistakes_that_show_beside_the_models(tmp_path, models, given, said):
    with pytest.raises(RecipeError, match=said):
        step_of(tmp_path, *models, prepared_rows(8, V), "distillation", objectives=given)


def test_warnings_are_about_settings_without_effect_only():
    def said(method, **options):
        return Recipe(method=method, options=options, teacher=Teacher("t")).warnings()

    assert said("on_policy_distillation") == []
    assert said("sequence_distillation") == []
    for by in ("exits", "average"):
        assert ["teacher t is not used" in text for text in said("self_distillation", by=by)] == [True]
    assert said("relation_distillation", output_weight=0.5, temperature=3.0) == []
    assert ["output_weight is 0" in text for text in said("relation_distillation")] == [True]
    assert ["alpha is 1" in text for text in said("vanilla_distillation", alpha=1.0)] == [True, False]


# ---- layer maps


@pytest.mark.parametrize(
    ("name", "depths", "pairs"),
    [
        ("uniform", (6, 12), [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]),
        ("uniform", (4, 12), [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("uniform", (4, 4), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("uniform", (4, 6), [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ("skip", (6, 12), [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]),
        ("skip", (4, 12), [(0, 2), (1, 5), (2, 8)]),
        ("skip", (4, 4), [(0, 0), (1, 1), (2, 2)]),
        ("skip", (1, 4), [(0, 3)]),
        ("last", (6, 12), [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("last", (4, 12), [(0, 8), (1, 9), (2, 10), (3, 11)]),
        ("last", (4, 4), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("first-last", (6, 12), [(0, 0), (5, 11)]),
        ("first-last", (4, 6), [(0, 0), (3, 5)]),
        ("uniform", (12, 6), [(i, max((i + 1) // 2 - 1, 0)) for i in range(12)]),
        ("skip", (4, 2), [(0, 0), (1, 0), (2, 0)]),
        ("last", (4, 2), [(0, 0), (1, 0), (2, 0), (3, 1)]),
        ("final", (4, 12), [(3, 11)]),
        ("final", (1, 1), [(0, 0)]),
        (None, (12, 24), [(0, 0), (3, 6), (6, 12), (9, 18)]),
        (None, (2, 4), [(0, 0), (1, 2)]),
        ([1, [2, 0]], (4, 12), [(1, 3), (2, 0)]),
    ],
)
def test_layer_maps(name, depths, pairs):
    assert layer_pairs(name, *depths) == tuple(pairs)


@pytest.mark.parametrize("layers", ["middle", [], [4], [-1], [[0, 6]], [True], [1.0], [[0, 1, 2]], 3, ["0"]])
def test_layer_maps_that_fit_nothing(layers):
    with pytest.raises(RecipeError, match="feature_layers"):
        layer_pairs(layers, 4, 6)
