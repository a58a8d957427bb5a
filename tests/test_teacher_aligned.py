"""A teacher with the student's tokens under other numbers says what it would say under the student's."""

import copy
import json
import random

import datasets
import pytest
import torch
from conftest import SHARED, build_gpt2, build_llama, build_tokenizer
from other_tokenizers import TEXTS, build_other, rows_of
from step_reference import assert_close, gradients, kl, said_of, step_of

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.vocabulary import Vocabulary
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.output import Want, select
from llm_finetuner.rollout import Rollout
from llm_finetuner.scheme import OnPolicy
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.aligned import Aligned, align, aligned_teacher
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's: 0 to 3, and </s> is BOS too


def renumbered(tokenizer, front: bool = True, drop: tuple = ()):
    """The same tokens and merges under other numbers, with OPT's special tokens and its </s> in front."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [t for t in state["model"]["vocab"] if t != "<|endoftext|>" and t not in drop]
    random.Random(0).shuffle(tokens)
    state["model"]["vocab"] = {token: i for i, token in enumerate([*SPECIALS, *tokens])}
    state["model"]["merges"] = [m for m in state["model"]["merges"] if not {*m, "".join(m)} & set(drop)]
    state["added_tokens"], state["post_processor"] = [], None
    core = Tokenizer.from_str(json.dumps(state))
    core.add_special_tokens(SPECIALS)
    if front:
        core.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def moved_model(model, table: list[int], size: int):
    """A copy whose embedding and head know token i by the number table[i]."""
    other = build_llama(size, seed=1).to(model.dtype).eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    keep = [i for i, j in enumerate(table) if j >= 0]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(size, state[name].shape[1], dtype=model.dtype)
        rows[[table[i] for i in keep]] = state[name][keep]
        state[name] = rows
    other.load_state_dict(state)
    return other


@pytest.fixture(scope="module")
def pair_of_tokenizers():
    ours = build_tokenizer()
    return ours, renumbered(ours)


@pytest.fixture(scope="module")
def alignment(pair_of_tokenizers):
    return align(*pair_of_tokenizers)


@pytest.fixture(scope="module")
def models(alignment):
    """(the teacher under the student's numbers, the same under its own)."""
    same = build_llama(len(alignment.student), seed=1).double().eval()
    return same, moved_model(same, alignment.table.tolist(), len(alignment.teacher) + 5)


def with_front(rows: list[dict], front: int) -> list[dict]:
    """The rows with a token in front that does not count, the first of the text not counted either."""
    return [
        {
            "input_ids": [front, *row["input_ids"]],
            "attention_mask": [1, *row["attention_mask"]],
            "labels": [-100, -100, *row["labels"][1:]],
        }
        for row in rows
    ]


def test_tokens_are_paired_by_name_and_special_ones_by_role(alignment):
    student, teacher = alignment.student, alignment.teacher
    assert alignment.table[0] == 2  # <|endoftext|> and </s>, both end a text
    for i, other in enumerate(alignment.table.tolist()):
        assert i == 0 or student.strings[i] == teacher.strings[other]
    assert alignment.shared == len(student) and not alignment.same
    assert f"{len(student)} of the student's {len(student)} tokens" in alignment.sentence
    assert align(build_tokenizer(), build_tokenizer()).same


@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_it_answers_as_under_the_students_numbers(alignment, models, prompt):
    """With the teacher's BOS in front, which the student lacks; values, features and gradients."""
    same, moved = models
    rows = rows_of(alignment.student, prompt=prompt)
    batch = CausalLM().collate(rows)
    aligned, want = Aligned(Live(CausalLM(), moved), alignment), Want(layers=(1,))
    said = aligned(batch, want)
    live = Live(CausalLM(), same)(CausalLM().collate(with_front(rows, 0)), want)
    own = CausalLM().run(build_gpt2(len(alignment.student)).double(), batch, Want())
    assert torch.equal(said.targets, own.targets) and torch.equal(said.examples, own.examples)
    answers = said.head(said.rows)
    assert aligned.columns == len(alignment.student)
    assert torch.allclose(answers, live.head(live.rows), atol=1e-12)
    assert torch.allclose(said.features[1], live.features[1], atol=1e-12)
    logits = own.head(own.rows).detach().requires_grad_()
    losses = [
        forward_kl(aligned.view(logits), x, temperature=2.0).sum() for x in (answers, live.head(live.rows))
    ]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 1e-3
    assert torch.equal(aligned.place(own.targets), own.targets)


def test_the_students_bos_becomes_the_teachers_or_is_left_out(pair_of_tokenizers, alignment, models):
    back = align(
        pair_of_tokenizers[1], pair_of_tokenizers[0]
    )  # the student has </s> in front, bos of no teacher
    rows = rows_of(back.student, TEXTS[:3], prompt=1)
    assert all(row["input_ids"][0] == 2 for row in rows) and "bos" not in back.teacher.roles
    same, moved = models
    provider = Aligned(Live(CausalLM(), same), back)
    said = provider(CausalLM().collate(rows), Want())
    bare = [{k: v[1:] for k, v in row.items()} for row in rows]
    live = Live(CausalLM(), moved)(CausalLM().collate(bare), Want())
    assert torch.allclose(said.head(said.rows), select(live.head(live.rows), provider.columns), atol=1e-12)
    counted = rows_of(back.student, TEXTS[:1])
    with pytest.raises(DataError, match="the teacher knows no BOS"):
        provider.check(datasets.Dataset.from_list(rows + counted))
    said = provider(CausalLM().collate(counted), Want())  # as a student may begin a text itself
    assert len(said.rows) == len(counted[0]["input_ids"]) - 1 and not said.known.any()

    named = build_tokenizer()
    named.bos_token = "<|endoftext|>"
    known = align(pair_of_tokenizers[1], named)
    said = Aligned(Live(CausalLM(), same), known)(CausalLM().collate(rows), Want())
    live = Live(CausalLM(), moved)(CausalLM().collate(rows), Want())
    assert torch.allclose(said.head(said.rows), select(live.head(live.rows), provider.columns), atol=1e-12)


def test_columns_that_one_does_not_know_are_left_out(pair_of_tokenizers, models):
    ours = pair_of_tokenizers[0]
    gone = [token for token in ours.get_vocab() if token.startswith("\u0120h") and len(token) > 3][:1]
    alignment = align(ours, renumbered(ours, drop=tuple(gone)))
    provider = Aligned(Live(CausalLM(), models[1]), alignment)
    lost = ours.get_vocab()[gone[0]]
    assert provider.columns.tolist() == [i for i in range(len(alignment.student)) if i != lost]
    assert provider.place(torch.tensor([lost, lost + 1, -100])).tolist() == [-100, lost, -100]
    rows = datasets.Dataset.from_list(rows_of(alignment.student, ["the old house ."]))
    with pytest.raises(DataError, match="does not know 1 tokens that the rows hold 1 times"):
        provider.check(rows)
    assert alignment.labels_shared(rows) == 4 / 5
    fine = rows_of(alignment.student, ["the old dog ."])
    said = provider(CausalLM().collate(fine), Want())
    assert said.head(said.rows).shape == (4, len(alignment.student) - 1)
    (house,) = rows.to_list()
    at = house["input_ids"].index(lost)
    both = [*fine, house]
    said = provider(CausalLM().collate(both), Want())  # as a student may write it: answers up to there
    assert said.known.tolist() == [True] * 4 + [i < at for i in range(len(house["labels"]) - 1)]
    begun = [{name: row[: at + 1] for name, row in house.items()}]
    want = provider(CausalLM().collate(begun), Want())
    assert torch.allclose(said.head(said.rows)[4 : 4 + at], want.head(want.rows)[:at], atol=1e-12)


def test_the_student_may_write_a_token_that_the_teacher_does_not_know(tmp_path, pair_of_tokenizers):
    """On-policy: what the teacher cannot answer counts 0 in the sum and 1 in the denominator."""
    ours = pair_of_tokenizers[0]
    lost = ours.get_vocab()["\u0120house"]
    alignment = align(ours, renumbered(ours, front=False, drop=("\u0120house",)))
    size = len(alignment.student)
    same, student = build_llama(size, seed=1).double().eval(), build_gpt2(size).double()
    with torch.no_grad():  # the student likes to write it
        student.transformer.ln_f.bias += (
            12 * student.lm_head.weight[lost] / student.lm_head.weight[lost].norm()
        )
    moved = moved_model(same, alignment.table.tolist(), len(alignment.teacher) + 3)
    rows = datasets.Dataset.from_list(rows_of(alignment.student, ["the old dog sees a cat ."] * 8, prompt=2))
    teacher = Aligned(Live(CausalLM(), moved), alignment)
    got, _, record, _ = step_of(
        tmp_path, student, teacher, rows, "on_policy_distillation", tokenizer=ours, share=1.0,
        divergence="forward_kl", max_new_tokens=6,
    )  # fmt: skip
    rollout = Rollout(OnPolicy(1.0, 6, 1.0, 0), ours, 0, 512)
    written = [row for part in rollout(student, [rows.to_list()[:4], rows.to_list()[4:]], 1) for row in part]
    own, keep = copy.deepcopy(student).train(), [i for i in range(size) if i != lost]
    total, count, known = 0.0, 0, 0
    for row in written:
        logits, targets, at, _ = said_of(own, row)
        with torch.no_grad():
            told = said_of(same, row)[0]
        heard = torch.tensor([lost not in row["input_ids"][: i + 1] for i in at.tolist()])
        total = total + kl(logits[heard][:, keep], told[heard][:, keep])
        count, known = count + len(targets), known + int(heard.sum())
    assert 0 < known < count
    assert_close(got, gradients(total / count, own))
    assert record["loss"] == pytest.approx(total.item() / count, rel=1e-9)
    assert record["forward_kl"] == pytest.approx(total.item() / known, rel=1e-9)


def test_equal_tokens_merged_otherwise_are_refused(pair_of_tokenizers):
    """The same strings in both vocabularies, the merges in another order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    ours = pair_of_tokenizers[0]
    state = json.loads(ours.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>"
    )
    alignment = align(ours, other)
    assert alignment.same
    provider = Aligned(Live(CausalLM(), build_llama(len(alignment.student))), alignment)
    rows = datasets.Dataset.from_list(rows_of(alignment.student, ["a tree finds a house near the old bird"]))
    with pytest.raises(DataError, match="cut a text otherwise: 'a tree finds"):
        provider.check(rows)


def test_rows_are_checked_in_the_teachers_numbers(alignment, models):
    provider = Aligned(Live(CausalLM(), models[1]), alignment)
    provider.check(datasets.Dataset.from_list(rows_of(alignment.student)))
    long = rows_of(alignment.student, ["the " * 127])
    assert len(long[0]["input_ids"]) == 129
    cut = [{k: v[:128] for k, v in long[0].items()}]
    with pytest.raises(DataError, match="129 tokens, the model has 128 positions"):  # BOS is one more
        provider.check(datasets.Dataset.from_list(cut))


def test_what_cannot_be_aligned_is_refused(pair_of_tokenizers, models):
    def context(tokenizer):
        return Context(CausalLM(), None, tokenizer, torch.device("cpu"), notes.append)

    notes: list[str] = []
    ours, theirs = pair_of_tokenizers
    provider = aligned_teacher(models[1], theirs, "t", context(ours))
    assert provider.width == 32 and notes == [provider.alignment.sentence]
    with pytest.raises(RecipeError, match="attention maps"):
        provider.prepare(Want(attention=(0,)), [])
    with pytest.raises(ModelError, match="give both models with their tokenizers"):
        aligned_teacher(models[1], theirs, "t", context(None))
    with pytest.raises(ModelError, match="different tokens: the teacher knows"):
        aligned_teacher(models[1], build_other(800), "t", context(ours))


def test_gpt2_and_the_same_tokens_with_opts_numbers(gsm8k):
    from transformers import GPT2Tokenizer

    folder = SHARED / "data" / "gpt2_tokenizer"
    if not folder.is_dir():
        pytest.skip("real vocabulary not at hand: ../shared/data/gpt2_tokenizer")
    ours = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    alignment = align(ours, renumbered(ours))
    assert alignment.shared == len(alignment.student) == 50257 and len(alignment.teacher) == 50260
    lines = (gsm8k / "train.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    rows = rows_of(alignment.student, [json.loads(line)["question"][:200] for line in lines])
    same = build_llama(50257, width=8, layers=1, seed=1).double().eval()
    torch.manual_seed(0)
    moved = build_llama(50265, width=8, layers=1, seed=1).double().eval()
    state = same.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wide = torch.randn(50265, 8, dtype=torch.float64)
        wide[alignment.table] = state[name]
        state[name] = wide
    moved.load_state_dict(state)
    provider = Aligned(Live(CausalLM(), moved), alignment)
    provider.check(datasets.Dataset.from_list(rows))
    said = provider(CausalLM().collate(rows[:4]), Want())
    live = Live(CausalLM(), same)(CausalLM().collate(with_front(rows[:4], 50256)), Want())
    assert torch.allclose(said.head(said.rows), live.head(live.rows), atol=1e-6)
    assert Vocabulary(ours).roles == {"eos": 50256, "bos": 50256}
