"""What a run begins with: a student cut from its teacher, one task of many, the rows that are hardest."""

import json

import numpy as np
import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows, save_model, sentences
from step_reference import said_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetuner.assembly import Parts, hardest, load_rows
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.trainer import fit

PLAIN = {
    "steps": 1,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-9,
    "save_every": 0,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer) -> str:
    return save_model(tmp_path_factory.mktemp("teacher"), build_llama(len(tokenizer), layers=4), tokenizer)


def run(folder, teacher, data_file, method="vanilla_distillation", **student):
    recipe = Recipe(
        method=method, student=Model(**{"name": "teacher/2", **student}), teacher=teacher and Teacher(teacher),
        data=Data(source=data_file, max_length=32), train=Train(**PLAIN), output=str(folder),
    )  # fmt: skip
    return fit(recipe, Parts(device="cpu"))


def close(a, b) -> bool:
    return bool((a - b).abs().max() < 1e-6)


# ---- students cut from the teacher


def test_a_student_is_half_the_blocks_of_its_teacher(tmp_path, teacher, data_file, tokenizer):
    result = run(tmp_path, teacher, data_file)
    student, whole = (AutoModelForCausalLM.from_pretrained(name) for name in (str(tmp_path), teacher))
    assert len(student.model.layers) == 2
    for i, j in ((0, 0), (1, 3)):
        own, other = (m.model.layers[k].mlp.up_proj.weight for m, k in ((student, i), (whole, j)))
        assert close(own, other)
    assert close(student.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    assert AutoTokenizer.from_pretrained(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    assert result.history[0]["forward_kl"] > 0


def test_a_part_of_an_ensemble_is_a_part_of_its_first_model(tmp_path, teacher, student_folder, data_file):
    members = {"members": [teacher, student_folder]}
    recipe = Recipe(
        method="vanilla_distillation", student=Model("teacher/2"), teacher=Teacher(kind="ensemble", options=members),
        data=Data(source=data_file, max_length=32), train=Train(**PLAIN), output=str(tmp_path),
    )  # fmt: skip
    assert fit(recipe, Parts(device="cpu")).history[0]["forward_kl"] > 0
    student, whole = (AutoModelForCausalLM.from_pretrained(name) for name in (str(tmp_path), teacher))
    assert len(student.model.layers) == 2
    assert close(student.model.layers[1].mlp.up_proj.weight, whole.model.layers[3].mlp.up_proj.weight)


def test_the_first_and_the_last_blocks(tmp_path, teacher, data_file):
    run(tmp_path, teacher, data_file, name="teacher/1", keep_blocks="first-last")
    assert len(AutoModelForCausalLM.from_pretrained(str(tmp_path)).model.layers) == 4


def test_a_narrower_student(tmp_path, teacher, data_file):
    run(tmp_path, teacher, data_file, keep_width=0.5)
    student = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    assert student.config.hidden_size == 16 and student.config.num_hidden_layers == 2


def test_the_shape_alone(tmp_path, teacher, data_file):
    """from_scratch draws weights from the seed: other than the teacher's, and the same each time."""
    weights = []
    for number in range(2):
        run(tmp_path / str(number), teacher, data_file, from_scratch=True)
        model = AutoModelForCausalLM.from_pretrained(str(tmp_path / str(number)))
        weights.append(model.model.layers[0].mlp.up_proj.weight)
    whole = AutoModelForCausalLM.from_pretrained(teacher).model.layers[0].mlp.up_proj.weight
    assert weights[0].shape == whole.shape and torch.equal(*weights)
    assert (weights[0] - whole).abs().max() > 0.1


def test_a_cut_student_can_learn_from_the_data_alone(tmp_path, teacher, data_file):
    result = run(tmp_path, teacher, data_file, method="fine_tuning")
    assert "forward_kl" not in result.history[0]
    assert len(AutoModelForCausalLM.from_pretrained(str(tmp_path)).model.layers) == 2


def test_mistakes_in_the_name(tmp_path, teacher, data_file):
    with pytest.raises(RecipeError, match="is cut from the teacher, and no teacher is named"):
        run(tmp_path, None, data_file, method="fine_tuning")
    with pytest.raises(RecipeError, match="names no part of the teacher"):
        run(tmp_path, teacher, data_file, name="teacher/0")


# ---- one task of many


@pytest.fixture
def tasks_file(tmp_path) -> str:
    rows = [
        {"question": f"what of {s}?", "answer": s[::-1], "task": ("count", "spell")[i % 2], "level": i % 3}
        for i, s in enumerate(sentences(30, seed=1))
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(tasks_file, tokenizer, tmp_path, **only):
    data = Data(source=tasks_file, only=only, eval_fraction=0)
    return load_rows(data, CausalLM(), None, tokenizer, 0, str(tmp_path), lambda _text: None)[0]


def test_only_the_rows_of_one_task(tmp_path, tasks_file, tokenizer):
    everything = rows_of(tasks_file, tokenizer, tmp_path).to_list()
    assert rows_of(tasks_file, tokenizer, tmp_path, task="spell").to_list() == everything[1::2]
    both = rows_of(tasks_file, tokenizer, tmp_path, task="count", level=2).to_list()
    assert both == [row for i, row in enumerate(everything) if i % 2 == 0 and i % 3 == 2]


def test_held_out_rows_are_of_that_task_too(tmp_path, tasks_file, tokenizer):
    data = Data(source=tasks_file, only={"task": "spell"}, eval_fraction=0.2)
    train, held_out = load_rows(data, CausalLM(), None, tokenizer, 0, str(tmp_path), lambda _text: None)
    assert len(train) + len(held_out) == 15


def test_a_task_that_is_not_there(tmp_path, tasks_file, tokenizer):
    with pytest.raises(DataError, match="has no column 'subject'\ncolumns: .*task"):
        rows_of(tasks_file, tokenizer, tmp_path, subject="x")
    with pytest.raises(DataError, match="no row of .* has task='sing'\nvalues there: count, spell"):
        rows_of(tasks_file, tokenizer, tmp_path, task="sing")


# ---- hard rows


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.5, 6), (0.01, 1)])
def test_the_rows_with_the_largest_loss(share, count):
    model, rows = build_gpt2(64).double().eval(), prepared_rows(12, 64)
    losses = []
    for row in rows:
        logits, targets, *_ = said_of(model, row)
        losses.append(torch.nn.functional.cross_entropy(logits, targets).item())
    notes: list[str] = []
    found = hardest(CausalLM(), model, rows, share, notes.append)
    assert found.to_list() == [rows[int(i)] for i in sorted(np.argsort(losses)[-count:])]
    assert f"{count} of 12 rows" in notes[0]


def test_a_run_learns_from_them_alone(tmp_path):
    model, rows = build_gpt2(64), prepared_rows(12, 64)
    want = hardest(CausalLM(), model, rows, 0.25, print)
    plans = []
    recipe = Recipe(
        student=Model("s"), data=Data(hard_share=0.25), train=Train(**PLAIN), output=str(tmp_path)
    )
    parts = Parts(student=model, train=rows, device="cpu")
    fit(recipe, parts, on_event=lambda kind, record: plans.append(record) if kind == "plan" else None)
    assert plans[0]["examples"] == 3
    assert plans[0]["tokens"] == sum(len(row["input_ids"]) for row in want)
