"""Teachers' answers on disk for tasks beside writing text: the same step, whoever asks and in whatever batch."""

import functools

import numpy as np
import pytest
import torch
from cache_models import listed
from cache_tasks import made, nearly, read, tasks, write
from task_steps import gradient_of_step
from test_gradients import assert_close

from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import POOLED
from llm_finetuner.output import Want
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.identity import key_of, keys_of_batch, keys_of_rows
from llm_finetuner.teachers.matched import live_teacher

# ---- the same step


@tasks
def test_stored_answers_give_the_step_of_the_live_teacher(tmp_path, task):
    student, teacher, rows, context = made(task)
    step = functools.partial(
        gradient_of_step, task, tmp_path, student, rows=rows, method="vanilla_distillation", temperature=2.0,
        alpha=0.3,
    )  # fmt: skip
    want, told = step(teacher=teacher)
    write(teacher, rows, tmp_path / "c", context, mode="fp32")
    for batch, accumulation in ((8, 1), (3, 3), (1, 8)):
        got, record = step(teacher=read(tmp_path / "c", context), batch=batch, accumulation=accumulation)
        nearly(got, want, record, told)
    shuffled = rows.select(np.random.default_rng(0).permutation(len(rows)).tolist())
    got, record = step(teacher=read(tmp_path / "c", context), rows=shuffled)
    nearly(got, want, record, told)


@tasks
def test_a_row_is_found_in_a_dataset_a_list_and_any_batch(task):
    _, _, rows, context = made(task)
    keys = list(keys_of_rows(context.task, rows))
    assert keys == list(keys_of_rows(context.task, listed(rows))) and len(set(keys)) == len(rows)
    for size in (1, 3, 8):
        starts = range(0, len(rows), size)
        batches = [context.task.collate(listed(rows)[start : start + size]) for start in starts]
        assert keys == [key for batch in batches for key in keys_of_batch(context.task, batch)]
    counted = [context.task.count(context.task.collate([row])) for row in listed(rows)]
    assert [key.positions for key in keys] == counted
    nobody = context.task.collate(listed(rows)[:2], counted=False)
    assert not any(key.positions for key in keys_of_batch(context.task, nobody))


def test_the_keys_of_texts_that_a_model_continues_stay_what_they_were():
    """Folders that were written by earlier versions are read by this one."""
    row = {
        "input_ids": [5, 6, 7, 8, 9, 0, 0], "labels": [-100, -100, 7, 8, 9, -100, -100],
        "attention_mask": [1, 1, 1, 1, 1, 0, 0],
    }  # fmt: skip
    whole, content, positions, length = key_of(resolve(TASKS, "causal_lm")(), row)
    assert (whole.hex(), content.hex()) == (
        "6f29c94da3666a4c6fae5aaab497ee48",
        "aac9f45cbb38179090b1cddf2a95375b",
    )
    assert (positions, length) == (3, 5)


def test_what_an_answer_hangs_on_is_in_its_key():
    """Segments of pairs, targets that a decoder reads, and places that are asked; not labels of texts."""

    def keys(task, *rows):
        return [key_of(resolve(TASKS, task)(), {"attention_mask": [1] * 3, **row}).whole for row in rows]

    ids = {"input_ids": [2, 5, 3]}
    pair, single = {**ids, "token_type_ids": [0, 0, 1]}, {**ids, "token_type_ids": [0, 0, 0]}
    found = keys("classification", pair, single, {**ids, "labels": [1]}, {**ids, "labels": [-100]})
    assert found[0] != found[1] and len(set(found[1:])) == 1
    targets = ([7, 1], [7, 1, -100], [8, 1], [-100, 1], [7, 7, 1])
    found = keys("seq2seq_lm", *({**ids, "labels": list(target)} for target in targets))
    assert found[0] == found[1] and len(set(found)) == 4
    found = keys("masked_lm", *({**ids, "labels": told} for told in ([-100, 7, -100], [-100, -100, 7])))
    assert found[0] != found[1]


# ---- hidden states


@pytest.mark.parametrize("task", ["classification", "token_classification", "masked_lm", "seq2seq_lm"])
def test_kept_blocks_give_the_step_of_the_live_teacher_to_float16(tmp_path, task):
    """Encoders are kept at all their tokens, a decoder at the positions that count."""
    student, teacher, rows, context = made(task)
    step = functools.partial(
        gradient_of_step, task, tmp_path, student, rows=rows, method="distillation", batch=3, accumulation=3,
        objectives={"cka": 1.0, "forward_kl": 0.5}, layers=[[0, 0], [1, 1]],
    )  # fmt: skip
    write(teacher, rows, tmp_path / "c", context, layers=[0, 1])
    (want, _), (got, _) = step(teacher=teacher), step(teacher=read(tmp_path / "c", context))
    assert_close(got, want, 2**-8)
    with pytest.raises(RecipeError, match=r"blocks 1 are not in the cache .*; stored: 0"):
        write(teacher, rows, tmp_path / "less", context, layers=[0])
        step(teacher=read(tmp_path / "less", context))


@pytest.mark.parametrize("name", ["distance", "hidden_mse"])
def test_what_labels_are_read_off_is_kept(tmp_path, name):
    student, teacher, rows, context = made("classification")
    step = functools.partial(
        gradient_of_step, "classification", tmp_path, student, rows=rows, method="distillation", batch=8,
        accumulation=1, objectives={name: {"layers": "pooled"}},
    )  # fmt: skip
    write(teacher, rows, tmp_path / "c", context, layers=["pooled"])
    torch.manual_seed(0)
    want, _ = step(teacher=teacher)
    torch.manual_seed(0)
    got, _ = step(teacher=read(tmp_path / "c", context))
    assert_close(got, want, 2**-8)
    write(teacher, rows, tmp_path / "none", context)
    with pytest.raises(RecipeError, match=r"blocks pooled are not in the cache .*; stored: none"):
        step(teacher=read(tmp_path / "none", context))


def test_states_are_of_the_row_in_whatever_batch(tmp_path):
    """Kept at tokens, at texts and at answers, in folders of several shards."""
    _, teacher, rows, context = made("classification")
    write(teacher, rows, tmp_path / "c", context, layers=["pooled", 1], shard_bytes=1000)
    cache, live = read(tmp_path / "c", context), live_teacher(teacher, None, "t", context)
    assert len(cache.store.manifest["shards"]) > 2
    want = Want(layers=(POOLED, 1))
    for order in ([0, 1, 2], [5, 2, 7, 0], [3]):
        batch = context.task.collate([listed(rows)[i] for i in order])
        got, told = cache(batch, want), live(batch, want)
        for layer in want.layers:
            assert got.features[layer].shape == told.features[layer].shape
            assert torch.allclose(got.features[layer].double(), told.features[layer], rtol=1e-3, atol=1e-3)
        assert torch.equal(got.tokens, told.tokens) and torch.equal(got.targets, told.targets)


def test_blocks_that_are_not_there_cannot_be_kept(tmp_path):
    for task, layers, said in (
        ("masked_lm", ["pooled"], "pooled is what a classifier reads a text's label off: the teacher has none"),
        ("classification", [3], "names block 3: the teacher has blocks 0 to 2"),
        ("classification", ["last"], r"layers must be a list of whole numbers from 0, or pooled, got \['last'\]"),
    ):  # fmt: skip
        _, teacher, rows, context = made(task)
        with pytest.raises(RecipeError, match=said):
            write(teacher, rows, tmp_path / "c", context, layers=layers)
    assert not (tmp_path / "c").exists()


# ---- how much is kept


def test_of_few_labels_everything_is_kept(tmp_path):
    """k, or draws, of no more columns than that: each log-probability; of several labels the logits."""
    notes = []
    for task, mode in (("classification", "top_k"), ("classification", "sampled"),
                       ("multi_label_classification", "top_k"), ("multi_label_classification", "sampled")):  # fmt: skip
        _, teacher, rows, context = made(task)
        figures = write(
            teacher, rows, tmp_path / task / mode, context, mode=mode, k=2 if "multi" in task else 50,
            on_event=lambda kind, record: notes.append(record.get("text")),
        )  # fmt: skip
        assert figures["bytes_per_token"] == 12 and figures["mean_kl"] < 1e-6 and figures["top_mass"] is None
        assert figures["tokens"] == figures["rows"] == len(rows)
        cache, live = read(tmp_path / task / mode, context), live_teacher(teacher, None, "t", context)
        batch = context.task.collate(listed(rows))
        got, told = (said.head(said.rows) for said in (cache(batch, Want()), live(batch, Want())))
        told = told if "multi" in task else told.log_softmax(-1)
        assert torch.allclose(got.double(), told, atol=1e-6)
    said = [note for note in notes if note]
    assert ["every log-probability" in note or "no one distribution" in note for note in said] == [True] * 4


def test_the_best_tokens_and_the_tail_are_kept_of_many(tmp_path):
    for task in ("masked_lm", "seq2seq_lm"):
        _, teacher, rows, context = made(task)
        figures = write(teacher, rows, tmp_path / task, context, k=8)
        assert figures["bytes_per_token"] < 30 and 0 < figures["mean_kl"] < 0.1 and figures["top_mass"] < 1
        assert figures["tokens"] == sum(key.positions for key in keys_of_rows(context.task, rows))
