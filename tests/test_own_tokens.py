"""Teacher and student with different tokenizers, where an answer belongs to a text: each reads it in its own tokens."""

import copy
import functools

import datasets
import pytest
import torch
from cache_models import CPU, listed
from classifiers import NAMES, WORDS, build_bert, build_tokenizer
from step_reference import assert_resumes
from task_steps import gradient_of_step
from transformers import BertTokenizerFast

from llm_finetuner.assembly import Parts
from llm_finetuner.checks import read_alike
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.output import Want
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.cached import answers_in
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.identity import keys_of_rows, of_answers
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.own_tokens import OwnTokens
from llm_finetuner.teachers.provider import Context
from llm_finetuner.teachers.store import Store

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def shuffled(model, tokenizer, seed=0):
    """The same model and vocabulary with other ids, of the special tokens too."""
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(seed)).tolist()
    vocabulary = {token: order[number] for token, number in tokenizer.get_vocab().items()}
    other = copy.deepcopy(model)
    table = other.get_input_embeddings().weight.data
    table[order] = table.clone()[: len(order)]
    return other, BertTokenizerFast(vocab=vocabulary)


def texts(pairs=False, count=9):
    """Texts or pairs of different lengths, every third without a label."""
    rows = []
    for i in range(count):
        row = {"text": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 5))}
        if pairs:
            row["text_pair"] = " ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(1 + i % 3))
        rows.append({**row, "label": None if i % 3 == 2 else NAMES[i % 2]})
    return datasets.Dataset.from_list(rows)


def several(rows):
    labels = [None if label is None else [label] for label in rows["label"]]
    return rows.remove_columns("label").add_column("labels", labels)


def prepared(task, rows, tokenizer, model, max_length=16):
    data = Data(max_length=max_length)
    return resolve(TASKS, task)().prepare_rows(rows, tokenizer, data, model).dataset


def context_of(task, student, tokenizer, notes=None) -> Context:
    return Context(resolve(TASKS, task)(), student, tokenizer, CPU, (notes or []).append)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# ---- the same as the plain teacher


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("task", ["classification", "multi_label_classification"])
def test_other_numbers_for_the_same_tokens_change_nothing(tmp_path, tokenizer, task, pairs):
    """Labels, answers, and relations of pooled vectors: gradients, losses and agreement, to the bit."""
    student, teacher = build_bert().double(), build_bert(32, 3, seed=1).double().eval()
    other, theirs = shuffled(teacher, tokenizer)
    rows = texts(pairs)
    rows = prepared(task, rows if task == "classification" else several(rows), tokenizer, student)
    step = functools.partial(
        gradient_of_step, task, tmp_path, student, rows=rows, method="distillation", objectives={
            "cross_entropy": 0.3, "forward_kl": {"weight": 0.7, "temperature": 2.0},
            "distance": {"weight": 0.5, "layers": "pooled"}, "cka": {"weight": 0.5, "layers": "pooled"},
        },
    )  # fmt: skip
    heard = live_teacher(other, theirs, "other", context_of(task, student, tokenizer))
    assert isinstance(heard, OwnTokens)
    for batch, accumulation in ((9, 1), (3, 3)):
        want, told = step(teacher=teacher, batch=batch, accumulation=accumulation)
        got, record = step(teacher=heard, batch=batch, accumulation=accumulation)
        assert all(torch.equal(got[name], want[name]) for name in want)
        for name in ("loss", "distance", "cka", "forward_kl", "teacher_nll", "agreement"):
            assert record[name] == told[name], name


def test_an_ensemble_mixes_tokenizers(tmp_path, tokenizer):
    student, teacher = build_bert().double(), build_bert(32, 3, seed=1).double().eval()
    rows, context = (
        prepared("classification", texts(), tokenizer, student),
        context_of("classification", student, tokenizer),
    )
    members = [live_teacher(teacher, tokenizer, "one", context)]
    members += [live_teacher(*shuffled(teacher, tokenizer, seed), "other", context) for seed in (0, 1)]
    step = functools.partial(
        gradient_of_step, "classification", tmp_path, student, rows=rows, method="vanilla_distillation"
    )
    want, _ = step(teacher=teacher)
    for mixture in ("probabilities", "logits"):
        got, _ = step(teacher=Ensemble(members, mixture=mixture))
        assert all(torch.allclose(got[name], want[name], atol=1e-12) for name in want)


# ---- each its own text


def cased(lower: bool) -> BertTokenizerFast:
    words = [*SPECIAL, *WORDS, *(word.title() for word in WORDS)]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=lower)


def test_a_cased_teacher_hears_the_case_that_the_student_does_not(tmp_path):
    """The two know the same tokens under the same numbers; only the case is read otherwise."""
    task = resolve(TASKS, "classification")()
    ours, theirs = cased(lower=True), cased(lower=False)
    same, why = read_alike(task, ours, theirs)
    assert not same and "case" in why and read_alike(task, ours, cased(lower=True))[0]
    assert read_alike(resolve(TASKS, "token_classification")(), ours, theirs)[0]  # it has no text to read
    student, teacher = build_bert().double(), build_bert(32, 3, seed=1).double().eval()
    for model in (student, teacher):
        model.resize_token_embeddings(len(ours))
    both = datasets.Dataset.from_list([{"text": "Good film"}, {"text": "good film"}, {"text": "good Film"}])
    rows = prepared("classification", both, ours, student)
    assert len({tuple(ids) for ids in rows["input_ids"]}) == 1
    context = context_of("classification", student, ours)
    heard = live_teacher(teacher, theirs, "teacher", context)
    said = heard(task.collate(listed(rows)), Want())
    want = [teacher(**theirs(text, return_tensors="pt")).logits[0] for text in both["text"]]
    assert torch.allclose(said.head(said.rows), torch.stack(want), atol=1e-12)
    assert len({round(float(row[0]), 6) for row in want}) == 3
    write_cache(
        heard, task, rows, tmp_path / "c", vocabulary=3, about=of_answers("t", teacher, heard, context)
    )
    stored = answers_in(Store.open(tmp_path / "c"), context)(task.collate(listed(rows)), Want())
    assert torch.allclose(stored.head(stored.rows).double(), torch.stack(want).log_softmax(-1), atol=1e-6)
    assert len(set(keys_of_rows(task, rows))) == 3


def test_a_teacher_reads_as_much_as_it_can(tokenizer):
    """Its own limits, of positions or of its tokenizer; pairs with their segments; padding on its own."""
    task, student = resolve(TASKS, "classification")(), build_bert().double()
    rows = prepared("classification", texts(pairs=True), tokenizer, student, max_length=6)
    for most in (None, 7):
        teacher, theirs = shuffled(build_bert(32, 3, seed=1).double().eval(), tokenizer)
        if most is not None:
            theirs.model_max_length = most
        heard = live_teacher(teacher, theirs, "teacher", context_of("classification", student, tokenizer))
        assert heard.limit == (most or 16)
        said = heard(task.collate(listed(rows)), Want())
        for row, answer in zip(rows, said.head(said.rows), strict=True):
            alone = theirs(*row["texts"], truncation=True, max_length=heard.limit, return_tensors="pt")
            assert torch.allclose(teacher(**alone).logits[0], answer, atol=1e-12)
    nobody = task.collate(listed(rows)[:2], counted=False)
    assert heard(nobody, Want()).rows.shape == (0, 32)
    heard.model.resize_token_embeddings(5)
    with pytest.raises(ModelError, match="gives token id .*, its model knows ids 0 to 4"):
        heard(task.collate(listed(rows)), Want())


# ---- what cannot be


@pytest.mark.parametrize(
    "name", ["hidden_mse", "attention_mse", "value_relation", "embedding_mse", "distance"]
)
def test_terms_on_tokens_are_refused(tmp_path, tokenizer, name):
    student = build_bert()
    rows = prepared("classification", texts(), tokenizer, student)
    heard = live_teacher(
        *shuffled(build_bert(32, 3, seed=1), tokenizer),
        "big",
        context_of("classification", student, tokenizer),
    )
    with pytest.raises(
        RecipeError, match=f"{name} is about tokens, and big cuts the texts into others"
    ) as told:
        gradient_of_step(
            "classification", tmp_path, student, heard, rows, "distillation",
            objectives={"forward_kl": 1.0, name: {"weight": 1.0, "layers": [[1, 1]]}},
        )  # fmt: skip
    assert "layers: pooled" in told.value.hint


def test_what_does_not_fit_is_refused(tmp_path, tokenizer):
    student, teacher = build_bert(), build_bert(32, 3, seed=1)
    context = context_of("classification", student, tokenizer)
    other, theirs = shuffled(teacher, tokenizer)
    heard = live_teacher(other, theirs, "big", context)
    rows = prepared("classification", texts(), tokenizer, student)
    for lacking in (rows.remove_columns("texts"), datasets.concatenate_datasets([
        rows, rows.remove_columns("texts")
    ])):  # fmt: skip
        with pytest.raises(DataError, match="not all of the texts that they were made of"):
            gradient_of_step("classification", tmp_path, student, heard, lacking, "vanilla_distillation")
    with pytest.raises(RecipeError, match="keep_layers is about tokens"):
        about = of_answers("t", other, heard, context)
        write_cache(heard, context.task, rows, tmp_path / "c", vocabulary=3, about=about, layers=[1])
    strange = shuffled(build_bert(32, 3, names=["cat", "dog", "rabbit"]), tokenizer)
    with pytest.raises(ModelError, match="other labels: bad, fine, good against cat, dog, rabbit"):
        live_teacher(*strange, "big", context)
    tagger = context_of("token_classification", student, tokenizer)
    tagger.task.check_model = lambda model, name: None
    with pytest.raises(ModelError, match="different tokenizers"):
        live_teacher(other, theirs, "big", tagger)


# ---- checkpoints


def test_a_run_that_was_cut_goes_on(tmp_path, tokenizer):
    rows = prepared("classification", texts(), tokenizer, build_bert())

    def parts():
        teacher, theirs = shuffled(build_bert(32, 3, seed=1), tokenizer)
        return Parts(
            student=build_bert(), teacher=teacher, tokenizer=tokenizer, teacher_tokenizer=theirs, train=rows,
            device="cpu",
        )  # fmt: skip

    recipe = Recipe(
        task="classification", method="vanilla_distillation", student=Model("s"), teacher=Teacher("t"),
        train=Train(batch_size=3, gradient_accumulation_steps=1, precision="fp32", keep_best=False),
    )  # fmt: skip
    assert_resumes(tmp_path, recipe, parts)
