"""The cached teacher: the same loss as the live one, found by content, refused for what it cannot answer."""

import copy
import json

import pytest
import torch
from cache_models import ABOUT, CPU, NOTHING, TASK, V, answers, build_teacher, listed, open_cache, write
from conftest import build_gpt2, build_llama, build_tokenizer, prepared_rows

from llm_finetuner.assembly import Parts
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.output import Want
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.cached import cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.identity import (
    fingerprint,
    keys_of_batch,
    keys_of_rows,
    template_digest,
    tokenizer_digest,
)
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context
from llm_finetuner.trainer import fit


@pytest.fixture(scope="module")
def model():
    return build_teacher()


def sgd(parameters, weight_decay, device):
    return torch.optim.SGD(parameters, lr=1.0)


def gradient(tmp_path, student, teacher, rows, method="vanilla_distillation", batch=4, **options):
    """Minus the change of every weight in one step of `fit` over all rows, at rate 1."""
    student = copy.deepcopy(student)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    recipe = Recipe(
        method=method, options=options, student=Model("s"), teacher=Teacher("t"),
        output=str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
        train=Train(
            steps=1, batch_size=batch, gradient_accumulation_steps=8 // batch, learning_rate=1.0, warmup=0,
            schedule="constant", max_grad_norm=0, optimizer="test_teacher_cache:sgd", precision="fp32", save_every=0,
        ),
    )  # fmt: skip
    fit(recipe, Parts(student=student, teacher=teacher, train=rows, device="cpu"))
    return {name: before[name] - p.detach() for name, p in student.named_parameters()}


def distance(got, want) -> float:
    scale = max(g.abs().max() for g in want.values())
    return float(max((got[name] - want[name]).abs().max() for name in want) / scale)


@pytest.mark.parametrize("settings", [{"mode": "fp32"}, {"k": V}])
def test_exact_answers_give_the_gradients_of_the_live_teacher(tmp_path, model, settings):
    rows, student = prepared_rows(8, V), build_gpt2(V).double()
    notes = []
    figures = write(
        model, rows, tmp_path / "c", on_event=lambda kind, r: notes.append(r.get("text")), **settings
    )
    assert figures["mean_kl"] < 1e-6 and figures["bytes_per_token"] == 4 * V
    assert any(note and "every log-probability" in note for note in notes) == ("k" in settings)
    live = gradient(tmp_path, student, Live(TASK, model), rows, temperature=2.0, alpha=0.3)
    for batch in (8, 2):
        stored = gradient(
            tmp_path, student, open_cache(tmp_path / "c"), rows, batch=batch, temperature=2.0, alpha=0.3
        )
        assert distance(stored, live) < 1e-5


def test_hidden_states_give_the_gradients_of_the_live_teacher_to_float16(tmp_path, model):
    rows, student = prepared_rows(8, V), build_gpt2(V).double()
    write(model, rows, tmp_path / "c", layers=(0, 2), mode="fp32")
    options = {"alpha": 0.1, "output_weight": 1.0, "temperature": 1.0, "feature_layers": [[0, 0], [1, 2]]}
    live = gradient(tmp_path, student, Live(TASK, model), rows, "feature_distillation", **options)
    stored = gradient(tmp_path, student, open_cache(tmp_path / "c"), rows, "feature_distillation", **options)
    assert 0 < distance(stored, live) < 2**-10


def test_more_tokens_bring_the_gradients_nearer_to_the_live_teacher(tmp_path, model):
    rows, student = prepared_rows(8, V), build_gpt2(V).double()
    live, apart = gradient(tmp_path, student, Live(TASK, model), rows, temperature=1.0, alpha=0.1), []
    for k in (10, 30, 50):
        write(model, rows, tmp_path / f"c{k}", k=k)
        cache = open_cache(tmp_path / f"c{k}")
        apart.append(distance(gradient(tmp_path, student, cache, rows, temperature=1.0, alpha=0.1), live))
    assert apart[0] > 2 * apart[1] > 4 * apart[2] > 0, apart


def test_it_reports_what_it_is(tmp_path, model):
    rows, said = prepared_rows(12, V), []
    figures = write(model, rows, tmp_path / "c", on_event=lambda kind, record: said.append((kind, record)))
    counted = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
    assert figures["tokens"] == counted and figures["rows"] == 12 and figures["path"] == str(tmp_path / "c")
    assert figures["bytes_per_token"] <= 20 * 114 // 50
    live = torch.cat([log_probs for log_probs, _ in answers(Live(TASK, model), listed(rows))])
    kept = torch.cat([log_probs for log_probs, _ in answers(open_cache(tmp_path / "c"), listed(rows))])
    error = (live.exp() * (live - kept)).sum(1).mean().item()
    assert figures["mean_kl"] == pytest.approx(error, rel=1e-4) and 0 < error < 0.05
    assert figures["top_mass"] == pytest.approx(live.topk(20).values.exp().sum(1).mean().item(), rel=1e-4)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["measured"]["mean_kl"] == figures["mean_kl"] and manifest["about"] == ABOUT
    steps = [record for kind, record in said if kind == "cache"]
    assert steps[-1] == {"rows": 12, "of": 12, "tokens": counted}
    low = any("larger k" in record["text"] for kind, record in said if kind == "note")
    assert low == (figures["top_mass"] < 0.8)
    flat = copy.deepcopy(model)
    flat.lm_head.weight.mul_(0.01)
    write(flat, rows, tmp_path / "flat", k=2, on_event=lambda kind, record: said.append((kind, record)))
    assert said[-1][0] == "note" and "larger k" in said[-1][1]["text"]


def test_order_batch_size_and_padding_find_the_same_answers(tmp_path, model):
    rows = listed(prepared_rows(12, V))
    write(model, rows, tmp_path / "c", layers=(1,))
    teacher, want = open_cache(tmp_path / "c"), Want(layers=(1,))
    straight = answers(teacher, rows, want)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    padded = [
        {
            "input_ids": rows[i]["input_ids"] + [7] * 5,
            "attention_mask": rows[i]["attention_mask"] + [0] * 5,
            "labels": rows[i]["labels"] + [-100] * 5,
        }
        for i in order
    ]
    for others in ([rows[i] for i in order], padded):
        for batch_size in (1, 5, 12):
            for got, i in zip(answers(teacher, others, want, batch_size), order, strict=True):
                assert torch.equal(got[0], straight[i][0])
                assert torch.equal(got[1][1], straight[i][1][1])
    teacher.check(padded)
    live = answers(Live(TASK, model), rows, want)
    for (_, got), (_, told) in zip(straight, live, strict=True):
        assert got[1].dtype == torch.float32 and torch.allclose(got[1], told[1].float(), rtol=1e-3, atol=1e-4)
    assert (teacher.width, teacher.depth, teacher.parameters, teacher.columns) == (32, 4, 0, V)


def test_a_batch_in_which_nothing_counts_is_answered(tmp_path, model):
    """The stand-in batch of a process that has no example left."""
    rows = listed(prepared_rows(4, V))
    write(model, rows, tmp_path / "c", layers=(1,))
    out = open_cache(tmp_path / "c")(TASK.collate(rows[:2], counted=False), Want(layers=(1,)))
    assert out.head(out.rows).shape == (0, V) and out.features[1].shape == (0, 32) and len(out.targets) == 0


def test_the_builder_refuses_another_tokenizer(tmp_path, model, tokenizer):
    rows = prepared_rows(6, V)
    about = {**ABOUT, "tokenizer": tokenizer_digest(tokenizer), "template": template_digest(tokenizer)}
    write(model, rows, tmp_path / "c", about=about)
    notes = []

    def build(tokenizer, name="t"):
        context = Context(TASK, build_gpt2(V), tokenizer, CPU, notes.append)
        return cached(Teacher(name, kind="live"), context, path=str(tmp_path / "c"))

    build(tokenizer).check(rows)
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = "a"
    build(padded), build(None), build(tokenizer, "")
    assert not notes
    build(tokenizer, "u")
    assert "holds the answers of t" in notes[0]
    with pytest.raises(DataError, match="another tokenizer"):
        build(build_tokenizer(["<|user|>"]))
    padded.chat_template = "{{ messages }}"
    with pytest.raises(DataError, match="template was 'none'"):
        build(padded).check(prepared_rows(2, V, seed=4))
    with pytest.raises(RecipeError, match="needs the folder"):
        cached(Teacher("t"), Context(TASK, build_gpt2(V), None, CPU, notes.append))
    with pytest.raises(DataError, match="holds no cache"):
        open_cache(tmp_path / "nowhere")


def test_what_is_not_stored_is_refused_by_name(tmp_path, model):
    rows = listed(prepared_rows(6, V))
    write(model, rows, tmp_path / "c", layers=(0, 2))
    teacher = open_cache(tmp_path / "c")
    with pytest.raises(RecipeError, match=r"blocks 1, 3 are not in the cache .*; stored: 0, 2"):
        teacher.prepare(Want(layers=(0, 1, 3)), ())
    with pytest.raises(RecipeError, match="attention"):
        teacher(TASK.collate(rows[:1]), Want(attention=(0,)))


def test_draws_are_kept_for_losses_that_are_linear_in_them(tmp_path, model):
    rows = listed(prepared_rows(6, V))
    figures = write(model, rows, tmp_path / "c", mode="sampled", draws=30)
    assert figures["mean_kl"] is None and figures["bytes_per_token"] < 30
    teacher = open_cache(tmp_path / "c")
    fine = [Term("forward_kl", 0.9, {"temperature": 1.0}), Term("forward_kl"), Term("cross_entropy", 0.1)]
    teacher.prepare(NOTHING, fine)
    assert teacher.unfit(fine) is None
    for term in (Term("forward_kl", 1.0, {"temperature": 2.0}), Term("forward_kl", 1.0, {"temperature": "4..1"}),
                 Term("reverse_kl")):  # fmt: skip
        assert term.objective in teacher.unfit([*fine, term])
        with pytest.raises(RecipeError, match="linear in the teacher's probabilities"):
            teacher.prepare(NOTHING, [term])
    write(model, rows, tmp_path / "top")
    assert open_cache(tmp_path / "top").unfit([Term("reverse_kl")]) is None
    write(model, rows[::-1], tmp_path / "d", mode="sampled", draws=30, batch_size=1)
    for (ours, _), (theirs, _) in zip(
        answers(teacher, rows), answers(open_cache(tmp_path / "d"), rows), strict=True
    ):
        assert torch.equal(ours, theirs)  # the draws of a row are its own, whatever stood beside it
    shares = torch.cat([log_probs for log_probs, _ in answers(teacher, rows)]).exp()
    assert torch.allclose(shares * 30, (shares * 30).round(), atol=1e-4)


def test_columns_of_an_aligned_teacher_are_kept(tmp_path, model):
    rows, columns = listed(prepared_rows(4, V)), torch.arange(V).flip(0)[:40]
    teacher = Live(TASK, model, columns)
    write_cache(teacher, TASK, rows, tmp_path / "c", vocabulary=40, about=ABOUT, mode="fp32")
    stored = open_cache(tmp_path / "c")
    assert torch.equal(stored.columns, columns)
    for (ours, _), (live, _) in zip(answers(stored, rows), answers(teacher, rows), strict=True):
        assert torch.allclose(ours, live, atol=1e-6)


def test_keys_of_a_dataset_a_list_and_a_batch_are_the_same():
    rows = prepared_rows(2503, V).select(range(2500, -1, -1))
    keys = list(keys_of_rows(TASK, rows))
    assert keys == list(keys_of_rows(TASK, listed(rows))) and len(set(keys)) > 2400
    assert keys[:7] == keys_of_batch(TASK, TASK.collate(listed(rows)[:7]))


def test_a_fingerprint_tells_weights_apart(model):
    other = copy.deepcopy(model)
    assert fingerprint(other) == fingerprint(model)
    other.model.layers[1].mlp.up_proj.weight.data[3, 2] += 1e-12
    assert fingerprint(other) != fingerprint(model)
    assert fingerprint(build_llama(V)) != fingerprint(model)
