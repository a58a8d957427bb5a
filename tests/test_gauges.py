"""What is read of the layers in a step, against float64 by hand: norms, updates, histograms; reading alters nothing."""

import copy
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from classifiers import build_bert
from conftest import build_gpt2, build_llama, prepared_rows
from safetensors.torch import load_file
from step_reference import assert_resumes, cross_entropy, gradients, recipe_of, said_of
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import RecipeError
from llm_finetuner.gauges import BINS, PIECE, Gauges, histogram, layers_of, norms
from llm_finetuner.models.patch_forecaster import PatchForecaster, PatchForecasterConfig
from llm_finetuner.models.s4d import S4DConfig, S4DModel
from llm_finetuner.recipe import Train, Tuning
from llm_finetuner.run import read_log
from llm_finetuner.trainer import fit

V = 64
BLOCKS = ["student.transformer.h.0", "student.transformer.h.1"]
GPT2 = ["student.transformer.wte", "student.transformer.wpe", *BLOCKS, "student.transformer.ln_f"]


def watched(folder, method="fine_tuning", options=None, *, student=None, tuning="full", parts=None, **train):
    """A run that reads every step, of a GPT-2 in float64: its records."""
    recipe = recipe_of(folder, method, options or {}, **{"watch_every": 1, **train})
    recipe = replace(
        recipe, tuning=Tuning(tuning), teacher=recipe.teacher if method != "fine_tuning" else None
    )
    student = build_gpt2(V).double() if student is None else student
    given = {"student": student, "train": prepared_rows(8, V), "device": "cpu", **(parts or {})}
    return fit(recipe, Parts(**given)).history


def by_layer(named: dict[str, torch.Tensor]) -> dict[str, float]:
    """The norm of each layer of a GPT-2, from what its weights are called."""
    squares: dict[str, float] = {}
    for name, value in named.items():
        block = re.match(r"transformer\.h\.\d+", name)
        layer = f"student.{block.group() if block else name.rsplit('.', 1)[0]}"
        squares[layer] = squares.get(layer, 0.0) + float((value.detach().double() ** 2).sum())
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def reference(model) -> dict[str, torch.Tensor]:
    """The gradient of cross-entropy over the eight rows."""
    said = [said_of(model, row) for row in prepared_rows(8, V)]
    count = sum(len(targets) for _, targets, *_ in said)
    return gradients(sum(cross_entropy(z, y) for z, y, *_ in said) / count, model)


def column(record: dict, figure: str) -> dict[str, float]:
    return {name: row[figure] for name, row in record["layers"].items() if name != "total"}


# ---- against a computation by hand


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (2, 4), (3, 3)])
@pytest.mark.parametrize("clip", [0, 0.01])
def test_norms_and_updates_of_plain_descent(tmp_path, batch, accumulation, clip):
    """In any batches; gradients as they are before clipping, and the update that was made after it."""
    model = build_gpt2(V).double()
    plan = {"batch_size": batch, "gradient_accumulation_steps": accumulation, "max_grad_norm": clip}
    record = watched(tmp_path, **plan)[0]
    moved = reference(model)
    gradient, weight = by_layer(moved), by_layer(dict(model.named_parameters()))
    whole = math.hypot(*gradient.values())
    assert whole > 0.01  # or nothing is clipped
    kept = clip / (whole + 1e-6) if clip else 1.0
    assert column(record, "gradient_norm") == pytest.approx(gradient, rel=1e-9)
    assert column(record, "weight_norm") == pytest.approx(weight, rel=1e-12)
    want = {name: kept * gradient[name] / weight[name] for name in weight}
    assert column(record, "update_ratio") == pytest.approx(want, rel=1e-9)
    assert list(record["layers"]) == [*GPT2, "total"]
    total = record["layers"]["total"]
    assert total["gradient_norm"] == pytest.approx(record["grad_norm"], rel=1e-12)
    assert total["weight_norm"] == pytest.approx(math.hypot(*weight.values()), rel=1e-12)
    assert total["update_ratio"] == pytest.approx(kept * whole / total["weight_norm"], rel=1e-9)


def test_updates_of_adamw(tmp_path):
    """Its first step is -rate (g / (|g| + eps) + decay w), whose decay spares biases and norms."""
    model, rate, decay = build_gpt2(V).double(), 1e-3, 0.1
    record = watched(tmp_path, optimizer="adamw", learning_rate=rate, weight_decay=decay)[0]
    found, weights = reference(model), dict(model.named_parameters())
    moves = {
        name: rate * (g / (g.abs() + 1e-8) + (decay if g.dim() > 1 else 0.0) * weights[name])
        for name, g in found.items()
    }
    move, weight = by_layer(moves), by_layer(weights)
    want = {name: move[name] / weight[name] for name in weight}
    assert column(record, "update_ratio") == pytest.approx(want, rel=1e-6)


def test_peers_are_read_too(tmp_path):
    """Models that learn together: layers of each, and the norm of the whole group is the one that is clipped by."""
    peers = [build_gpt2(V, width=24, layers=1, seed=1).double(), build_llama(V, layers=2).double()]
    before = copy.deepcopy(peers[0])
    record = watched(
        tmp_path, "online_distillation", {"alpha": 0.5}, parts={"peers": peers}, max_grad_norm=1e-2
    )[0]
    names = list(record["layers"])
    assert names[:5] == GPT2 and "peer_1.transformer.h.0" in names and "peer_2.model.layers.1" in names
    assert record["layers"]["total"]["gradient_norm"] == pytest.approx(record["grad_norm"], rel=1e-12)
    after, block = dict(peers[0].named_parameters()), "transformer.h.0"
    pairs = [(p, after[n]) for n, p in before.named_parameters() if n.startswith(block)]
    moved = math.hypot(*((a - b).norm().item() for a, b in pairs))
    held = math.hypot(*(a.norm().item() for a, _ in pairs))
    assert record["layers"][f"peer_1.{block}"]["update_ratio"] == pytest.approx(moved / held, rel=1e-9)
    assert moved > 0


def test_of_an_adapter_only_what_trains_is_read(tmp_path):
    student = build_gpt2(V).double()
    record = watched(tmp_path, student=student, tuning="lora")[0]
    assert list(record["layers"]) == [*BLOCKS, "total"]
    assert record["layers"]["total"]["gradient_norm"] == pytest.approx(record["grad_norm"], rel=1e-6)
    read = {id(p) for found in layers_of(Alone(student)).values() for p in found}
    assert read == {id(p) for name, p in student.named_parameters() if "lora_" in name}


class Alone(nn.Module):
    """What a learner is to gauges: a student, its peers, what is trained beside them."""

    def __init__(self, student: nn.Module, beside: nn.Module | None = None):
        super().__init__()
        self.student, self.peers, self.beside = student, nn.ModuleList(), beside


def some_t5():
    config = T5Config(
        vocab_size=V, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2, num_decoder_layers=1
    )
    return T5ForConditionalGeneration(config)


S4D_PLAN = {"input_dim": 2, "model_dim": 4, "state_dim": 8, "output_dim": 1, "num_layers": 2}


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (some_t5, ["encoder.block.0", "encoder.block.1", "decoder.block.0"]),
        (build_bert, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (lambda: S4DModel(S4DConfig(**S4D_PLAN)), ["layers.0", "layers.1"]),
        (lambda: PatchForecaster(PatchForecasterConfig(hidden_size=8)), ["layers.0", "layers.1"]),
    ],
)
def test_blocks_of_every_kind_of_model(build, blocks):
    """Each weight is of one layer, a block holds all that is inside of it, and what stands outside has its own name."""
    model = build()
    layers = layers_of(Alone(model, nn.Linear(2, 2)))
    weights = [p for found in layers.values() for p in found]
    assert len({id(p) for p in weights}) == len(weights) == len(list(model.parameters())) + 2
    for block in blocks:
        inside = {id(p) for p in model.get_submodule(block).parameters()}
        assert {id(p) for p in layers[f"student.{block}"]} == inside
    numbered = [name for name in layers if re.search(r"\.\d", name)]
    assert numbered == [f"student.{block}" for block in blocks] and "beside" in layers


def test_complex_weights_count_as_pairs():
    torch.manual_seed(0)
    model = nn.Module()
    model.gain = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))
    drawn: dict = {}
    gauges = Gauges(Alone(model), 1, lambda histograms, step: drawn.update(histograms))
    loss = (model.gain * torch.randn(5, 3, dtype=torch.complex128)).abs().square().sum()
    loss.backward()
    gradient, old = model.gain.grad.clone(), model.gain.detach().clone()
    before = gauges.before(1)
    torch.optim.SGD([model.gain], lr=0.1).step()
    row = gauges.after(before)["layers"]["student"]
    size = {
        name: math.sqrt(float((x.real**2 + x.imag**2).sum())) for name, x in {"g": gradient, "w": old}.items()
    }
    want = {"gradient_norm": size["g"], "weight_norm": size["w"], "update_ratio": 0.1 * size["g"] / size["w"]}
    assert row == pytest.approx(want, rel=1e-12)
    assert sum(drawn["weights/student"].counts) == 2 * old.numel()


def test_half_precision_is_summed_in_float32():
    x = torch.full((70_000,), 3.0, dtype=torch.float16)  # whose squares add up to more than float16 holds
    assert norms({"x": [x]})["x"] == pytest.approx(3 * math.sqrt(70_000), rel=1e-5)


def test_histograms_are_those_of_numpy():
    torch.manual_seed(0)
    parts = [torch.randn(1000), torch.randn(7, 9) * 3, torch.tensor([math.inf, math.nan, 0.0])]
    whole = np.concatenate([x.flatten().numpy() for x in parts]).astype(np.float64)
    whole = whole[np.isfinite(whole)]
    counts, edges = np.histogram(whole, bins=BINS)
    got = histogram(parts)
    assert sum(got.counts) == len(whole) == 1064
    assert np.abs(np.array(got.counts) - counts).sum() <= 2  # a number on an edge, in float32
    assert got.edges == pytest.approx(edges.tolist(), rel=1e-6)
    assert (got.sum, got.sum_squares) == pytest.approx((whole.sum(), (whole**2).sum()), rel=1e-6)
    equal = histogram([torch.full((4,), 2.0)])
    assert sum(equal.counts) == 4 and (equal.edges[0], equal.edges[-1]) == (1.5, 2.5)
    assert histogram([]) is None and histogram([torch.empty(0), torch.tensor([math.nan])]) is None


def test_more_numbers_than_a_float32_counts():
    got = histogram([torch.zeros(PIECE + 3, dtype=torch.bfloat16)])
    assert sum(got.counts) == PIECE + 3


def test_what_is_not_finite_or_has_no_ratio_is_left_open():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.zeros_(model[1].weight)
    gauges = Gauges(Alone(model), 1, None)
    model[0].weight.grad = torch.tensor([[math.nan, 1.0]])
    read = gauges.after(gauges.before(1))
    rows = read["layers"]
    assert rows["student.0"]["gradient_norm"] is None and rows["student.0"]["update_ratio"] == 0
    assert rows["student.1"] == {"gradient_norm": 0, "weight_norm": 0, "update_ratio": None}
    assert rows["total"]["gradient_norm"] is None
    json.dumps(read, allow_nan=False)
    assert sum(read["histograms"]["gradients/student.0"]["counts"]) == 1  # the finite one


# ---- reading changes nothing


def test_on_and_off_are_the_same_run(tmp_path):
    """Bit for bit, with dropout and with histograms."""
    plan = {"optimizer": "adamw", "learning_rate": 1e-2, "steps": 4, "save_every": 2, "max_grad_norm": 0.1}
    logs, weights = [], []
    for name, more in {
        "off": {"watch_every": 0},
        "on": {"watch_every": 2, "trackers": ["tensorboard"]},
    }.items():
        student = build_gpt2(V, dropout=0.1)
        history = watched(
            tmp_path / name,
            "vanilla_distillation",
            student=student,
            parts={"teacher": build_llama(V)},
            **plan,
            **more,
        )
        assert ["layers" in record for record in history] == [
            name == "on" and step % 2 == 0 for step in (1, 2, 3, 4)
        ]
        changing = ("seconds", "tokens_per_second", "layers", "histograms")
        logs.append([{k: v for k, v in record.items() if k not in changing} for record in history])
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert not any(m._forward_hooks or m._backward_hooks for m in student.modules())
    assert logs[0] == logs[1]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0] | weights[1])


def test_off_holds_nothing():
    gauges = Gauges(Alone(build_gpt2(V)), 0, None)
    assert gauges.layers == {} and gauges.before(1) is None and gauges.after(None) == {}


def test_a_resumed_run_reads_the_same(tmp_path):
    recipe = replace(recipe_of(tmp_path, "fine_tuning", {}, watch_every=2), teacher=None)
    assert_resumes(
        tmp_path, recipe, lambda: Parts(student=build_gpt2(V), train=prepared_rows(8, V), device="cpu")
    )
    assert [record["step"] for record in read_log(tmp_path / "cut") if "layers" in record] == [2, 4]


# ---- mistakes


@pytest.mark.parametrize("value", [-1, 2.5, "often", True])
def test_watch_every_is_a_count(value):
    with pytest.raises(RecipeError, match="train.watch_every must be a whole number of at least 0"):
        Train(watch_every=value)


def test_a_run_too_short_to_be_read_says_so(tmp_path):
    notes: list[str] = []
    recipe = replace(recipe_of(tmp_path, "fine_tuning", {}, watch_every=5), teacher=None)
    parts = Parts(student=build_gpt2(V), train=prepared_rows(8, V), device="cpu")
    history = fit(recipe, parts, on_event=lambda kind, record: notes.append(record.get("text", ""))).history
    assert "watch_every has no effect: the run has 1 steps" in notes and "layers" not in history[0]
