"""Terms over the first token of each text, [CLS] of encoders: gradients of whole steps against float64 references."""

import copy

import pytest
import torch
from classifiers import build_bert, prepared
from conftest import build_gpt2, build_llama, prepared_rows
from task_steps import gradient_of, gradient_of_step
from test_gradients import assert_close
from test_in_place import NAMES, tagger
from test_in_place import prepared as tagged

from llm_finetuner.data.order import Order
from llm_finetuner.errors import RecipeError
from llm_finetuner.methods.mixture import distillation
from llm_finetuner.output import Want
from llm_finetuner.tasks.classification import Classification
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.shuffled import Shuffled


def first_states(student, teacher, rows, s=1, t=2):
    """The first token's state of every row behind block s of the student and t of the teacher: [B, D] each."""
    said, told = [], []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            told.append(teacher.eval()(ids, output_hidden_states=True).hidden_states[t + 1][0, 0])
        said.append(student(ids, output_hidden_states=True).hidden_states[s + 1][0, 0])
    return torch.stack(said), torch.stack(told)


def distances(x_BD):
    """Of every text to every other one, 0 to itself: [B, B]."""
    rows = [[(a - b).norm() if a is not b else a.sum() * 0 for b in x_BD] for a in x_BD]
    return torch.stack([torch.stack(row) for row in rows])


CASES = {  # task -> (builder of models, rows)
    "classification": (build_bert, lambda: prepared(unlabelled=(1, 6))),
    "token_classification": (tagger, lambda: tagged(len(NAMES))),
}
COUNTS = {  # how many positions count in a row
    "classification": lambda row: 1,
    "token_classification": lambda row: sum(label != -100 for label in row["labels"]),
}


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3), (1, 8)])
def test_a_state_counts_as_its_text_does(tmp_path, task, batch, accumulation):
    """PKD's loss of [CLS] (arXiv 1908.09355), whatever is padded or batched: a text weighs its positions that count."""
    build, rows = CASES[task][0], CASES[task][1]()
    student, teacher = build().double(), build(16, 4, seed=1).double()
    term = {"hidden_normalized": {"weight": 1.0, "layers": [[1, 2]], "tokens": "first"}}
    got, record = gradient_of_step(
        task, tmp_path, student, teacher, rows, "distillation", batch, accumulation, objectives=term
    )
    own, weights = copy.deepcopy(student), torch.tensor([COUNTS[task](row) for row in rows])
    said, told = first_states(own, teacher, rows)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (said, told)]
    loss = ((unit[0] - unit[1]).square().sum(-1) * weights).sum() / weights.sum()
    assert_close(got, gradient_of(loss, own))
    assert record["hidden_normalized"] == pytest.approx(float(loss.detach()), rel=1e-9)


@pytest.mark.parametrize("task", CASES)
def test_relations_of_first_tokens_are_among_the_texts_of_a_batch(tmp_path, task):
    """Park's distance over the texts of each batch; of other widths, for relations need no projection."""
    build, rows = CASES[task][0], CASES[task][1]().select(range(6))
    student, teacher = build().double(), build(32, 3, seed=1).double()
    term = {"distance": {"weight": 1.0, "layers": [[1, 2]], "tokens": "first"}}
    for batch, accumulation in ((6, 1), (3, 2)):
        got, _ = gradient_of_step(
            task, tmp_path, student, teacher, rows, "distillation", batch, accumulation, objectives=term
        )
        order = Order([len(row["input_ids"]) for row in rows], batch, 6, 0).step(1)
        own, loss, count = copy.deepcopy(student), 0.0, 0
        for numbers, _ in order:
            said, told = first_states(own, teacher, [rows[n] for n in numbers])
            weights = torch.tensor([COUNTS[task](rows[n]) for n in numbers])
            # a text carries the mean over its pairs, and counts as often as it has positions
            size = len(numbers)
            x, y = (z / (z.sum() / (size * (size - 1))) for z in map(distances, (said, told)))
            apart = torch.nn.functional.huber_loss(x, y, reduction="none").sum(1) / (size - 1)
            loss, count = loss + (apart * weights).sum(), count + int(weights.sum())
        assert_close(got, gradient_of(loss / count, own), 1e-7)


def test_all_tokens_and_first_ones_are_two_terms(tmp_path):
    student, teacher, rows = build_bert().double(), build_bert(16, 4, seed=1).double(), prepared()
    both = {
        "hidden_mse": {"weight": 1.0, "layers": [[1, 2]]},
        "hidden_mse_2": {"weight": 1.0, "layers": [[1, 2]], "tokens": "first"},
    }
    _, record = gradient_of_step(
        "classification", tmp_path, student, teacher, rows, "distillation", objectives=both
    )
    said, told = first_states(student, teacher, rows)
    assert record["hidden_mse_2"] == pytest.approx(float((said - told).square().mean().detach()), rel=1e-9)
    assert record["hidden_mse"] != record["hidden_mse_2"]


@pytest.mark.parametrize(
    ("objective", "layers"),
    [("hidden_mse", "pooled"), ("attention_mse", "final"), ("value_relation", "final"), ("forward_kl", None),
     ("embedding_mse", None)],
)  # fmt: skip
def test_what_has_no_first_token_is_refused(tmp_path, objective, layers):
    term = {objective: {"weight": 1.0, "layers": layers, "tokens": "first"}}
    with pytest.raises(RecipeError, match=f"tokens: first has nothing to pick for {objective}"):
        gradient_of_step(
            "classification",
            tmp_path,
            build_bert(),
            build_bert(seed=1),
            prepared(),
            "distillation",
            objectives=term,
        )


def test_models_that_are_read_where_they_predict_have_no_first_token(tmp_path):

    term = {"hidden_mse": {"weight": 1.0, "tokens": "first"}}
    with pytest.raises(RecipeError, match="read at all tokens of a text"):
        gradient_of_step(
            "causal_lm", tmp_path, build_gpt2(64), build_llama(64), prepared_rows(8, 64), "distillation",
            objectives=term,
        )  # fmt: skip
    with pytest.raises(RecipeError, match="tokens of hidden_mse must be all or first, got 'cls'"):
        distillation(objectives={"hidden_mse": {"tokens": "cls"}})


def test_the_control_gives_a_text_the_first_token_of_another():
    task = Classification()
    batch = task.collate(prepared(6).to_list())
    teacher = Live(task, build_bert().double())
    told, said = (kind(batch, Want(layers=(1,))) for kind in (teacher, Shuffled(teacher)))
    first = told.first_tokens
    assert int(first.sum()) == 6 and first[0]
    other = told.features[1][first]
    assert torch.equal(said.features[1][first], torch.cat([other[3:], other[:3]]))
    rest = told.features[1][~first]
    assert torch.equal(said.features[1][~first], rest.roll(len(rest) // 2, 0))
