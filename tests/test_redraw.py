"""Tokens hidden anew in each epoch: what decides which, that nothing else does, and what it does not go with."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from label_tokenizers import bert
from test_in_place import config
from transformers import BertForMaskedLM

from llm_finetuner.assembly import Assembly, Parts, assemble
from llm_finetuner.cli.fitting import check_task
from llm_finetuner.data import masked
from llm_finetuner.data.order import Order
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

TEXTS = [" ".join(str((7 * i + j) % 300) for j in range(4 + i % 9)) for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return bert()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return masked.prepare(datasets.Dataset.from_dict({"text": TEXTS}), tokenizer).dataset


def model(tokenizer, seed=0):
    torch.manual_seed(seed)
    sized = config(16, 2)
    sized.vocab_size = len(tokenizer)
    return BertForMaskedLM(sized).double()


def recipe_in(folder, mask="fresh", method="fine_tuning", **train) -> Recipe:
    plan = {
        "epochs": 3,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "save_every": 0,
    }
    return Recipe(
        task="masked_lm", method=method, student=Model("s"), data=Data(mask=mask), output=str(folder),
        teacher=Teacher("t") if method != "fine_tuning" else None,
        train=Train(**plan | {"warmup": 0, "schedule": "constant", "precision": "fp32"} | train),
    )  # fmt: skip


def run(folder, tokenizer, rows, resume=False, **settings):
    """(history, weights) of a run, without dropout."""
    parts = Parts(student=model(tokenizer), tokenizer=tokenizer, train=rows, device="cpu")
    done = fit(recipe_in(folder, **settings), parts, resume=resume)
    return done.history, done.tuned.model.state_dict()


def test_the_seed_the_epoch_and_the_number_decide(tokenizer, rows):
    redraw, again, other = (masked.Redraw(tokenizer, seed) for seed in (0, 0, 1))
    drawn = {epoch: [redraw(row, epoch, i) for i, row in enumerate(rows)] for epoch in range(3)}
    for epoch, shown in drawn.items():
        for i, (row, new) in enumerate(zip(rows, shown, strict=True)):
            assert (
                masked.uncovered(new) == masked.uncovered(row)
                and new["attention_mask"] == row["attention_mask"]
            )
            assert again(row, epoch, i) == new
            assert again(new, epoch, i) == new  # whatever was hidden before
            assert new["labels"][0] == new["labels"][-1] == -100
    assert drawn[0] != drawn[1] != drawn[2]
    assert [other(row, 1, i) for i, row in enumerate(rows)] != drawn[1]
    assert [redraw(row, 1, i + 1) for i, row in enumerate(rows)] != drawn[1]


def test_shares_stay_as_they_were(tokenizer):
    row = masked.prepare(
        datasets.Dataset.from_dict({"text": [" ".join(map(str, range(60)))]}), tokenizer
    ).dataset[0]
    redraw = masked.Redraw(tokenizer, 0)
    hidden = np.array([np.array(redraw(row, epoch, 0)["labels"]) != -100 for epoch in range(2000)])
    often = hidden[:, 1:-1].sum(0)  # each place alike
    assert np.all(abs(often - 300) < 5 * np.sqrt(2000 * 0.15 * 0.85))
    assert set(hidden.sum(1)) == {9}  # 15 % of 60


def test_epochs_differ_and_a_step_is_the_loss_of_what_was_redrawn(tmp_path, tokenizer, rows):
    still = {"learning_rate": 1e-12, "batch_size": 12}
    fixed, _ = run(tmp_path / "fixed", tokenizer, rows, mask="fixed", **still)
    assert [record["loss"] for record in fixed] == pytest.approx([fixed[0]["loss"]] * 3, rel=1e-9)
    fresh, _ = run(tmp_path / "fresh", tokenizer, rows, **still)
    redraw, start = masked.Redraw(tokenizer, 0), model(tokenizer).eval()
    for epoch, record in enumerate(fresh):
        total, count = 0.0, 0
        for i, row in enumerate(rows):
            shown = redraw(row, epoch, i)
            at = torch.tensor(shown["labels"]) != -100
            with torch.no_grad():
                log_p = start(torch.tensor([shown["input_ids"]])).logits[0].log_softmax(-1)
            total -= log_p[at, torch.tensor(shown["labels"])[at]].sum().item()
            count += int(at.sum())
        assert record["loss"] == pytest.approx(total / count, rel=1e-9)
    assert len({record["loss"] for record in fresh}) == 3


@pytest.mark.parametrize("cut", [{"batch_size": 2, "gradient_accumulation_steps": 2}, {"max_tokens": 30}])
def test_batches_do_not_decide(tmp_path, tokenizer, rows, cut):
    history, whole = run(tmp_path / "a", tokenizer, rows)
    other, parts = run(tmp_path / "b", tokenizer, rows, **cut)
    assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in history], rel=1e-9)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-6, atol=1e-9)


def test_a_resumed_run_sees_what_it_would_have_seen(tmp_path, tokenizer, rows):
    """Interrupted in the middle of the second epoch."""
    _, whole = run(tmp_path / "whole", tokenizer, rows, steps=8)
    run(tmp_path / "cut", tokenizer, rows, steps=5, save_every=5)
    history, resumed = run(tmp_path / "cut", tokenizer, rows, resume=True, steps=8)
    assert len(history) == 8 and all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_processes_do_not_decide(tmp_path, tokenizer, rows):
    parts = Parts(student=model(tokenizer), tokenizer=tokenizer, train=rows, device="cpu")
    built: Assembly = assemble(recipe_in(tmp_path), parts, torch.device("cpu"), print)
    lengths = [len(row["input_ids"]) for row in rows]
    for step in range(1, 7):
        seen = []
        for world in (1, 2):
            orders = (Order(lengths, 2, 4, 0, rank, world) for rank in range(world))
            batches = [numbers for order in orders for numbers, counts in order.step(step) if counts]
            found = {
                n: row for part in batches for n, row in zip(part, built.examples(part, step), strict=True)
            }
            seen.append(dict(sorted(found.items())))
        assert seen[0] == seen[1] and len(seen[0]) == 4


def test_what_it_does_not_go_with(tmp_path, tokenizer, rows):
    with pytest.raises(RecipeError, match="data.mask 'new'"):
        Data(mask="new")
    assert "data.mask has no effect" in Recipe(data=Data(mask="fresh")).warnings()[0]
    with pytest.raises(ModelError, match="needs the tokenizer"):
        fit(recipe_in(tmp_path), Parts(student=model(tokenizer), train=rows, device="cpu"))
    stored = recipe_in(tmp_path, method="vanilla_distillation")
    tuner = LLMFineTuner(
        model(tokenizer), tmp_path / "out", task="masked_lm", tokenizer=tokenizer, device="cpu"
    )
    tuner.load_model("vanilla_distillation")
    tuner.load_teacher_model(model(tokenizer, seed=1))
    prepared, _ = tuner.prepare_dataset(datasets.Dataset.from_dict({"text": TEXTS}), mask="fresh")
    tuner.setup_vanilla_distillation(temperature=2.0, alpha=0.5)
    losses = [r["forward_kl"] for r in tuner.train(prepared, num_epochs=1, batch_size=4).history]
    assert losses and all(loss > 0 for loss in losses)  # a live teacher reads what the student reads
    tuner.cache_teacher(prepared, tmp_path / "cache", k=5)
    again = LLMFineTuner(
        model(tokenizer), tmp_path / "again", task="masked_lm", tokenizer=tokenizer, device="cpu"
    )
    again.load_model("vanilla_distillation")
    again.load_teacher_model(cache=tmp_path / "cache")
    again.prepare_dataset(prepared, mask="fresh")
    again.setup_vanilla_distillation(temperature=2.0, alpha=0.5)
    with pytest.raises(RecipeError, match="stored answers are to the rows as they were") as late:
        again.train(prepared)
    kept = {"path": str(tmp_path / "cache")}
    with pytest.raises(RecipeError) as early:
        check_task(replace(stored, teacher=Teacher(kind="cached", options=kept)))
    assert early.value.what == late.value.what
