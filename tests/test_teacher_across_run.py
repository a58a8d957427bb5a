"""A run with a teacher of another tokenizer, from the recipe to the log."""

import json

import pytest
from conftest import build_gpt2, build_llama, save_model, sentences
from other_tokenizers import build_other

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

TERMS = {"forward_kl": 0.5, "span_kl": 0.5}


@pytest.fixture
def folders(tmp_path, tokenizer):
    other = build_other(size=290)  # few merges: it writes the same words in several tokens
    rows = "".join(json.dumps({"text": text}) + "\n" for text in sentences(12))
    (tmp_path / "rows.jsonl").write_text(rows)
    return {
        "student": save_model(tmp_path / "student", build_gpt2(len(tokenizer)), tokenizer),
        "same": save_model(tmp_path / "same", build_llama(len(tokenizer)), tokenizer),
        "other": save_model(tmp_path / "other", build_llama(len(other)), other),
        "data": str(tmp_path / "rows.jsonl"),
        "root": tmp_path,
    }


def run(folders, teacher, objectives, kind="across", steps=1, **options):
    recipe = Recipe(
        method="distillation", options={"objectives": objectives}, student=Model(folders["student"]),
        teacher=Teacher(folders[teacher], kind=kind, options=options),
        data=Data(folders["data"], eval_fraction=0), output=str(folders["root"] / f"{teacher}{kind}{steps}"),
        train=Train(steps=steps, batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2, save_every=0),
    )  # fmt: skip
    return fit(recipe).history


def test_it_learns_from_positions_and_spans(folders):
    """The teacher must know the text: a span that it finds all but impossible has nothing to say."""
    taught = Recipe(
        student=Model(folders["other"]), data=Data(folders["data"], eval_fraction=0),
        output=str(folders["root"] / "taught"),
        train=Train(steps=60, batch_size=12, gradient_accumulation_steps=1, learning_rate=1e-2, save_every=0),
    )  # fmt: skip
    fit(taught)
    history = run({**folders, "taught": taught.output}, "taught", TERMS, steps=30)
    for name in ("forward_kl", "span_kl"):
        assert 0 < history[-1][name] < history[0][name]
    assert history[0]["teacher_nll"] > 0


def test_the_same_tokenizer_gives_what_a_live_teacher_gives(folders):
    across = run(folders, "same", {"forward_kl": {"weight": 1.0, "temperature": 2.0}})[0]
    live = run(folders, "same", {"forward_kl": {"weight": 1.0, "temperature": 2.0}}, kind="live")[0]
    for name in ("forward_kl", "teacher_nll", "agreement", "grad_norm"):
        assert across[name] == pytest.approx(live[name], rel=1e-5)


def test_sorted_probabilities(folders):
    history = run(folders, "other", {"uld": 1.0}, steps=8, compare="sorted")
    assert history[-1]["uld"] < history[0]["uld"]
    with pytest.raises(RecipeError, match="uld") as caught:
        run(folders, "other", {"uld": 1.0}, steps=2)
    assert "compare: sorted" in caught.value.hint


def test_spans_need_such_a_teacher(folders):
    with pytest.raises(RecipeError, match="span_kl") as caught:
        run(folders, "same", TERMS, kind="live")
    assert "across" in caught.value.hint
