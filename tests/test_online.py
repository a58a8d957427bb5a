"""Models that learn together: gradients of every one against a reference, what is saved, and how they begin."""

import copy
from dataclasses import replace

import pytest
from conftest import build_gpt2, build_llama, prepared_rows, save_model
from step_reference import (
    assert_close,
    assert_resumes,
    cross_entropy,
    gradients,
    kl,
    recipe_of,
    said_of,
    step_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.recipe import Model, Recipe, Teacher
from llm_finetuner.trainer import fit

V = 64


def group_of(count: int) -> list:
    """Models of other widths and depths."""
    shapes = ((16, 2), (24, 1), (32, 3))
    return [build_gpt2(V, width, layers, seed=width).double() for width, layers in shapes[:count]]


def losses(models, rows, alpha, heat, mutual, columns=None):
    """The loss of each model, as the method states it, and the KL of each against each of the others."""
    said = [[said_of(model, row) for row in rows] for model in models]
    count = sum(len(targets) for _, targets, *_ in said[0])
    truth = [sum(cross_entropy(z, y) for z, y, *_ in own) / count for own in said]
    heard = {
        (i, j): sum(
            kl(a[0][:, :columns], b[0][:, :columns].detach(), heat) for a, b in zip(said[i], said[j], strict=True)
        ) / count
        for i in range(len(models)) for j in range(len(models)) if i != j
    }  # fmt: skip
    found = []
    for i in range(len(models)):
        others = [heard[i, j] for j in range(len(models)) if j != i]
        taught = alpha * truth[i] + (1 - alpha) * sum(others) / len(others)
        found.append(taught if i == 0 or mutual else truth[i])
    return found, truth, heard


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("mutual", [True, False])
def test_gradients_of_every_model(tmp_path, count, mutual):
    models, rows, alpha, heat = group_of(count), prepared_rows(8, V), 0.3, 2.0
    got, peers, record, _ = step_of(
        tmp_path, models[0], None, rows, "online_distillation", peers=models[1:], alpha=alpha, temperature=heat,
        mutual=mutual,
    )  # fmt: skip
    models = [copy.deepcopy(model).train() for model in models]
    wanted, truth, heard = losses(models, rows, alpha, heat, mutual)
    for moved, loss, model in zip([got, *peers], wanted, models, strict=True):
        assert_close(moved, gradients(loss, model))
    assert record["loss"] == pytest.approx(sum(wanted).item(), rel=1e-9)
    assert record["cross_entropy"] == pytest.approx(truth[0].item(), rel=1e-9)
    assert record["peer_1_cross_entropy"] == pytest.approx(truth[1].item(), rel=1e-9)
    for i in range(count):  # one figure a model: the mean over the others
        name = f"peer_{i}_forward_kl" if i else "forward_kl"
        others = [heard[i, j].item() for j in range(count) if j != i]
        assert (name in record) == (mutual or i == 0)
        assert name not in record or record[name] == pytest.approx(sum(others) / len(others), rel=1e-9)
    assert not [name for name in record if "from" in name]


@pytest.mark.parametrize("extra", [(0, 7), (7, 0), (5, 5), (3, 0, 9)])
def test_only_columns_that_name_a_token_are_compared(tmp_path, tokenizer, extra):
    """Checkpoints pad their vocabulary to widths of their own; cross-entropy stays that of all columns."""
    tokens, rows, alpha = len(tokenizer), prepared_rows(8, V), 0.3
    models = [
        build_gpt2(tokens + more, 16 + 8 * i, 1, seed=i).double() for i, more in enumerate(extra, 1)
    ]  # fmt: skip
    got, peers, record, _ = step_of(
        tmp_path,
        models[0],
        None,
        rows,
        "online_distillation",
        peers=models[1:],
        tokenizer=tokenizer,
        alpha=alpha,
    )
    models = [copy.deepcopy(model).train() for model in models]
    wanted, _, heard = losses(models, rows, alpha, 2.0, True, tokens)
    for moved, loss, model in zip([got, *peers], wanted, models, strict=True):
        assert_close(moved, gradients(loss, model))
    others = [heard[0, j].item() for j in range(1, len(models))]
    assert record["forward_kl"] == pytest.approx(sum(others) / len(others), rel=1e-9)


def test_accumulation_does_not_change_the_group(tmp_path):
    models, rows = group_of(3), prepared_rows(8, V)
    found = [
        step_of(
            tmp_path, models[0], None, rows, "online_distillation", peers=models[1:], batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        for size in (8, 2, 1)
    ]  # fmt: skip
    for got, peers, *_ in found[1:]:
        for moved, want in zip([got, *peers], [found[0][0], *found[0][1]], strict=True):
            assert_close(moved, want)


def test_alpha_one_is_every_model_alone(tmp_path):
    models, rows = group_of(2), prepared_rows(8, V)
    got, peers, *_ = step_of(
        tmp_path, models[0], None, rows, "online_distillation", peers=models[1:], alpha=1.0
    )
    for moved, model in zip([got, *peers], models, strict=True):
        alone, *_ = step_of(tmp_path, model, None, rows, "fine_tuning")
        assert_close(moved, alone)


def test_peers_from_scratch_start_at_other_draws_and_are_saved(tmp_path, tokenizer):
    size = len(tokenizer)
    folder = save_model(tmp_path / "shape", build_gpt2(size), tokenizer)
    members = {"members": [folder, folder]}
    recipe = recipe_of(
        tmp_path / "run", "online_distillation", {}, learning_rate=1e-12,
        teacher=Teacher(kind="ensemble", from_scratch=True, options=members),
    )  # fmt: skip
    recipe = replace(recipe, student=Model(folder, from_scratch=True))
    rows = prepared_rows(8, size)
    fit(recipe, Parts(train=rows, tokenizer=tokenizer, device="cpu"))
    places = [tmp_path / "run", tmp_path / "run" / "peer_1", tmp_path / "run" / "peer_2"]
    weights = [AutoModelForCausalLM.from_pretrained(str(place)).transformer.wte.weight for place in places]
    for i, own in enumerate(weights):
        for other in weights[i + 1 :]:
            assert (own - other).abs().max() > 0.1
        assert len(AutoTokenizer.from_pretrained(str(places[i]))) == size
    loaded = replace(
        recipe, teacher=replace(recipe.teacher, from_scratch=False), output=str(tmp_path / "again")
    )
    fit(loaded, Parts(train=rows, tokenizer=tokenizer, device="cpu"))
    kept = AutoModelForCausalLM.from_pretrained(str(tmp_path / "again" / "peer_1")).transformer.wte.weight
    assert (kept - build_gpt2(size).transformer.wte.weight).abs().max() < 1e-6


def test_the_group_is_resumed(tmp_path):
    def parts():
        peers = [build_gpt2(V, width=24, seed=4, dropout=0.1), build_llama(V, layers=1)]
        return Parts(
            student=build_gpt2(V, dropout=0.1), peers=peers, train=prepared_rows(8, V),
            held_out=prepared_rows(4, V, seed=2), device="cpu",
        )  # fmt: skip

    assert_resumes(tmp_path, recipe_of(tmp_path, "online_distillation", {}), parts)
    assert (tmp_path / "cut" / "peer_2" / "model.safetensors").exists()


# ---- mistakes


def test_mistakes(tmp_path, tokenizer):
    rows, student = prepared_rows(8, V), build_gpt2(V)
    with pytest.raises(ModelError, match="64 logits and the teacher 80; without tokenizers nobody knows"):
        step_of(tmp_path, student, None, rows, "online_distillation", peers=[build_gpt2(80)])
    with pytest.raises(DataError, match="the model knows ids 0 to 39"):
        step_of(
            tmp_path, student, None, rows, "online_distillation", peers=[build_gpt2(40)], tokenizer=tokenizer
        )
    recipe = Recipe(method="online_distillation", student=Model("s"), output=str(tmp_path / "none"))
    assert recipe.needs_teacher
    with pytest.raises(RecipeError, match="online_distillation needs a teacher"):
        fit(recipe, Parts(student=student, train=rows, device="cpu"))
    cached = replace(recipe, teacher=Teacher(kind="remote", name="m", options={"url": "http://localhost:1"}))
    with pytest.raises(
        RecipeError, match="online_distillation trains its peers, and a remote teacher cannot"
    ):
        fit(cached, Parts(student=student, train=rows, device="cpu"))
