"""Self-distillation by early exits: gradients against a reference, and the models that stop early."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import build_gpt2, build_llama, build_tokenizer, prepared_rows
from safetensors.torch import load_file
from step_reference import (
    assert_close,
    assert_resumes,
    blocks_of,
    cross_entropy,
    gradients,
    kl,
    recipe_of,
    said_of,
    step_of,
)
from transformers import AutoModelForCausalLM

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.benchmark.text import generate
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.export.beside import exits_of, stop_early
from llm_finetuner.models.loading import load_trained
from llm_finetuner.recipe import Recipe, Tuning
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.trainer import fit

V = 64


def run(folder, student, rows, options=None, tuning="full", **train):
    recipe = recipe_of(folder, "self_distillation", options or {}, **train)
    recipe = replace(recipe, teacher=None, tuning=Tuning(tuning))
    return fit(recipe, Parts(student=student, train=rows, device="cpu"))


@pytest.mark.parametrize(("exits", "blocks"), [(None, [1]), ([0], [0]), ([2, 0], [0, 2])])
def test_gradients_of_the_student_and_of_its_exits(tmp_path, exits, blocks):
    """Cross-entropy at the end + the mean over the exits of alpha x their own + (1 - alpha) x T^2 KL(end || exit)."""
    rows, alpha, heat = prepared_rows(8, V), 0.3, 2.0
    student = build_gpt2(V, layers=4).double()
    got, _, record, _ = step_of(
        tmp_path, student, None, rows, "self_distillation", alpha=alpha, temperature=heat, exits=exits
    )
    own = copy.deepcopy(student).train()
    norms = {block: copy.deepcopy(own.transformer.ln_f) for block in blocks}
    end, count = 0.0, 0
    truth, taught = ({block: 0.0 for block in blocks} for _ in range(2))
    for row in rows:
        logits, targets, at, after = said_of(own, row, blocks=True)
        end, count = end + cross_entropy(logits, targets), count + len(targets)
        for block, norm in norms.items():
            early = own.lm_head(norm(after[block][at]))
            truth[block] = truth[block] + cross_entropy(early, targets)
            taught[block] = taught[block] + kl(early, logits.detach(), heat)
    both = sum(alpha * truth[block] + (1 - alpha) * taught[block] for block in blocks) / len(blocks)
    loss = (end + both) / count
    assert_close(got, gradients(loss, own))
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert record["cross_entropy"] == pytest.approx(end.item() / count, rel=1e-9)
    for block in blocks:
        assert record[f"exit_{block}_cross_entropy"] == pytest.approx(truth[block].item() / count, rel=1e-9)
        assert record[f"exit_{block}_forward_kl"] == pytest.approx(taught[block].item() / count, rel=1e-9)
    saved = exits_of(next(tmp_path.iterdir()))
    assert sorted(saved) == blocks
    for block, norm in norms.items():
        moved = {name: p.detach() - saved[block][name] for name, p in norm.named_parameters()}
        assert_close(moved, gradients(loss, norm))


@pytest.mark.parametrize("build", [lambda: build_gpt2(V, layers=3), lambda: build_llama(V, layers=3)])
def test_a_model_that_stops_early_says_what_training_saw(tmp_path, build):
    """The exit's cross-entropy in step 2 is that of the model cut out after step 1."""
    rows, options, short = prepared_rows(8, V), {"exits": [0, 1]}, {"learning_rate": 0.1}
    run(tmp_path / "one", build().double(), rows, options, steps=1, **short)
    record = run(tmp_path / "two", build().double(), rows, options, steps=2, **short).history[1]
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "one"))
    assert model.dtype == torch.float64
    exits = exits_of(tmp_path / "one")
    ids = torch.tensor([rows[0]["input_ids"]])
    for block in (0, 1):
        early = stop_early(model, tmp_path / "one", block)
        assert len(blocks_of(early)) == block + 1
        nll = evaluate(CausalLM(), early, rows).loss
        assert nll == pytest.approx(record[f"exit_{block}_cross_entropy"], rel=1e-7)
        kept: list = []
        hook = blocks_of(model)[block].register_forward_hook(lambda _m, _i, o, kept=kept: kept.append(o))
        model.eval()(ids)
        hook.remove()
        hidden = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        norm = copy.deepcopy(
            model.transformer.ln_f if "gpt2" in model.config.model_type else model.model.norm
        )
        norm.load_state_dict(exits[block])
        with (
            torch.no_grad()
        ):  # the same products in float64; where a tensor lies in memory moves the last bit
            difference = early.eval()(ids).logits - model.lm_head(norm(hidden))
            assert difference.abs().max() <= 1e-14


def test_it_is_a_plain_model_that_writes_and_is_saved(tmp_path):
    tokenizer = build_tokenizer()
    student = build_gpt2(len(tokenizer), layers=3)
    rows = prepared_rows(8, len(tokenizer))
    run(tmp_path / "run", student, rows, {"exits": [1]}, learning_rate=0.1)
    early = stop_early(student, tmp_path / "run", 1)
    assert len(generate(early, tokenizer, ["the red cat"], max_new_tokens=5)) == 1
    early.save_pretrained(str(tmp_path / "early"))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "early")).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    assert torch.equal(again(ids).logits, early.eval()(ids).logits)
    assert len(student.transformer.h) == 3  # the model that was cut stays whole


def test_exits_of_an_adapted_model(tmp_path):
    rows = prepared_rows(8, V)
    build_gpt2(V, layers=3).save_pretrained(str(tmp_path / "base"))
    student = AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"))
    one = run(tmp_path / "run", student, rows, {"exits": [1]}, "lora", steps=2, learning_rate=0.1)
    assert one.history[1]["exit_1_cross_entropy"] != one.history[0]["exit_1_cross_entropy"]
    model = load_trained(str(tmp_path / "run"), merge=True, device="cpu")
    ids = torch.tensor([rows[0]["input_ids"]])
    exits = exits_of(tmp_path / "run")
    with torch.no_grad():
        got = stop_early(model, tmp_path / "run", 1).eval()(ids).logits
        hidden = student.eval()(ids, output_hidden_states=True).hidden_states[2]
        norm = copy.deepcopy(student.transformer.ln_f)
        norm.load_state_dict(exits[1])
        want = student.lm_head(norm(hidden))
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_exits_are_resumed(tmp_path, tuning):
    recipe = recipe_of(tmp_path, "self_distillation", {"exits": [0]})
    recipe = replace(recipe, teacher=None, tuning=Tuning(tuning))
    assert_resumes(
        tmp_path, recipe,
        lambda: Parts(student=build_gpt2(V, dropout=0.1), train=prepared_rows(8, V), device="cpu"),
    )  # fmt: skip
    assert load_file(tmp_path / "cut" / "exits.safetensors").keys() == {"0.weight", "0.bias"}


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "depth"}, "by must be exits or average, got 'depth'"),
        ({"by": "average", "exits": [0]}, "exits have no effect with by=average"),
        ({"by": "average", "decay": 1.5}, "decay must be a number between 0 and 1"),
        ({"exits": []}, r"exits must be a list of block numbers, got \[\]"),
        ({"exits": 3}, "exits must be a list of block numbers, got 3"),
        ({"exits": "last"}, "exits must be a list of block numbers, got 'last'"),
    ],
)
def test_mistakes_in_the_method(options, said):
    with pytest.raises(RecipeError, match=said):
        Recipe(method="self_distillation", options=options)


@pytest.mark.parametrize("exits", [[1], [2], [-1], [True], ["0"], [[0, 1]]])
def test_exits_that_are_no_early_blocks(tmp_path, exits):
    with pytest.raises(RecipeError, match="exits names block .* after blocks 0 to 0"):
        run(tmp_path, build_gpt2(V), prepared_rows(8, V), {"exits": exits})


def test_a_model_of_one_block_cannot_stop_early(tmp_path):
    with pytest.raises(RecipeError, match="the student has one block"):
        run(tmp_path, build_gpt2(V, layers=1), prepared_rows(8, V))


def test_exits_that_are_not_there(tmp_path):
    student, rows = build_gpt2(V, layers=3), prepared_rows(8, V)
    run(tmp_path, student, rows, {"exits": [0]})
    with pytest.raises(ModelError, match="no exit after block 1\nits exits: 0"):
        stop_early(student, tmp_path, 1)
    run(tmp_path, student, rows, {"by": "average"})
    with pytest.raises(ModelError, match="no exit after block 0\nits exits: none"):
        stop_early(student, tmp_path, 0)  # those of the run before are gone
