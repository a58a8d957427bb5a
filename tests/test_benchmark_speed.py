"""Sizes by hand, and measurements that are positive, interleaved and leave the models as they were."""

import pytest
import torch
from benchmark_models import prepared, texts, tiny_gpt2, tiny_llama, tiny_tokenizer

from llm_finetuner.benchmark.speed import (
    bytes_on_disk,
    cost_ratio,
    layout,
    measure,
    multiplying_parameters,
    parameters,
    peak_memory_mb,
    speed_batch,
)
from llm_finetuner.errors import DataError

VOCABULARY, WIDTH = 320, 32


def test_parameters_that_multiply_by_hand():
    tied, untied = tiny_gpt2(VOCABULARY), tiny_llama(VOCABULARY)
    # GPT-2: the table is the head and counts once; the positions (64 x 32) are looked up
    assert parameters(tied) - multiplying_parameters(tied) == 64 * WIDTH
    # Llama, untied: the input table is looked up, the head multiplies
    assert parameters(untied) - multiplying_parameters(untied) == VOCABULARY * WIDTH


def test_a_step_with_a_teacher_costs_a_third_of_the_ratio_of_sizes_more():
    student, teacher = tiny_llama(VOCABULARY, width=16), tiny_llama(VOCABULARY, width=64)
    ratio = multiplying_parameters(teacher) / multiplying_parameters(student)
    assert cost_ratio(student, teacher) == pytest.approx(1 + ratio / 3)
    assert cost_ratio(student, student) == pytest.approx(4 / 3)


def test_bytes_on_disk_counts_weights_only(tmp_path):
    model = tiny_gpt2(VOCABULARY)
    model.save_pretrained(tmp_path)
    (tmp_path / "log.jsonl").write_text("x" * 10**6)
    assert 4 * parameters(model) < bytes_on_disk(tmp_path) < 4 * parameters(model) + 10_000
    assert bytes_on_disk(tmp_path / "nowhere") is None and bytes_on_disk(None) is None


def test_memory_on_a_cpu_is_the_weights():
    model = tiny_llama(VOCABULARY)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert peak_memory_mb(model, ids) >= 4 * parameters(model) / 1e6
    assert peak_memory_mb(model.bfloat16(), ids) < 3 * parameters(model) / 1e6


def test_the_batch_fits_every_model():
    tokenizer = tiny_tokenizer()
    rows = prepared(tokenizer, texts(3))
    models = [tiny_gpt2(VOCABULARY, positions=64), tiny_llama(VOCABULARY, positions=40)]
    ids = speed_batch(rows, models, batch=4)
    assert ids.shape == (4, 20)
    assert ids[0].tolist() == [token for row in rows for token in row["input_ids"]][:20]
    with pytest.raises(DataError, match="no tokens"):
        speed_batch([], models)


def test_the_larger_model_is_slower_and_modes_are_kept():
    models = {
        "small": tiny_llama(VOCABULARY, width=16, layers=1).train(),
        "large": tiny_llama(VOCABULARY, width=256, layers=6),
    }
    found = measure(models, torch.ones(2, 32, dtype=torch.long), repeats=3, new_tokens=6)
    assert found["small"]["tokens_per_second"] > found["large"]["tokens_per_second"] > 0
    assert 0 < found["small"]["latency_ms"] < found["large"]["latency_ms"]
    assert models["small"].training


def test_models_take_turns():
    turns = []
    models = {name: tiny_gpt2(VOCABULARY, width=16, layers=1) for name in "ab"}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_args, name=name: turns.append(name))
    measure(models, torch.ones(1, 8, dtype=torch.long), repeats=2, new_tokens=2)
    changes = [turn for turn, before in zip(turns, [None, *turns], strict=False) if turn != before]
    # a warm-up ab, then ba (whose b follows a b) and ab (whose a follows an a); operations are counted last
    assert "".join(changes) == "abab" + "ab"


def test_models_that_compute_other_things_share_no_measurement():
    from llm_finetuner.benchmark.focusers import FILTERS, Filter
    from llm_finetuner.data import sar
    from llm_finetuner.data.sar_scenes import Scene
    from llm_finetuner.models.s4d import S4DConfig, S4DModel

    small = {"model_dim": 2, "state_dim": 4, "num_layers": 1}
    net, other, linear = (
        S4DModel(S4DConfig(**small, activation=name)) for name in ("gelu", "gelu", "linear")
    )
    assert layout(net) == layout(other) != layout(linear)
    filters = [Filter(S4DConfig(**small), sar.AIRBORNE, Scene(), name) for name in (*FILTERS, FILTERS[0])]
    assert layout(filters[0]) == layout(filters[2]) != layout(filters[1])
    assert layout(tiny_gpt2(VOCABULARY)) == layout(tiny_gpt2(VOCABULARY))
