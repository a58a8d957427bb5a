"""Whole steps with LoRA on models that label texts, tag words and fill in, against float64 references."""

import copy

import pytest
import torch
from classifiers import build_bert, build_gpt2, prepared, row_by_row
from task_steps import recipe_of_step
from test_gradients import assert_close
from test_in_place import NAMES as TAGS
from test_in_place import V, filler, tagger
from test_in_place import prepared as tokens_of

from llm_finetuner.assembly import Parts
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.trainer import fit
from llm_finetuner.tuning.lora import lora


def stirred(task: str, model):
    """A model with LoRA whose matrices are none of them zero, as Tuned."""
    tuned = lora(model, 10, resolve(TASKS, task)(), lora_dropout=0.0, r=4)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.3)
    return tuned


OBJECTIVES = {
    "cross_entropy": 0.3,
    "forward_kl": {"weight": 0.7, "temperature": 2.0},
    "hidden_mse": {"weight": 0.5, "layers": "pooled"},
    "distance": {"weight": 0.5, "layers": "pooled"},
}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("build", [build_bert, build_gpt2])
def test_a_step_with_an_adapter_is_the_gradient_of_the_definition(tmp_path, build, batch, accumulation):
    """Labels, the teacher's answers, and the pooled vector: what moves is LoRA and the layers behind the blocks."""
    teacher, rows = build_bert(16, 3, seed=1).double(), prepared(unlabelled=(2,))
    listed = {k: v for k, v in OBJECTIVES.items() if batch == 8 or k != "distance"}  # it is of a batch
    tuned = stirred("classification", build().double())
    own, before = copy.deepcopy(tuned.model), copy.deepcopy(tuned.model.state_dict())
    recipe = recipe_of_step(
        "classification", tmp_path / "run", "distillation", batch, accumulation, True, objectives=listed
    )
    fit(recipe, Parts(tuned=tuned, teacher=copy.deepcopy(teacher), train=rows, device="cpu"))
    got = {name: before[name] - weight for name, weight in tuned.model.state_dict().items()}
    total, pooled = 0.0, ([], [])
    for said, told, label in row_by_row(own, teacher, rows):
        log_s, log_t = (torch.log_softmax(x.logits[0] / 2, -1) for x in (said, told))
        total = total + 0.7 * 4 * (log_t.exp() * (log_t - log_s)).sum()
        if label >= 0:
            total = total - 0.3 * torch.log_softmax(said.logits[0], -1)[label]
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        for model, into in ((own, pooled[0]), (teacher, pooled[1])):
            gpt2 = model.config.model_type == "gpt2"
            into.append(model.transformer(ids)[0][0, -1] if gpt2 else model.bert(ids).pooler_output[0])
    ours, theirs = torch.stack(pooled[0]), torch.stack(pooled[1]).detach()
    total = total + 0.5 * (ours - theirs).square().mean(-1).sum()
    if "distance" in listed:
        pairs = [(i, j) for i in range(8) for j in range(i)]
        apart = [torch.stack([(x[i] - x[j]).norm() for i, j in pairs]) for x in (ours, theirs)]
        apart = [x / x.mean() for x in apart]
        total = total + 0.5 * 8 * torch.nn.functional.huber_loss(*apart)
    moving = {name: weight for name, weight in own.named_parameters() if weight.requires_grad}
    wanted = torch.autograd.grad(total / 8, list(moving.values()))
    assert_close({name: got[name] for name in moving}, dict(zip(moving, wanted, strict=True)), 1e-7)
    assert {name.split(".")[0] for name in moving if "lora_" not in name} <= {"classifier", "score", "bert"}
    assert any("modules_to_save" in name for name in moving)
    still = [name for name in got if name not in moving]
    assert still and not any(got[name].any() for name in still)


@pytest.mark.parametrize("task", ["token_classification", "masked_lm"])
def test_a_step_of_answers_at_tokens_with_an_adapter(tmp_path, task):
    student, teacher = (
        (tagger(), tagger(16, 4, seed=1)) if task != "masked_lm" else (filler(), filler(16, 4, seed=1))
    )
    rows, teacher = tokens_of(V if task == "masked_lm" else len(TAGS)), teacher.double()
    tuned = stirred(task, student.double())
    own, before = copy.deepcopy(tuned.model), copy.deepcopy(tuned.model.state_dict())
    recipe = recipe_of_step(task, tmp_path / "run", "vanilla_distillation", 3, 3, True, alpha=0.4)
    fit(recipe, Parts(tuned=tuned, teacher=copy.deepcopy(teacher), train=rows, device="cpu"))
    total, count = 0.0, 0
    for row in rows:
        ids, told = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        at = told != -100
        log_t = torch.log_softmax(teacher(ids).logits[0][at].detach() / 2, -1)
        said = own(ids).logits[0][at]
        log_s = torch.log_softmax(said / 2, -1)
        total = total + 0.6 * 4 * (log_t.exp() * (log_t - log_s)).sum()
        total = total - 0.4 * torch.log_softmax(said, -1)[range(int(at.sum())), told[at]].sum()
        count += int(at.sum())
    moving = {name: weight for name, weight in own.named_parameters() if weight.requires_grad}
    wanted = torch.autograd.grad(total / count, list(moving.values()))
    got = {name: before[name] - tuned.model.state_dict()[name] for name in moving}
    assert_close(got, dict(zip(moving, wanted, strict=True)))
    behind = {name.split(".modules_to_save")[0] for name in moving if "lora_" not in name}
    assert behind == ({"cls.predictions.transform"} if task == "masked_lm" else {"classifier"})
