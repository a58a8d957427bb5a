"""One step of a task on prepared rows, and what its gradient is held against."""

import copy

import torch

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.trainer import fit


def gradient_of_step(task, tmp_path, student, teacher, rows, method, batch=4, accumulation=2, **options):
    """Minus the change of every weight in one step of plain gradient descent at rate 1, and the step's record."""
    student = copy.deepcopy(student)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    recipe = recipe_of_step(task, folder, method, batch, accumulation, teacher is not None, **options)
    heard = teacher if isinstance(teacher, Provider) else copy.deepcopy(teacher)
    result = fit(recipe, Parts(student=student, teacher=heard, train=rows, device="cpu"))
    after = dict(student.named_parameters())
    return {name: before[name] - after[name].detach() for name in before}, result.history[0]


def recipe_of_step(task, folder, method, batch, accumulation, taught, **options):
    """One step of plain gradient descent at rate 1."""
    return Recipe(
        task=task, method=method, options=options, student=Model("s"), teacher=Teacher("t") if taught else None,
        output=str(folder),
        train=Train(
            steps=1, batch_size=batch, gradient_accumulation_steps=accumulation, learning_rate=1.0, warmup=0,
            schedule="constant", max_grad_norm=0, optimizer="test_gradients:sgd", precision="fp32", save_every=0,
        ),
    )  # fmt: skip


def gradient_of(loss, model):
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True))
