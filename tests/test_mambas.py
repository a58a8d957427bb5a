"""Mamba, Mamba-2 and a Llama with Mamba-2 for attention as students, teachers and writers.

Letters: B sequences, T tokens, N positions that count, V vocabulary.
"""

import pytest
import torch
from conftest import prepared_rows
from mamba_models import KINDS, NAMES, V, close, llama
from task_steps import gradient_of, gradient_of_step

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark import speed
from llm_finetuner.benchmark.text import continuations
from llm_finetuner.errors import RecipeError
from llm_finetuner.models.mixers import goes_on
from llm_finetuner.models.packing import check_packable, packable
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]().eval()


def test_step_by_step_is_the_whole_text_at_once(model):
    ids_BT = torch.randint(2, V, (2, 7))
    how = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    said = model.generate(ids_BT, use_cache=goes_on(model), eos_token_id=None, **how)
    whole = model(said.sequences, use_cache=False).logits[:, 6:-1]
    close(torch.stack(said.logits, 1), whole)


def test_texts_and_speeds(model, tokenizer):
    words = KINDS[NAMES[model.config.model_type]](len(tokenizer)).eval()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    together = continuations(words, tokenizer, prompts, max_new_tokens=5)
    alone = [continuations(words, tokenizer, [prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert together == alone
    speeds = speed.measure({"it": words}, torch.arange(5, 14)[None], repeats=1, new_tokens=3)
    assert speeds["it"]["latency_ms"] > 0


def test_padding_on_either_side_changes_nothing(model):
    ids_BT = torch.randint(2, V, (2, 6))
    want = model(ids_BT).logits
    for left, right in ((3, 0), (0, 5)):
        padded = torch.nn.functional.pad(ids_BT, (left, right), value=1)
        mask = torch.nn.functional.pad(torch.ones_like(ids_BT), (left, right))
        got = model(padded, attention_mask=mask).logits[:, left : left + 6]
        close(got, want)


def test_examples_cannot_share_rows(model):
    assert not packable(model)
    with pytest.raises(RecipeError, match=f"a {model.config.model_type} is not known to keep examples apart"):
        check_packable(model)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_refused_before_training(kind, tmp_path):
    recipe = Recipe(student=Model("s"), output=str(tmp_path), train=Train(steps=1, packing=True))
    with pytest.raises(RecipeError, match="not known to keep examples apart"):
        fit(recipe, Parts(student=KINDS[kind](), train=prepared_rows(vocabulary=V)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_step_through_hidden_states_and_answers(kind, tmp_path):
    """Against the formula on each row alone, so accumulation and padding are held as well."""
    student, teacher, rows = KINDS[kind]().double(), llama(seed=7).double(), prepared_rows(8, V)
    got, record = gradient_of_step(
        "causal_lm", tmp_path, student, teacher, rows, "feature_distillation",
        alpha=0.2, feature_layers=[[0, 0], [1, 1]], output_weight=0.5, temperature=2.0,
    )  # fmt: skip
    student.train()
    total, count = 0.0, 0
    for row in rows:
        ids_1T, labels_T = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        places_N = (labels_T[1:] != -100).nonzero()[:, 0]
        own, states = asked(student, ids_1T, places_N)
        with torch.no_grad():
            told, told_states = asked(teacher.eval(), ids_1T, places_N)
        p, q = (told / 2).softmax(-1), (own / 2).log_softmax(-1)
        apart = sum((a - b).square().mean(-1).sum() for a, b in zip(states, told_states, strict=True)) / 2
        truth = torch.nn.functional.cross_entropy(own, labels_T[1:][places_N], reduction="sum")
        total = total + 0.2 * truth + 0.8 * apart + 0.5 * 4 * (p * (p.log() - q)).sum()
        count += len(places_N)
    want = gradient_of(total / count, student)
    assert record["loss"] == pytest.approx((total / count).item(), rel=1e-6)
    for name, gradient in want.items():
        if gradient is not None:
            assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-6), name


def asked(model, ids_1T, places_N):
    """(logits, states after each block) at these positions of one row."""
    states, hooks = [], []
    for block in blocks_of(model):
        hooks.append(block.register_forward_hook(lambda _m, _i, out: states.append(out)))
    logits_NV = model(ids_1T, use_cache=False).logits[0, places_N].double()
    for hook in hooks:
        hook.remove()
    return logits_NV, [(out[0] if isinstance(out, tuple) else out)[0, places_N] for out in states]


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_teacher(kind, tmp_path):
    rows, teacher = prepared_rows(8, V), KINDS[kind]()
    result = fit(
        Recipe(
            method="feature_distillation", student=Model("s"), teacher=Teacher("t"), output=str(tmp_path),
            options={"output_weight": 1.0, "feature_layers": "uniform"},
            train=Train(steps=2, batch_size=4, gradient_accumulation_steps=1, save_every=0),
        ),
        Parts(student=llama(seed=9), teacher=teacher, train=rows),
    )  # fmt: skip
    assert result.history[-1]["forward_kl"] > 0
    assert result.history[-1]["hidden_mse"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_interrupted_ends_with_the_same_weights(kind, tmp_path):
    def recipe(name, steps):
        plan = Train(
            steps=steps, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2, save_every=2,
            schedule="constant", warmup=0, keep_best=False,
        )  # fmt: skip
        return Recipe(student=Model("s"), output=str(tmp_path / name), train=plan)

    parts = {"train": prepared_rows(vocabulary=V)}
    whole = fit(recipe("whole", 4), Parts(student=KINDS[kind](), **parts)).tuned.model.state_dict()
    fit(recipe("parts", 2), Parts(student=KINDS[kind](), **parts))
    resumed = fit(recipe("parts", 4), Parts(student=KINDS[kind](seed=99), **parts), resume=True)
    for name, weight in resumed.tuned.model.state_dict().items():
        assert torch.equal(weight, whole[name]), name
