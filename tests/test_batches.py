"""How the examples of a step are cut into batches by a budget of tokens: what a process gets, and equal gradients."""

import copy
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from safetensors.torch import load_file
from step_reference import assert_close, assert_resumes, recipe_of

from llm_finetuner.assembly import Parts
from llm_finetuner.data.layout import share_rows
from llm_finetuner.data.order import Order
from llm_finetuner.errors import RecipeError
from llm_finetuner.output import Want
from llm_finetuner.recipe import Recipe, Teacher, Train
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.trainer import fit

V = 64
TASK = CausalLM()
LENGTHS = [5 + (i * 37) % 90 for i in range(61)]
KINDS = {
    "response": {"cross_entropy": 0.4, "jsd": 0.3, "forward_kl": {"weight": 0.3, "temperature": 2.0}},
    "features": {
        "hidden_mse": 1.0,
        "hidden_cosine": 0.5,
        "hidden_normalized": 0.5,
        "cka": 0.5,
        "embedding_mse": 0.5,
    },
    "attention": {"attention_mse": 1.0, "attention_kl": 0.5},
    "states": {"value_relation": {"weight": 1.0, "of": ["query", "key", "value"]}},
    "relations": {"distance": 1.0, "angle": 1.0, "similarity": 1.0, "token_relation": 1.0},
}
WAYS = [{"max_tokens": 30}, {"packing": True}, {"max_tokens": 34, "packing": True}]


def gradient(folder, student, teacher, rows, method, options=None, peers=(), tokenizer=None, **train):
    """(gradients of the student and of every peer in one step over 8 rows, the step's record)."""
    models = [copy.deepcopy(model) for model in (student, *peers)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    folder = folder / f"{method}{len(list(folder.iterdir()))}"
    recipe = replace(
        recipe_of(folder, method, options or {}, **train), teacher=Teacher("t") if teacher else None
    )
    parts = Parts(
        student=models[0], teacher=teacher, peers=models[1:], train=rows, tokenizer=tokenizer,
        device="cpu",
    )  # fmt: skip
    record = fit(recipe, parts).history[0]
    moved = [
        {f"{i} {name}": was[name] - new for name, new in model.state_dict().items()}
        for i, (was, model) in enumerate(zip(before, models, strict=True))
    ]
    return {name: g for one in moved for name, g in one.items()}, record


# ---- which examples stand in which batch


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("budget", [1, 60, 250, 10**6])
def test_a_batch_stays_within_the_budget(packed, budget):
    order = Order(LENGTHS, 4, 16, seed=3, max_tokens=budget, packed=packed)
    plain = Order(LENGTHS, 4, 16, seed=3)
    for number in range(1, 2 * order.steps_per_epoch + 1):
        batches = [numbers for numbers, counts in order.step(number) if counts]
        for numbers in batches:
            sizes = [LENGTHS[n] for n in numbers]
            rows = len(share_rows(sizes)[0]) if packed else len(sizes)
            assert rows * max(sizes) <= budget or len(numbers) == 1
        want = Counter(n for numbers, _ in plain.step(number) for n in numbers)
        assert Counter(n for numbers in batches for n in numbers) == want
        assert len(batches) == 1 or budget < 10**6


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_step_and_its_number_of_batches(world, packed):
    ranks = [
        Order(LENGTHS, 4, 16, seed=1, rank=r, world=world, max_tokens=100, packed=packed)
        for r in range(world)
    ]
    plain, uneven = Order(LENGTHS, 4, 16, seed=1), False
    for number in range(1, plain.steps_per_epoch + 1):
        shares = [rank.step(number) for rank in ranks]
        want = Counter(n for numbers, _ in plain.step(number) for n in numbers)
        assert Counter(n for share in shares for numbers, counts in share if counts for n in numbers) == want
        assert len({len(share) for share in shares}) == 1
        uneven |= not all(counts for share in shares for _, counts in share)
    assert uneven  # some process had a stand-in


@pytest.mark.parametrize("most", [None, 1, 3])
def test_rows_are_shared(most):
    rows, left = share_rows(LENGTHS, most)
    assert sorted([n for row in rows for n in row] + left) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[n] for n in row) <= max(LENGTHS) for row in rows)
    assert (not left and len(rows) * max(LENGTHS) < 1.2 * sum(LENGTHS)) if most is None else len(rows) == most


# ---- the same gradients


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_term_has_the_gradients_of_plain_batches(tmp_path, kind, way):
    student, teacher = build_gpt2(V, layers=3).double(), build_gpt2(V, width=24, layers=4, seed=5).double()
    rows, options = prepared_rows(8, V), {"objectives": KINDS[kind]}
    want, plain = gradient(tmp_path, student, teacher, rows, "distillation", options)
    got, record = gradient(tmp_path, student, teacher, rows, "distillation", options, **way)
    assert_close(got, want, 1e-12)
    assert record.keys() == plain.keys()
    for name in record.keys() - {"seconds", "tokens_per_second", "padding"}:
        assert record[name] == (plain[name] and pytest.approx(plain[name], rel=1e-10)), name


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("rows", [9, 3])
def test_the_last_step_and_steps_of_two_sizes(tmp_path, way, rows):
    """Nine rows, eight a step: the second step has one row, and a batch of one."""
    student, teacher = build_gpt2(V).double(), build_llama(V).double()
    found = [
        gradient(
            tmp_path, student, teacher, prepared_rows(rows, V), "vanilla_distillation", steps=3, **chosen
        )[0]
        for chosen in ({}, way)
    ]
    assert_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_is_resumed(tmp_path, way):
    recipe = recipe_of(tmp_path / "r", "vanilla_distillation", {}, **way)
    rows, teacher = prepared_rows(21, V), build_gpt2(V, seed=4)
    assert_resumes(tmp_path, recipe, lambda: Parts(
        student=build_gpt2(V, dropout=0.1), teacher=teacher, train=rows, device="cpu"
    ))  # fmt: skip


@pytest.mark.slow
def test_two_packed_processes_equal_a_plain_one(tmp_path):
    """DDP over gloo in float64: two epochs of seven rows a step, by processes whose budgets cut them differently."""
    found = []
    for way, processes in (
        ("plain", []),
        ("packed", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        script = str(Path(__file__).with_name("batches_script.py"))
        path = os.pathsep.join([str(Path(script).parent), str(Path(script).parents[1])])
        done = subprocess.run(
            [sys.executable, *processes, script, str(tmp_path / way), way], capture_output=True, text=True,
            timeout=300, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(load_file(tmp_path / way / "model.safetensors"))
    one, two = found
    assert one.keys() == two.keys() and max((one[name] - two[name]).abs().max() for name in one) < 1e-9


# ---- what is read and computed


def rows_of(*sizes: int, tail: int = 0, prompt: int = 1):
    """Rows whose first `prompt` and last `tail` tokens do not count."""
    ids = [[(7 * i + j) % V for j in range(size)] for i, size in enumerate(sizes)]
    labels = [[-100] * prompt + x[prompt : len(x) - tail] + [-100] * tail for x in ids]
    return [
        {"input_ids": x, "attention_mask": [1] * len(x), "labels": y}
        for x, y in zip(ids, labels, strict=True)
    ]


def test_what_is_computed_and_what_of_it_is_padding():
    """A token that only has to be predicted is not read: rows of 9, 5 and 4 tokens are 8, 4 and 3."""
    rows = rows_of(9, 5, 4)
    assert TASK.cost(TASK.collate(rows)) == (15, 24)
    assert TASK.cost(TASK.collate(rows, packed=True)) == (15, 16)
    assert TASK.cost(TASK.collate(rows_of(9, 5, 4, tail=2))) == (9, 18)


def test_the_record_says_the_share_of_padding(tmp_path):
    student, rows = build_gpt2(V), datasets.Dataset.from_list(rows_of(9, 5, 4))
    for way, want in (({}, 1 - 15 / 24), ({"packing": True}, 1 / 16), ({"max_tokens": 10}, 1 - 15 / 16)):
        record = gradient(tmp_path, student, None, rows, "fine_tuning", **way)[1]
        assert record["padding"] == pytest.approx(want)


@pytest.mark.parametrize("packed", [False, True])
def test_what_nobody_asks_for_is_not_computed(packed):
    model, seen = build_gpt2(V).double().eval(), []
    model.transformer.h[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[:2]))
    batch = TASK.collate(rows_of(12, 7, tail=4), packed=packed)
    said = TASK.run(model, batch, Want())
    assert seen == [
        (2, 7)
    ]  # 7 and 2 tokens: 12 - 1 - 4 and 7 - 1 - 4, none of which fits beside the longer one
    whole = model(input_ids=batch["input_ids"]).logits
    want = torch.cat([whole[0, :7], whole[1, :2]])
    assert (said.head(said.rows) - want).abs().max() < 1e-12


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_stand_in_counts_nothing(way):
    model = build_gpt2(V).double()
    batch = TASK.collate(rows_of(9, 5), counted=False, packed="packing" in way)
    said = TASK.run(model, batch, Want(layers=(0,), states=(1,), embeddings=True))
    assert len(said.rows) == len(said.targets) == len(said.features[0]) == 0 and TASK.count(batch) == 0
    said.rows.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# ---- mistakes


def test_settings_that_cannot_be():
    with pytest.raises(RecipeError, match="train.max_tokens must be a whole number of at least 1, got 0"):
        Train(max_tokens=0)
    with pytest.raises(RecipeError, match="on_policy_distillation and train.max_tokens"):
        Recipe(method="on_policy_distillation", teacher=Teacher("t"), train=Train(max_tokens=100))
