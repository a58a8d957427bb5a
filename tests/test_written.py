"""Sequence-level distillation: what the teacher writes, the file that survives a kill, and what is learned of it."""

import json

import pytest
import torch
from conftest import build_gpt2, build_llama, prepared_rows
from step_reference import recipe_of, step_of

from llm_finetuner import writing
from llm_finetuner.assembly import Parts
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.recipe import Teacher
from llm_finetuner.scheme import Writing
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.live import Live
from llm_finetuner.trainer import fit

METHOD = "sequence_distillation"


@pytest.fixture(scope="module")
def size(tokenizer):
    return len(tokenizer)


@pytest.fixture(scope="module")
def teacher(size):
    return build_gpt2(size, width=24, seed=8).double().eval()


def write(teacher, tokenizer, rows, path, *, seed=0, max_length=64, keep_data=False, **plan):
    settings = {"max_new_tokens": 6, "sampling_temperature": 0.0, "samples": 1, **plan}
    return writing.write_rows(
        teacher, tokenizer, rows, Writing(**settings, keep_data=keep_data), path, seed=seed, max_length=max_length,
        note=lambda _text: None,
    )  # fmt: skip


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch) -> list:
    """The prompts that the teacher is really asked to go on from."""
    seen: list = []
    write_on = writing.continuations

    def spy(model, tokenizer, prompts, **how):
        seen.extend(prompts)
        return write_on(model, tokenizer, prompts, **how)

    monkeypatch.setattr(writing, "continuations", spy)
    return seen


def test_greedy_completions_are_those_of_generate(tmp_path, teacher, tokenizer, size):
    rows = prepared_rows(20, size)
    found = write(teacher, tokenizer, rows, tmp_path / "written.jsonl").to_list()
    assert len(found) == len(rows)
    for row, example in zip(rows, found, strict=True):
        prompt = row["input_ids"][:2]
        said = teacher.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 2, dtype=torch.long), do_sample=False,
            max_new_tokens=6, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        )[0].tolist()  # fmt: skip
        assert example["input_ids"] == said
        assert example["labels"] == [-100, -100, *said[2:]] and example["attention_mask"] == [1] * len(said)


def test_the_end_of_a_text_counts(tmp_path, tokenizer, size):
    """A teacher that leans to the end token: rows end with it, and it is a label."""
    teacher = build_gpt2(size, seed=8)
    with torch.no_grad():
        teacher.transformer.ln_f.bias += 7 * teacher.lm_head.weight[tokenizer.eos_token_id]
    rows = prepared_rows(20, size)
    found = write(teacher, tokenizer, rows, tmp_path / "w.jsonl", sampling_temperature=1.0).to_list()
    ended = [example for example in found if example["labels"][-1] == tokenizer.eos_token_id]
    assert len(ended) > 3 and any(len(example["labels"]) > 3 for example in ended)
    assert all(example["labels"][:2] == [-100, -100] for example in found)
    with torch.no_grad():
        teacher.transformer.ln_f.bias += 100 * teacher.lm_head.weight[tokenizer.eos_token_id]
    with pytest.raises(DataError, match="nothing but the end of the text"):
        write(teacher, tokenizer, rows, tmp_path / "ends.jsonl")


def test_samples_differ_and_fewer_can_be_learned_from(tmp_path, teacher, tokenizer, size, asked):
    rows, path = prepared_rows(6, size), tmp_path / "w.jsonl"
    found = write(teacher, tokenizer, rows, path, samples=3, sampling_temperature=1.0)
    assert len(found) == 18 == len(asked)
    said = [tuple(example["input_ids"]) for example in found]
    assert len(set(said)) > 12
    fewer = write(teacher, tokenizer, rows, path, samples=1, sampling_temperature=1.0)
    assert [tuple(e["input_ids"]) for e in fewer] == said[::3] and len(asked) == 18
    other = write(
        teacher, tokenizer, rows, tmp_path / "other.jsonl", samples=1, sampling_temperature=1.0, seed=1
    )
    assert [tuple(e["input_ids"]) for e in other] != said[::3]


@pytest.mark.parametrize("left", [0, 1, 7, 16, 17, 20])
def test_what_was_written_before_a_kill_is_not_written_again(tmp_path, teacher, tokenizer, size, asked, left):
    """Killed in the middle of a line: that line and what is missing are written, the same as without the kill."""
    rows, path = prepared_rows(20, size), tmp_path / "w.jsonl"
    want = write(teacher, tokenizer, rows, path).to_list()
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:left]) + (whole[left][:30] if left < 20 else ""))
    asked.clear()
    assert write(teacher, tokenizer, rows, path).to_list() == want
    assert len(asked) == 20 - left and path.read_text().splitlines(keepends=True) == whole


@pytest.mark.parametrize(
    "change", ["seed", "temperature", "max_new_tokens", "prompts", "fewer rows", "teacher"]
)
def test_a_file_of_other_settings_is_refused(tmp_path, teacher, tokenizer, size, change):
    rows, path = prepared_rows(6, size), tmp_path / "w.jsonl"
    write(teacher, tokenizer, rows, path)
    before = path.read_text()
    how = {"seed": {"seed": 1}, "temperature": {"sampling_temperature": 0.5}}.get(change, {})
    how = {"max_new_tokens": 5} if change == "max_new_tokens" else how
    others = {"prompts": prepared_rows(6, size, seed=1), "fewer rows": rows.select(range(4))}
    model = build_gpt2(size, width=24, seed=9).double() if change == "teacher" else teacher
    with pytest.raises(DataError, match="completions of other prompts, another teacher or other settings"):
        write(model, tokenizer, others.get(change, rows), path, **how)
    assert path.read_text() == before


def test_nothing_is_longer_than_max_length(tmp_path, teacher, tokenizer, size):
    rows = prepared_rows(6, size, prompt=5)
    for number, new in enumerate((6, 8, 50)):
        found = write(
            teacher, tokenizer, rows, tmp_path / f"{number}.jsonl", max_new_tokens=new, max_length=8
        )
        assert max(len(example["input_ids"]) for example in found) <= 8


# ---- through fit


def test_the_student_learns_the_rows_as_they_are_written(tmp_path, teacher, tokenizer, size):
    student, rows = build_llama(size, width=16, layers=1).double(), prepared_rows(8, size)
    got = step_of(tmp_path, student, teacher, rows, METHOD, tokenizer=tokenizer, max_new_tokens=6)
    folder = tmp_path / f"{METHOD}0"
    assert len(lines_of(folder / "written.jsonl")) == 8
    found = write(teacher, tokenizer, rows, folder / "written.jsonl", max_length=128)
    want = step_of(tmp_path, student, None, found, "fine_tuning", tokenizer=tokenizer)
    assert all(torch.equal(got[0][name], want[0][name]) for name in want[0])


def test_the_datas_rows_may_be_kept(tmp_path, teacher, tokenizer, size):
    rows = prepared_rows(8, size)
    found = write(teacher, tokenizer, rows, tmp_path / "w.jsonl", keep_data=True).to_list()
    assert found[8:] == rows.to_list() and len(found) == 16


def test_rows_fit_the_positions_of_the_student(tmp_path, teacher, tokenizer, size):
    """Recipes ask for up to 512 tokens; a student of 128 positions gets rows that it can read."""
    rows = prepared_rows(4, size)
    rows = rows.map(lambda row: {name: row[name][:3] + 100 * row[name][3:4] for name in row})
    rows = rows.map(lambda row: {"labels": [-100] * 60 + row["labels"][60:]})
    recipe = recipe_of(tmp_path, METHOD, {"max_new_tokens": 100}, batch_size=2)
    parts = Parts(student=build_gpt2(size), teacher=teacher, tokenizer=tokenizer, train=rows, device="cpu")
    assert fit(recipe, parts).history[0]["loss"] > 0
    written = lines_of(tmp_path / "written.jsonl")
    assert all(len(line["prompt"]) + len(line["tokens"]) <= 128 for line in written)


def test_mistakes(tmp_path, teacher, tokenizer, size):
    rows, student = prepared_rows(4, size), build_gpt2(size)
    with pytest.raises(RecipeError, match="one teacher that can write: a model"):
        step_of(tmp_path, student, Live(CausalLM(), teacher), rows, METHOD, tokenizer=tokenizer)
    with pytest.raises(RecipeError, match="needs a teacher that can write, not ensemble"):
        spec = Teacher(kind="ensemble", options={"members": ["a", "b"]})
        step_of(tmp_path, student, None, rows, METHOD, tokenizer=tokenizer, spec=spec)
    with pytest.raises(ModelError, match="needs a tokenizer"):
        step_of(tmp_path, student, teacher, rows, METHOD)
    for name, value in (("max_new_tokens", 0), ("samples", 0), ("sampling_temperature", -1)):
        with pytest.raises(RecipeError, match=name):
            recipe_of(tmp_path, METHOD, {name: value})
