"""A teacher with another tokenizer: a live one where the tokenizers are equal, else multiplied probabilities.

The references are naive: one row at a time, every logit, float64, probabilities multiplied out.
"""

import json
import math

import datasets
import pytest
import torch
from conftest import SHARED, build_llama
from other_tokenizers import BUILDERS, TEXTS, build_other, build_piece, model_for, rows_of

from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.vocabulary import Vocabulary, pair
from llm_finetuner.objectives.across import LEAST, span_kl, uld
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.output import Want
from llm_finetuner.recipe import Teacher
from llm_finetuner.scheme import Term
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.across import Across, across, across_teacher, report
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Context
from llm_finetuner.teachers.spans import line_up


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def vocabularies(tokenizers):
    return {name: Vocabulary(tokenizer) for name, tokenizer in tokenizers.items()}


def provider_of(student, teacher, model, **options) -> Across:
    return Across(Live(CausalLM(), model), student, teacher, **options)


def run_both(provider, student_model, rows):
    """Said by teacher and student for the rows as one batch."""
    batch = CausalLM().collate(rows)
    return provider(batch, Want()), CausalLM().run(student_model, batch, Want())


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_same_tokenizer_is_a_live_teacher(vocabularies, name, temperature):
    vocabulary = vocabularies[name]
    model, teacher = model_for(vocabulary), model_for(vocabulary, 1)
    rows = rows_of(vocabulary, prompt=1)
    rows = [row for row in rows if len(row["input_ids"]) < 120]
    said, own = run_both(provider := provider_of(vocabulary, vocabulary, teacher), model, rows)
    live = Live(CausalLM(), teacher, len(vocabulary))(CausalLM().collate(rows), Want())
    assert said.spans.count == 0 and torch.equal(said.targets, own.targets)
    assert said.known.float().mean() > (0.97 if vocabulary.blank else 0.999)
    logits = own.head(own.rows).detach().requires_grad_()
    got = forward_kl(provider.view(logits), said.head(said.rows), temperature=temperature)
    want = forward_kl(logits[:, : len(vocabulary)], live.head(live.rows), temperature=temperature)
    assert got.shape == want.shape and torch.allclose(got[said.known], want[said.known], atol=1e-12)
    masked = torch.where(said.known, got, 0).sum(), want[said.known].sum()
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in masked]
    assert torch.allclose(*gradients, atol=1e-12) and gradients[1].abs().max() > 1e-3
    assert (gradients[0][~said.known] == 0).all()
    assert torch.equal(provider.place(own.targets), own.targets)


def naive(model, ids):
    return torch.log_softmax(model(torch.tensor([ids])).logits[0][:, : model.config.vocab_size - 3], -1)


PAIRS = [("bytes", "other"), ("bytes", "pieces with BOS"), ("other", "unigram"), ("pieces with BOS", "bytes")]
SPOKEN = ["what a naive bird is here, over there", "nowhere near the red house", TEXTS[1]]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_spans_and_distributions_match_multiplied_probabilities(vocabularies, ours, theirs):
    student, teacher = vocabularies[ours], vocabularies[theirs]
    own_model, model = model_for(student), model_for(teacher, 1)
    provider = provider_of(student, teacher, model)
    rows = rows_of(student, SPOKEN, prompt=2)
    said, own = run_both(provider, own_model, rows)
    got_kl = torch.where(said.known, forward_kl(provider.view(own.head(own.rows)), said.head(said.rows)), 0)
    got_spans = span_kl(said.spans.student(own.rows, own.head), said.spans.teacher())

    kl, spans, aligned = 0.0, [], 0
    own_at, theirs_at = provider.own.tolist(), provider.theirs.tolist()
    pairing = provider.pairing
    lines = line_up([row["input_ids"] for row in rows], student, teacher, pairing)
    for row, line in zip(rows, lines, strict=True):
        log_q, log_p = naive(own_model, row["input_ids"]), naive(model, line.ids).detach()
        counted = {i for i in range(len(row["labels"]) - 1) if row["labels"][i + 1] != -100}
        for i, j in line.meets:
            if i not in counted:
                continue
            aligned += 1
            p, q = [[0.0] * provider.count for _ in range(2)]
            for side, log, places in ((p, log_p[j], theirs_at), (q, log_q[i], own_at)):
                for x, place in zip(log.exp().tolist(), places, strict=True):
                    side[place] += x
            p, q = [[x or math.exp(LEAST) for x in side] for side in (p, q)]
            kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        for i, i2, j, j2 in line.spans:
            if not all(k in counted for k in range(i, i2)):
                continue
            p, q = 1.0, 1.0
            for k in range(i, i2):
                q = q * log_q[k, row["input_ids"][k + 1]].exp()
            for k in range(j, j2):
                p = p * log_p[k, line.ids[k + 1]].exp()
            spans.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    assert int(said.known.sum()) == aligned > 5
    assert len(got_spans) == len(spans) > 3
    assert torch.allclose(got_spans, torch.stack(spans), atol=1e-9)
    assert got_kl.sum().item() == pytest.approx(kl, rel=1e-4)  # LEAST is renormalised away

    weights = list(own_model.parameters())
    got = torch.autograd.grad(got_spans.sum(), weights, allow_unused=True)
    want = torch.autograd.grad(torch.stack(spans).sum(), weights, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_positions_that_do_not_meet_are_not_known_and_the_chunk_does_not_matter(vocabularies, monkeypatch):
    student, teacher = vocabularies["bytes"], vocabularies["pieces with BOS"]
    own_model, model = model_for(student), model_for(teacher, 1)
    provider = provider_of(student, teacher, model)
    said, own = run_both(provider, own_model, rows_of(student, SPOKEN))
    assert 0 < int(said.known.sum()) < len(said.known) == len(own.rows)
    whole = provider.view(own.head(own.rows)), said.head(said.rows), said.spans.teacher()
    assert torch.allclose(whole[1].exp().sum(-1), torch.ones(len(own.rows), dtype=torch.float64), atol=1e-5)
    pieces = [slice(0, 5), slice(5, 6), slice(6, None)]
    for n, side in enumerate(
        (lambda p: provider.view(own.head(own.rows[p])), lambda p: said.head(said.rows[p]))
    ):
        assert torch.allclose(torch.cat([side(p) for p in pieces]), whole[n], atol=1e-13)
    monkeypatch.setattr("llm_finetuner.teachers.reading.LOGITS_A_CHUNK", 3 * len(teacher))
    assert torch.allclose(said.spans.teacher(), whole[2], atol=1e-13)
    assert not said.spans.teacher().requires_grad
    places = provider.place(torch.tensor([student.roles["eos"], -100, 10**6]))
    assert places[0] == provider.own[student.roles["eos"]] and (places[1:] == -100).all()


def test_rows_do_not_depend_on_their_batch(vocabularies):
    student, teacher = vocabularies["bytes"], vocabularies["other"]
    provider = provider_of(student, teacher, model_for(teacher, 1))
    rows = rows_of(student, SPOKEN)
    together = provider(CausalLM().collate(rows), Want(layers=(1,)))
    alone = [provider(CausalLM().collate([row]), Want(layers=(1,))) for row in rows]
    assert torch.equal(torch.cat([one.known for one in alone]), together.known)
    known = together.known
    for get in (lambda said: said.head(said.rows), lambda said: said.features[1]):
        assert torch.allclose(torch.cat([get(one) for one in alone])[known], get(together)[known], atol=1e-12)
    spans = torch.cat([one.spans.teacher() for one in alone])
    assert torch.allclose(spans, together.spans.teacher(), atol=1e-12)
    nobody = provider(CausalLM().collate(rows, counted=False), Want())
    assert len(nobody.rows) == 0 and nobody.head(nobody.rows).shape == (0, provider.count)


def test_what_lies_behind_the_last_position_of_the_teacher_is_not_known(vocabularies):
    student, teacher = vocabularies["bytes"], vocabularies["other"]
    model = model_for(teacher, 1)
    rows = rows_of(student, ["the red house sees the old dog ."])
    free = provider_of(student, teacher, model)(CausalLM().collate(rows), Want())
    short = provider_of(student, teacher, model, positions=6)(CausalLM().collate(rows), Want())
    first = int(short.known.sum())
    assert 2 < first < int(free.known.sum()) and short.known[:first].all()
    assert torch.allclose(short.head(short.rows)[:first], free.head(free.rows)[:first], atol=1e-12)


def test_sorted_hands_out_both_for_uld(vocabularies):
    student, teacher = vocabularies["other"], vocabularies["bytes"]
    own_model, model = model_for(student), model_for(teacher, 1)
    provider = provider_of(student, teacher, model, compare="sorted")
    said, own = run_both(provider, own_model, rows_of(student, SPOKEN))
    logits, answers = provider.view(own.head(own.rows)), said.head(said.rows)
    assert logits.shape == answers.shape
    want = uld(own.head(own.rows)[:, : len(student)], said.head(said.rows)[:, : len(teacher)])
    assert torch.allclose(uld(logits, answers), want, atol=1e-14) and want.min() > 0
    assert (provider.place(own.targets) == -100).all()


# ---- for users


def context_for(tokenizer, notes=None):
    say = (notes if notes is not None else []).append
    return Context(CausalLM(), None, tokenizer, torch.device("cpu"), say)


def test_a_live_model_becomes_a_teacher_and_says_what_is_shared(tokenizers, vocabularies):
    notes: list[str] = []
    model, tokenizer = model_for(vocabularies["other"], 1), tokenizers["other"]
    provider = across_teacher(model, tokenizer, "t", context_for(tokenizers["bytes"], notes))
    assert provider.positions == 128 and provider.depth == 4
    assert notes == [provider.sentence] and f"share {len(provider.pairing.shared)} tokens" in notes[0]
    with pytest.raises(RecipeError, match="compare must be one of shared, sorted, got 'both'"):
        across_teacher(model, tokenizer, "t", context_for(tokenizers["bytes"]), compare="both")
    with pytest.raises(ModelError, match="the student's was not given"):
        across_teacher(model, tokenizer, "t", context_for(None))
    with pytest.raises(ModelError, match="the teacher's was not given"):
        across_teacher(model, None, "t", context_for(tokenizers["bytes"]))


def test_the_builder_loads_what_the_recipe_names(tokenizers, vocabularies, tmp_path):
    build_llama(len(vocabularies["other"]) + 3).save_pretrained(tmp_path)
    tokenizers["other"].save_pretrained(tmp_path)
    provider = across(Teacher(str(tmp_path)), context_for(tokenizers["bytes"]))
    said = provider(CausalLM().collate(rows_of(vocabularies["bytes"], SPOKEN)), Want())
    assert said.known.any() and not said.head(said.rows).requires_grad


def test_terms_that_cannot_be_answered_are_refused(vocabularies):
    student, teacher = vocabularies["bytes"], vocabularies["other"]
    provider = provider_of(student, teacher, model_for(teacher, 1))
    of_sorted = Term("llm_finetuner.objectives.across:uld")
    provider.prepare(Want(), [Term("cross_entropy"), Term("forward_kl")])
    with pytest.raises(RecipeError, match="compare: shared"):
        provider.prepare(Want(), [of_sorted])
    with pytest.raises(RecipeError, match="attention maps"):
        provider.prepare(Want(attention=(0,)), [])
    provider = provider_of(student, teacher, model_for(teacher, 1), compare="sorted")
    provider.prepare(Want(), [Term("cross_entropy"), of_sorted])
    with pytest.raises(RecipeError, match="forward_kl cannot be told from compare: sorted"):
        provider.prepare(Want(), [Term("forward_kl")])


def test_the_report_counts_labels_and_positions(vocabularies):
    student, teacher = vocabularies["bytes"], vocabularies["other"]
    provider = provider_of(student, teacher, model_for(teacher, 1))
    rows = rows_of(student, SPOKEN, prompt=2)
    told = report(provider, datasets.Dataset.from_list(rows))
    labels = [label for row in rows for label in row["labels"][1:] if label != -100]
    assert told["labels"] == sum(provider.pairing.table[label] >= 0 for label in labels) / len(labels)
    said = provider(CausalLM().collate(rows), Want())
    assert told["aligned"] == pytest.approx(float(said.known.float().mean())) and told["unreadable"] == 0
    assert told["shared"] == len(provider.pairing.shared) and f"{told['aligned']:.0%}" in told["sentence"]
    same = report(provider_of(student, student, model_for(student, 1)), datasets.Dataset.from_list(rows))
    assert same["labels"] == same["aligned"] == 1 and same["spans"] == 0


def test_rows_that_cannot_be_answered_are_refused(vocabularies):
    marks = ("<s>", "</s>", "<pad>", "<|turn|>")
    student, teacher = Vocabulary(build_other(specials=marks)), vocabularies["bytes"]
    provider = provider_of(student, teacher, model_for(teacher, 1))
    rows = rows_of(student, ["the dog", "a cat"])
    provider.check(datasets.Dataset.from_list(rows))
    turn = {"input_ids": [3, 3, 9], "attention_mask": [1, 1, 1], "labels": [3, 3, 9]}
    with pytest.raises(DataError, match=r"none of 1 special tokens that the rows hold 2 times: '<\|turn\|>'"):
        provider.check(datasets.Dataset.from_list([*rows, turn]))
    poor = Vocabulary(build_piece(fallback=False))
    provider = provider_of(student, poor, model_for(poor, 1))
    with pytest.raises(DataError, match="changes the text of 50% of the rows"):
        provider.check(datasets.Dataset.from_list(rows_of(student, ["the dog", "\u4e2d\u6587"])))


def test_gpt2_meets_another_vocabulary_on_real_text(gsm8k, vocabularies):
    from transformers import GPT2Tokenizer

    folder = SHARED / "data" / "gpt2_tokenizer"
    if not folder.is_dir():
        pytest.skip("real vocabulary not at hand: ../shared/data/gpt2_tokenizer")
    lines = (gsm8k / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    texts = [json.loads(line)["question"] for line in lines]
    student = Vocabulary(GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")))
    teacher = vocabularies["pieces with BOS"]
    rows = [row["input_ids"] for row in rows_of(student, texts)]
    for text, line in zip(texts, line_up(rows, student, teacher, pair(student, teacher)), strict=True):
        assert line.readable and teacher.write(line.ids) == b" " + text.encode()
        assert len(line.meets) > 10
