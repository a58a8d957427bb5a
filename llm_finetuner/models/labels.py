"""The labels of a classifier: their names, the layer that scores them, and one order of them for student and teacher.

Shapes: D width of what the layer reads, C labels.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from llm_finetuner.errors import NAME_NUMBERS, DataError, ModelError

BESIDE = "adapter_labels.json"


def names_of(model: nn.Module) -> list[str]:
    """Names of the labels in the order of the logits: [C]."""
    return [str(model.config.id2label[i]) for i in range(model.config.num_labels)]


def generic(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to labels that nobody has named."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def scorer_of(model: nn.Module) -> nn.Linear:
    """The layer whose output is the logits: [n, D] -> [n, C]. Raises ModelError where there is none to be found.

    Where an adapter trains the layer whole, its copy, and not the one that it stands in for.
    """
    trunk, count = set(model.base_model.modules()), model.config.num_labels
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module not in trunk
        and module.out_features == count
        and "original_module" not in name.split(".")  # what peft calls the other one
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {count} outputs behind its blocks",
            "take a model that transformers loads with a classification head",
        )
    return found[-1]


def rename(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Give a model these labels, in this order; where their number changes the scoring layer is drawn from the seed."""
    if len(names) != model.config.num_labels:
        layer = scorer_of(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = nn.Linear(layer.in_features, len(names), bias=layer.bias is not None)
            nn.init.normal_(new.weight, std=model.config.to_dict().get("initializer_range", 0.02))
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        for name, weight in new.named_parameters():
            old = layer.get_parameter(name)  # the layer itself stays, with what is hooked to it
            setattr(layer, name, nn.Parameter(weight.to(old.device, old.dtype), old.requires_grad))
        layer.out_features = model.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}


def write(model: nn.Module, folder: str | Path) -> None:
    """Keep the labels beside an adapter: its base may have others or none, and peft saves no configuration."""
    kept = {"labels": names_of(model), "problem_type": model.config.problem_type}
    (Path(folder) / BESIDE).write_text(json.dumps(kept, indent=1), encoding="utf-8")


def read(model: nn.Module, folder: str | Path) -> None:
    """Give the base of an adapter the labels that `write` kept, if it did; the scoring layer is the adapter's own."""
    path = Path(folder) / BESIDE
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        rename(model, kept["labels"], 0)
        model.config.problem_type = kept["problem_type"]


def check(model: nn.Module, names: Sequence[str] | None) -> None:
    """Raise DataError where rows are numbered by other labels than the model's. None: they do not say."""
    known = names_of(model)
    if names is None or list(names) == known or generic(names) or (generic(known) and _counted(names, known)):
        return
    raise DataError(
        f"the rows were prepared for the labels {', '.join(names)}, the model has {', '.join(known)}",
        NAME_NUMBERS if _counted(names, names) else "prepare the rows with this model",
    )


def fit(model: nn.Module, names: Sequence[str] | None, seed: int) -> None:
    """Give a model the labels that rows are numbered by, where they say. Raises DataError where it has others."""
    if names is None or generic(names):
        return
    if not generic(names_of(model)):
        return check(model, names)
    rename(model, names, seed)


def _counted(names: Sequence[str], unnamed: Sequence[str]) -> bool:
    """Whether the names are the numbers of labels that have no names: "0", "1" for LABEL_0, LABEL_1."""
    return list(names) == [str(number) for number in range(len(unnamed))]


def order_of(student: nn.Module, theirs: Sequence[str], seed: int) -> list[int] | None:
    """Where each of the student's labels stands among a teacher's, compared by name; None where they stand alike.

    A student whose labels nobody has named takes the teacher's; a new scoring layer is drawn from the seed. Labels
    without names of a teacher agree with numbers alone: which name is LABEL_0 nobody can know. Raises ModelError where
    the labels are other ones.
    """
    ours, theirs = names_of(student), list(theirs)
    if ours == theirs:
        return None
    if generic(ours):
        return rename(student, theirs, seed)
    if generic(theirs):
        if _counted(ours, theirs):
            return None
        raise ModelError(
            f"the student's labels are {', '.join(ours)}, and the teacher's {len(theirs)} have no names",
            "write id2label into the teacher's config.json: nobody else knows which of them is LABEL_0",
        )
    places = {name.casefold(): number for number, name in enumerate(theirs)}
    if sorted(places) != sorted(name.casefold() for name in ours):
        raise ModelError(
            f"student and teacher have other labels: {', '.join(ours)} against {', '.join(theirs)}",
            NAME_NUMBERS
            if _counted(ours, ours)
            else "take a teacher that was trained on the same labels; they are compared by name",
        )
    return [places[name.casefold()] for name in ours]


@torch.no_grad()
def match(student: nn.Module, teacher: nn.Module, seed: int) -> None:
    """Bring both to one order of labels, as `order_of` compares them: the teacher's scoring layer is put in it."""
    order = order_of(student, names_of(teacher), seed)
    if order is not None:
        for weight in scorer_of(teacher).parameters():
            weight.copy_(weight[order].clone())
    if names_of(teacher) != names_of(student):
        rename(teacher, names_of(student), seed)
