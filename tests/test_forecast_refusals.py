"""What a forecaster cannot learn or be judged by is said before it is trusted, by every door."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from conftest import build_tokenizer
from test_forecast_facade import QUICK, tuner
from test_forecasters import SMALL, TIME
from test_forecasting import SIZES, recipe, source, table  # noqa: F401  a fixture

from finetune_cli import LLMFineTuner
from llm_finetuner.benchmark import speed
from llm_finetuner.cli.app import main
from llm_finetuner.comparison import compare_run
from llm_finetuner.errors import ModelError, OrderError, RecipeError
from llm_finetuner.models import build
from llm_finetuner.trainer import fit


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher and its folder."""
    found = tuner(tmp_path_factory.mktemp("taught"))
    found.load_model()
    found.fit(table(400), **QUICK)
    return found


# ---- terms that read hidden states


@pytest.mark.parametrize("options", [{"feature_weight": 1.0}, {"relation_weight": 1.0}])
def test_a_student_without_blocks_learns_no_hidden_states(tmp_path, source, taught, options):  # noqa: F811
    teacher = {"name": taught.recipe.output}
    with pytest.raises(RecipeError, match="hidden states of blocks are compared, and the student has none"):
        fit(
            recipe(
                tmp_path / "run",
                source,
                teacher=teacher,
                student={"name": "linear", "shape": {}},
                options=options,
            )
        )
    run = tuner(tmp_path / "facade", "linear")
    run.load_model("forecast_distillation")
    run.load_teacher_model(taught.recipe.output)
    with pytest.raises(RecipeError, match="the student has none"):
        run.setup_forecast_distillation(**options)


def test_patches_that_are_cut_otherwise_are_not_compared(tmp_path, source, taught):  # noqa: F811
    student = {"shape": {**SMALL, "patch_length": 4, "stride": 2}}
    chosen = recipe(
        tmp_path / "run", source, teacher={"name": taught.recipe.output}, student=student,
        options={"feature_weight": 1.0},
    )  # fmt: skip
    with pytest.raises(ModelError, match="hidden_mse compares .* cut what they read differently"):
        fit(chosen)


def test_one_channel_has_no_relations(tmp_path, taught):
    run = tuner(tmp_path / "run", shape={**SMALL, "num_layers": 1})
    run.load_model("forecast_distillation")
    run.load_teacher_model(taught.recipe.output)
    run.setup_forecast_distillation(relation_weight=1.0)
    with pytest.raises(RecipeError, match="token_relation compares the channels of a window"):
        run.fit(table(300, channels=1), **QUICK)


def test_states_that_cannot_be_computed_anew(tmp_path, source):  # noqa: F811
    with pytest.raises(ModelError, match="PatchForecaster cannot compute its states anew"):
        fit(recipe(tmp_path / "run", source, train={"gradient_checkpointing": True}))


# ---- what needs no learning


def test_the_last_value_teaches_and_does_not_learn(tmp_path, source):  # noqa: F811
    found = fit(recipe(tmp_path / "run", source, teacher={"name": "repeat-last"}))
    student, windows = found.tuned.model, recipe(tmp_path / "x", source)
    assert found.history[0]["output_mse"] > 0 and student.config.horizon == windows.data.series.horizon
    run = tuner(tmp_path / "facade")
    run.load_model("forecast_distillation")
    run.load_teacher_model("repeat-last")
    run.fit(table(), **QUICK)
    for name in ("repeat-last", "seasonal-naive"):
        plain = tuner(tmp_path / name, name, season=8)
        plain.load_model()
        with pytest.raises(RecipeError, match=f"{name} has nothing to learn"):
            plain.fit(table(), **QUICK)


def test_weights_that_were_just_drawn_are_not_evaluated(tmp_path):
    fresh = tuner(tmp_path / "fresh")
    fresh.load_model()
    with pytest.raises(OrderError, match="patch has not learned from any rows yet"):
        fresh.evaluate(table())


# ---- rows that were trained on


def test_rows_judged_on_that_were_trained_on_are_told(tmp_path, taught, monkeypatch, capsys):
    monkeypatch.setattr(speed, "TURN", 0.001)
    history, until = table(400), taught.model.config.trained_until
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = taught.evaluate(history)
    early = {**SIZES, "split": "40-10-50"}  # whose test part begins before the teacher's training rows end
    again = LLMFineTuner(taught.recipe.output, tmp_path / "a", task="forecasting", series=early, device="cpu")
    again.load_model()
    with pytest.warns(UserWarning, match=f"trained on rows up to {until}, and the test part begins at"):
        assert again.evaluate(history)["windows"] > own["windows"]
    history.to_csv(tmp_path / "rows.csv", index=False)
    words = ["evaluate", "--model", taught.recipe.output, "--data", str(tmp_path / "rows.csv")]
    assert main([*words, "--split", "40-10-50"]) == 0
    assert "it has seen what it is judged by" in " ".join(capsys.readouterr().out.split())
    run, notes = tuner(tmp_path / "run", shape={**SMALL, "num_layers": 1}, split="40-10-50"), []
    run.load_model("forecast_distillation")
    run.load_teacher_model(taught.recipe.output)
    run.fit(history, **QUICK, on_event=lambda kind, record: notes.append(record.get("text", "")))
    assert any(
        "the teacher was trained on rows up to" in note and "validation part" in note for note in notes
    )
    said = run.compare(history)
    assert [w for w in said["warnings"] if "it has seen what it is judged by" in w][0].startswith(
        "teacher was"
    )
    assert run.model.config.trained_until < until


def test_a_run_that_goes_on_with_fewer_rows_has_seen_all(tmp_path, taught):
    series, until = {**SIZES, "train_percent": 30}, taught.model.config.trained_until
    run = LLMFineTuner(
        taught.recipe.output, tmp_path / "run", task="forecasting", series=series, device="cpu"
    )
    run.load_model()
    run.fit(table(400), **QUICK)
    assert run.model.config.trained_until == until


# ---- teachers that are no one model in memory


def test_the_gate_has_a_line_for_a_cached_teacher_and_for_several(tmp_path, taught, monkeypatch):
    monkeypatch.setattr(speed, "TURN", 0.001)
    rows, folder = tmp_path / "rows.csv", taught.recipe.output
    table(400).to_csv(rows, index=False)
    cached = {"name": folder, "kind": "live_cached", "options": {"path": str(tmp_path / "cache")}}
    both = {"kind": "ensemble", "name": "", "options": {"members": [folder, "linear"], "weights": [1.0, 3.0]}}
    lines = {}
    for name, teacher in (("live", {"name": folder}), ("cached", cached), ("both", both)):
        fit(recipe(tmp_path / name, rows, teacher=teacher))
        said = compare_run(tmp_path / name)
        lines[name] = next(model for model in said["models"] if model["role"] == "teacher")
        assert any(pair["name"] == "teacher" and pair["role"] == "simple" for pair in said["differences"])
        assert not any("not loaded here" in warning for warning in said["warnings"])
    assert (
        lines["cached"]["mse"]
        == lines["live"]["mse"]
        == pytest.approx(taught.evaluate(table(400))["mse"], rel=1e-5)
    )
    line = tuner(tmp_path / "line", "linear")
    line.load_model()
    history = table(400)
    line.evaluate(history)
    said = [
        one.cross_validation(history, n_windows=77, step_size=1).sort_values(["unique_id", "cutoff", "ds"])
        for one in (taught, line)
    ]  # fmt: skip
    mixed = 0.25 * said[0]["patch"].to_numpy() + 0.75 * said[1]["linear"].to_numpy()
    spread = history[["c0", "c1", "c2"]].iloc[:280].std(ddof=0).repeat(77 * 4).to_numpy()
    want = np.square((mixed - said[0]["y"].to_numpy()) / spread).mean()
    assert lines["both"]["mse"] == pytest.approx(want, rel=1e-4)
    run = tuner(tmp_path / "facade", shape={**SMALL, "num_layers": 1})
    run.load_model("forecast_distillation")
    run.load_teacher_model([folder, "linear"], weights=[1.0, 3.0])
    run.fit(history, **QUICK)
    told = next(model for model in run.compare(history)["models"] if model["role"] == "teacher")
    assert told["mse"] == pytest.approx(want, rel=1e-4)


# ---- backbones


def saved(folder, config):
    torch.manual_seed(0)
    model, tokenizer = transformers.AutoModel.from_config(config), build_tokenizer()
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    return model.eval()


def sizes(**more):
    inner = {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    return {**inner, "intermediate_size": 32, "max_position_embeddings": 256, **more}


def test_some_blocks_of_a_backbone_that_names_the_kind_of_each(tmp_path):
    shape = {
        name: value for name, value in TIME.items() if name not in ("backbone", "hidden_size", "num_heads")
    }
    for name, config in (
        ("qwen3", transformers.Qwen3Config(**sizes(num_key_value_heads=2, head_dim=8))),
        ("gemma2", transformers.Gemma2Config(**sizes(num_key_value_heads=2, head_dim=8))),
    ):
        whole = saved(tmp_path / name, config)
        options = {
            **shape,
            **SIZES,
            "description": "waves",
            "backbone": str(tmp_path / name),
            "num_layers": 2,
        }
        model = build.time_llm(**options)
        assert len(model.backbone.layers) == 2
        for mine, theirs in zip(model.backbone.layers, whole.layers, strict=False):
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
        assert model(torch.randn(2, 16)).values.shape == (2, 4)


def test_a_backbone_whose_words_are_narrower_than_its_blocks_is_refused(tmp_path):
    saved(tmp_path / "electra", transformers.ElectraConfig(**sizes(embedding_size=8)))
    with pytest.raises(ModelError, match="are 8 numbers wide and its blocks 16"):
        build.time_llm(**SIZES, description="waves", backbone=str(tmp_path / "electra"))
