"""One optimizer step of `fit` seen as a gradient, and the outputs of a model row by row, for references in float64.

SGD at rate 1 moves every weight by minus its gradient. Letters: N positions that count, T tokens, V vocabulary.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.run import read_log
from llm_finetuner.trainer import fit

STEP = {
    "learning_rate": 1.0, "warmup": 0, "schedule": "constant", "max_grad_norm": 0,
    "optimizer": "step_reference:sgd", "precision": "fp32", "save_every": 0,
}  # fmt: skip


def sgd(parameters, weight_decay, device):
    return torch.optim.SGD(parameters, lr=1.0)


def recipe_of(folder: Path, method: str, options: dict, *, teacher: Teacher | None = None, **train) -> Recipe:
    """SGD at rate 1, one step over 8 rows unless `train` says otherwise."""
    settings = {"steps": 1, "batch_size": 4, "gradient_accumulation_steps": 2, **STEP, **train}
    return Recipe(
        method=method, options=options, student=Model("s"), teacher=teacher or Teacher("t"), output=str(folder),
        train=Train(**settings),
    )  # fmt: skip


def step_of(
    folder: Path, student, teacher, rows, method: str, *, spec=None, peers=(), tokenizer=None, **more
):
    """(gradient of every weight of the student, one of every peer, the step's record, the student after it).

    Settings of Train by their names; all others are options of the method.
    """
    known = {"batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "seed"}
    train = {name: more.pop(name) for name in known & more.keys()}
    models = [copy.deepcopy(student), *(copy.deepcopy(peer) for peer in peers)]
    before = [_weights(model) for model in models]
    folder = folder / f"{method}{len(list(folder.iterdir()))}"
    recipe = recipe_of(folder, method, more, teacher=spec, **train)
    parts = Parts(
        student=models[0], teacher=copy.deepcopy(teacher), peers=models[1:], train=rows, tokenizer=tokenizer,
        device="cpu",
    )  # fmt: skip
    result = fit(recipe, parts)
    moved = [
        {name: old - new for (name, old), new in zip(was.items(), _weights(model).values(), strict=True)}
        for was, model in zip(before, models, strict=True)
    ]
    return moved[0], moved[1:], result.history[0], models[0]


def _weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def said_of(model, row: dict, blocks: bool = False):
    """(logits [N, V], targets [N], where they stand [N], all hidden states [T, D] after each block if asked for)."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
    kept: list = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, o: kept.append((o[0] if isinstance(o, tuple) else o)[0]))
        for block in (blocks_of(model) if blocks else ())
    ]
    logits = model(ids).logits[0, :-1]
    for hook in hooks:
        hook.remove()
    at = (labels != -100).nonzero()[:, 0]
    return logits[at], labels[at], at, kept


def blocks_of(model):
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def kl(student, teacher, temperature: float = 1.0):
    """T^2 KL(teacher || student), summed over the positions."""
    log_p, log_q = (torch.log_softmax(z / temperature, -1) for z in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()


def cross_entropy(logits, targets):
    """Summed over the positions."""
    return -torch.log_softmax(logits, -1)[range(len(targets)), targets].sum()


def gradients(loss, model) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, weights, found, strict=True)}


def assert_close(got: dict, want: dict, tolerance: float = 1e-9) -> None:
    scale = max(g.abs().max() for g in want.values())
    assert scale > 0
    for name, gradient in want.items():
        assert (got[name] - gradient).abs().max() <= tolerance * scale, name


def follow(model, loss, rate: float) -> None:
    """One step of SGD."""
    found = gradients(loss, model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p -= rate * found[name]


class Stopped(Exception):
    """Ends a run in the middle of a step's report, as a crash would."""


def assert_resumes(folder: Path, recipe: Recipe, build_parts) -> None:
    """A run that ends after step 3, with a checkpoint of step 2, and goes on: the same log and weights, bit for bit."""
    runs = [folder / name for name in ("whole", "cut")]

    def stop(kind: str, record: dict) -> None:
        if kind == "step" and record["step"] == 3:
            raise Stopped

    train = replace(recipe.train, steps=5, save_every=2, optimizer="adamw", learning_rate=1e-3)
    whole, cut = (replace(recipe, train=train, output=str(run)) for run in runs)
    fit(whole, build_parts())
    with pytest.raises(Stopped):
        fit(cut, build_parts(), on_event=stop)
    fit(cut, build_parts(), resume=True)
    plain = [
        [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in read_log(run)]
        for run in runs
    ]  # fmt: skip
    assert plain[0] == plain[1] and [record["step"] for record in plain[1]] == [1, 2, 3, 4, 5]
    files = [sorted(p.relative_to(run) for p in run.rglob("*.safetensors")) for run in runs]
    assert files[0] == files[1] and len(files[0]) > 1
    for name in files[0]:
        want, got = load_file(runs[0] / name), load_file(runs[1] / name)
        assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want), name
