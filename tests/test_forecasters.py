"""Forecasters: units of a window, patches, prompts, quantiles, the closed form, and a folded Time-LLM."""

import numpy as np
import pytest
import torch

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.models import build, prompt
from llm_finetuner.models.fold import fold
from llm_finetuner.models.forecaster import patches, point
from llm_finetuner.models.linear_forecaster import LinearForecaster, LinearForecasterConfig, fit_closed_form
from llm_finetuner.models.naive import Naive, NaiveConfig
from llm_finetuner.registry import options_of

NEED = {"lookback": 32, "horizon": 6, "description": "loads of a transformer"}
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0, "patch_length": 8, "stride": 4}
TIME = {**SMALL, "prototypes": 5, "heads": 2, "head_width": 4, "read": 8}
KINDS = {
    "linear": {}, "patch": SMALL, "time_llm": TIME, "gpt2": {**TIME, "backbone": "gpt2"},
    "llama": {**TIME, "backbone": "llama"},
}  # fmt: skip


def built(kind: str, need: dict = NEED, seed: int = 0):
    make = getattr(build, kind if kind in ("linear", "patch") else "time_llm")
    asked = {name: value for name, value in need.items() if name in options_of(make)}
    model = build.drawn(make, seed, {**asked, **KINDS[kind]}).eval()
    with torch.no_grad():
        for weight in model.parameters():  # a line begins at zero, and would agree with anything
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    return model


def windows(count: int = 7, length: int = 32, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    steps = torch.arange(length) / 4
    return (
        5
        + 3 * torch.sin(steps + torch.rand(count, 1, generator=draw) * 6)
        + torch.randn(count, length, generator=draw)
    )


@pytest.fixture(params=KINDS)
def model(request):
    return built(request.param)


def test_a_forecast_never_depends_on_its_neighbours(model):
    context = windows()
    with torch.no_grad():
        together = model(context).values
        alone = torch.cat([model(context[i : i + 1]).values for i in range(len(context))])
    assert together.shape == (7, 6)
    assert torch.allclose(together, alone, atol=1e-5)


def test_level_and_scale_go_through(model):
    context = windows().double()
    model.double()
    with torch.no_grad():
        plain = model(context).values
        for a, b in ((2.0, 3.0), (0.01, -700.0), (1e4, 0.0)):
            moved = model(a * context + b).values
            assert torch.allclose(moved, a * plain + b, rtol=0, atol=a * 1e-4)


def test_a_flat_window_is_forecast_as_its_level(model):
    with torch.no_grad():
        for level in (0.0, 7.25, -1e6):
            said = model(torch.full((2, 32), level)).values
            assert torch.equal(said, torch.full_like(said, level))


def test_gradients_reach_every_weight(model):
    model.train()
    model(windows(16)).values.square().sum().backward()
    unread = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not unread


def test_saved_and_loaded_it_says_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(windows()).values, model(windows()).values)


@pytest.mark.parametrize("kind", ["linear", "patch", "time_llm"])
def test_quantiles_never_cross_and_the_median_is_the_point(kind):
    levels = [0.1, 0.25, 0.5, 0.9]
    with torch.no_grad():
        said = built(kind, {**NEED, "quantiles": levels})(windows()).values
    assert said.shape == (7, 6, 4)
    assert (said.diff(dim=-1) >= 0).all()
    assert torch.equal(point(said, levels), said[..., 2])


@pytest.mark.parametrize("quantiles", [[0.1, 0.9], [0.5, 0.1], [0.0, 0.5], [0.5, 0.5]])
def test_levels_that_are_none_are_refused(quantiles):
    with pytest.raises(RecipeError, match="quantiles must be levels"):
        built("patch", {**NEED, "quantiles": quantiles})


def test_patches_overlap_and_the_last_value_is_repeated():
    found = patches(torch.arange(10.0)[None], 4, 2)
    assert found.tolist() == [[[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 9, 9]]]


def test_mistakes_of_a_shape_are_told():
    with pytest.raises(RecipeError, match="longer than lookback"):
        build.patch(lookback=32, patch_length=64)
    with pytest.raises(RecipeError, match="cannot be shared"):
        build.patch(hidden_size=10, num_heads=4)
    with pytest.raises(RecipeError, match="no description"):
        build.time_llm(lookback=32, horizon=6)


# ---- the closed form


def test_the_closed_form_finds_the_line_that_made_the_data():
    draw = np.random.default_rng(0)
    line = draw.normal(size=(4, 12))
    x = draw.normal(size=(400, 12)) * 3 + 50
    level = x.mean(1, keepdims=True)
    y = level + (x - level) @ line.T
    model = LinearForecaster(LinearForecasterConfig(lookback=12, horizon=4)).double()
    fit_closed_form(model, [(x[:250], y[:250]), (x[250:], y[250:])], ridge=1e-12)
    with torch.no_grad():
        assert np.abs(model(torch.from_numpy(x)).values.numpy() - y).max() < 1e-6


def test_the_closed_form_is_ridge_regression():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(50, 8)), draw.normal(size=(50, 3))
    model = LinearForecaster(LinearForecasterConfig(lookback=8, horizon=3)).double()
    fit_closed_form(model, [(x, y)], ridge=0.3)
    level = x.mean(1, keepdims=True)
    a, b = x - level, y - level
    strength = 0.3 * (a**2).sum() / 8
    want = np.linalg.inv(a.T @ a + strength * np.eye(8)) @ a.T @ b
    assert np.abs(model.linear.weight.detach().numpy().T - want).max() < 1e-10


def test_the_closed_form_forecasts_one_number_a_step():
    model = LinearForecaster(LinearForecasterConfig(lookback=8, horizon=3, quantiles=[0.1, 0.5, 0.9]))
    with pytest.raises(RecipeError, match="one number a step"):
        fit_closed_form(model, [(np.zeros((2, 8)), np.zeros((2, 3)))])


def test_naive_forecasts_repeat():
    context = torch.arange(12.0)[None]
    last = Naive(NaiveConfig(lookback=12, horizon=5))
    season = Naive(NaiveConfig(lookback=12, horizon=5, season=4))
    assert last(context).values.tolist() == [[11, 11, 11, 11, 11]]
    assert season(context).values.tolist() == [[8, 9, 10, 11, 8]]


# ---- the prompt


def test_a_season_that_the_look_back_does_not_hold_is_refused():
    with pytest.raises(RecipeError, match="season 52 is longer than look-back 36") as caught:
        build.seasonal_naive(lookback=36, horizon=24, season=52)
    assert "--lookback 52" in caught.value.hint


def test_lags_are_periods_and_never_lag_0():
    steps = torch.arange(96.0)
    wave = torch.sin(2 * torch.pi * steps / 24)[None]
    assert prompt.lags(wave - wave.mean())[0].tolist() == [24, 48, 0]
    line = torch.linspace(-1, 1, 96)[None]
    assert prompt.lags(line)[0].tolist() == [0, 0, 0]


def test_statistics_are_what_they_are_called():
    z = torch.tensor([[-1.94, 0.06, 0.5, 2.27]])
    found = {name: int(value) for name, value in prompt.statistics(z).items()}
    assert (found["min.sign"], found["min.units"], found["min.tenths"]) == (1, 1, 9)
    assert (found["max.sign"], found["max.units"], found["max.tenths"]) == (0, 2, 3)
    assert found["trend.sign"] == 0 and found["min.bucket"] < found["median.bucket"] < found["max.bucket"]


def test_a_prompt_in_words_can_be_read_back(tokenizer):
    slots = prompt.of_text(tokenizer, "oil temperature", 96, 24)
    wave = torch.sin(2 * torch.pi * torch.arange(96.0) / 12)[None]
    ids = prompt.token_ids(slots, wave)
    told = tokenizer.decode(ids[0]).replace(" ", "")
    assert "oiltemperature" in told and "next24steps" in told and "previous96steps" in told
    assert "minvalue-1.0" in told and "maxvalue+1.0" in told and "toplagsare12,24,36" in told


def test_a_pretrained_backbone_keeps_its_weights_and_its_first_blocks(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    whole = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shape = {
        "backbone": str(tmp_path),
        "num_layers": 2,
        "prototypes": 5,
        "patch_length": 8,
        "stride": 4,
        "read": 8,
    }
    model = build.drawn(build.time_llm, 0, {**NEED, **shape})
    kept = model.backbone.state_dict()
    assert len(model.backbone.encoder.layer) == 2
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in kept.items())
    assert model(windows()).values.shape == (7, 6)
    with pytest.raises(ModelError, match="reads 256 positions"):
        build.time_llm(**{**NEED, **shape, "description": "words " * 300})


KIN = {
    "Qwen2": {"num_key_value_heads": 1}, "Gemma3Text": {"num_key_value_heads": 1, "head_dim": 8},
    "ModernBert": dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "Roberta": {}, "GPTNeoX": {},
}  # fmt: skip


@pytest.mark.parametrize("family", KIN)
def test_backbones_of_other_families(family, tmp_path, tokenizer):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{family}Config")
    config = config(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **KIN[family])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shape = {
        "backbone": str(tmp_path),
        "prototypes": 5,
        "patch_length": 8,
        "stride": 4,
        "read": 8,
        "num_layers": 1,
    }
    model = build.drawn(build.time_llm, 0, {**NEED, **shape}).eval()
    context = windows()
    with torch.no_grad():
        for weight in model.parameters():  # its last layer begins at zero
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        said = model(context).values
        alone = torch.cat([model(window[None]).values for window in context])
        assert (said - alone).abs().max() < 1e-5 and said.std(0).min() > 0.1
        assert (fold(model)(context).values - said).abs().max() < 1e-5


def test_a_backbone_without_attention_is_refused(tmp_path, tokenizer):
    from transformers import MambaConfig, MambaModel

    MambaModel(MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model without attention"):
        build.time_llm(**NEED, backbone=str(tmp_path))


# ---- folding


@pytest.mark.parametrize("kind", ["time_llm", "gpt2", "llama"])
def test_folded_it_says_the_same_with_fewer_weights(kind, tmp_path):
    model = built(kind, {**NEED, "quantiles": [0.1, 0.5, 0.9]})
    folded = fold(model)
    context = windows(64)
    with torch.no_grad():
        assert (folded(context).values - model(context).values).abs().max() < 1e-5
    assert folded.num_parameters() < model.num_parameters()
    folded.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(context).values, folded(context).values)
    with pytest.raises(ModelError, match="nothing to fold"):
        fold(folded)


def test_folding_keeps_only_the_tokens_that_a_prompt_can_hold(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    shape = {"backbone": str(tmp_path), "prototypes": 5, "patch_length": 8, "stride": 4, "read": 8}
    model = build.drawn(build.time_llm, 0, {**NEED, **shape}).eval()
    folded = fold(model)
    assert folded.words.num_embeddings < 80 < len(tokenizer)
    context = windows(200, seed=5)
    with torch.no_grad():
        assert (folded(context).values - model(context).values).abs().max() < 1e-5
