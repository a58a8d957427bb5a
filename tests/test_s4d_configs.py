"""S4D by the names of the guide, by presets, and by the settings of a recipe."""

import re
from pathlib import Path

import pytest
import torch
from s4d_models import apart, signal

from llm_finetuner.errors import RecipeError
from llm_finetuner.models.build import drawn, empty
from llm_finetuner.models.build_s4d import s4d
from llm_finetuner.models.s4d import S4DConfig, S4DModel, parameter_count
from llm_finetuner.models.s4d_configs import PRESETS, get_model_from_configs

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "state_space.md").read_text(encoding="utf-8")
SMALL = {"name": "s4_ssm", "input_dim": 2, "model_dim": 6, "state_dim": 8, "output_dim": 1, "num_layers": 2}


def test_the_snippet_of_the_guide_runs(tmp_path):
    student_config = {**SMALL, "use_selectivity": False, "complex_valued": True}
    trained = get_model_from_configs(**student_config)
    torch.save(trained.state_dict(), tmp_path / "final_student_model.pth")
    model = get_model_from_configs(**student_config)
    model.load_state_dict(torch.load(tmp_path / "final_student_model.pth"))
    model.eval()
    x = signal(model, 2, 20)
    with torch.no_grad():
        assert torch.equal(model(x), trained.eval()(x))


def test_selectivity_is_not_dropped():
    on, off = (get_model_from_configs(**SMALL, use_selectivity=use) for use in (True, False))
    assert (on.config.gate, off.config.gate) == ("channel", "off")
    held = {name: weight for name, weight in on.state_dict().items() if ".gate." not in name}
    assert len(held) < len(on.state_dict())
    off.load_state_dict(held)
    x = signal(on, 1, 30)
    assert apart(on(x), off(x)) > 1e-3
    assert get_model_from_configs(**SMALL).config.gate == S4DConfig().gate


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dropout": 0.1}, r"unknown setting 'dropout' of s4_ssm\nknown: name, use_selectivity, input_dim, model_dim"),
        ({"modeldim": 3}, r"unknown setting 'modeldim' of s4_ssm\ndid you mean 'model_dim'\?"),
        ({"name": "s5"}, r"unknown model 's5'\nname: one of s4_ssm, s4d"),
        ({"use_selectivity": True, "gate": "off"}, "use_selectivity=True and gate='off' say the same thing"),
        ({"use_selectivity": "no"}, "use_selectivity must be true or false, got 'no'"),
        ({"state_dim": 7}, "state_dim must be even"),
        ({"input_scale": [1.0, 2.0, 3.0]}, "input_scale must be a list of 2 numbers"),
        ({"input_scale": 2.0}, "input_scale must be a list of 2 numbers"),
        ({"output_scale": [0.0]}, "output_scale must be a number above 0"),
        ({"output_scale": [float("inf")]}, "output_scale must be a number above 0"),
        ({"output_scale": [float("nan")]}, "output_scale must be a number above 0"),
    ],
)  # fmt: skip
def test_unknown_settings_are_refused_by_name(wrong, message):
    with pytest.raises(RecipeError, match=message):
        get_model_from_configs(**{**SMALL, **wrong})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_sizes_of_the_guide(name):
    model = empty(s4d, {"preset": name})
    config = model.config
    assert (config.input_dim, config.output_dim, config.complex_valued) == (2, 1, True)
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(config)
    sizes = {
        "teacher": (64, 540, 6),
        "standard": (64, 540, 6),
        "compressed": (32, 256, 4),
        "tiny": (24, 128, 3),
    }
    assert (config.model_dim, config.state_dim, config.num_layers) == sizes[name]
    assert config.gate == ("channel" if name == "teacher" else "off")


def test_what_is_given_goes_before_the_preset():
    model = s4d(preset="compressed", model_dim=40, state_dim=320, num_layers=5)
    assert (model.config.model_dim, model.config.state_dim, model.config.num_layers) == (40, 320, 5)
    assert model.config.gate == "off"
    with pytest.raises(RecipeError, match="unknown preset 'small'"):
        s4d(preset="small")


def test_weights_are_drawn_from_the_seed():
    shape = {"preset": "tiny", "model_dim": 4, "state_dim": 6}
    one, same, other = (drawn(s4d, seed, shape) for seed in (1, 1, 2))
    assert isinstance(one, S4DModel)
    assert torch.equal(one.read_in.weight, same.read_in.weight)
    assert not torch.equal(one.read_in.weight, other.read_in.weight)


def test_scales_among_weights_go_before_those_of_the_configuration(tmp_path):
    sizes = {"model_dim": 4, "state_dim": 6, "num_layers": 1}
    model, other = S4DModel(S4DConfig(**sizes, input_scale=[2.0, 3.0])), S4DModel(S4DConfig(**sizes))
    model.load_state_dict(other.state_dict())
    assert model.config.input_scale == [1.0, 1.0] and model.config.output_scale is None
    model.save_pretrained(tmp_path)
    assert S4DModel.from_pretrained(tmp_path).input_scale.tolist() == [1.0, 1.0]


# ---- what the page says


@pytest.mark.parametrize(
    "block", re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL), ids=["ways", "names", "transfer"]
)
def test_snippets_of_the_page_run(block):
    exec(block, {})


def test_the_page_counts_parameters_right():
    most = parameter_count(S4DConfig(**PRESETS["teacher"]))
    for name, settings in PRESETS.items():
        count = parameter_count(S4DConfig(**settings))
        fewer = f"{100 * (1 - count / most):.1f} % " if name != "teacher" else ""
        assert f"| `{settings['gate']}` | {count:,} | {fewer}|" in PAGE
    for gate, share in (("shared", "2.6 %"), ("layer", "13.8 %"), ("channel", "17.5 %")):
        count = parameter_count(S4DConfig(gate=gate))
        off = parameter_count(S4DConfig(gate="off"))
        assert f"{100 * (1 - off / count):.1f} %" == share and f"`{gate}`" in PAGE and share in PAGE
