"""Some examples whose labels two models give differently, in words: the text, what is right, and what each model says.

Shapes: E examples, n positions of a batch, C labels.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from llm_finetuner.benchmark.quality import Quality, evaluate_all
from llm_finetuner.teachers.provider import Provider

SHOWN = 6  # examples
NONE = "none"  # of several labels that a text may have


class Said:
    """As quality.Tally: the labels that a model gives, and the right ones, of each position of each example."""

    def __init__(self, examples: int, model: nn.Module):
        self.said: list[list] = [[] for _ in range(examples)]
        self.true: list[list] = [[] for _ in range(examples)]

    def add(self, logits_nC: Tensor, targets_n: Tensor, examples_n: Tensor) -> None:
        several = targets_n.dim() > 1
        said_n = logits_nC > 0 if several else logits_nC.argmax(-1)
        true_n = targets_n >= 0.5 if several else targets_n
        for number, said, true in zip(examples_n.tolist(), said_n.tolist(), true_n.tolist(), strict=True):
            self.said[number].append(said)
            self.true[number].append(true)

    def hear(self, own_nC: Tensor, teacher_nC: Tensor, known_n: Tensor | None) -> None:
        """Agreement is not asked for."""

    def quality(self, with_teacher: bool) -> "Said":
        return self


def differing(
    task: Any,
    models: dict[str, nn.Module],
    rows: Sequence[dict],
    qualities: dict[str, Quality],
    pair: tuple[str, str],
    names: Sequence[str],
    tokenizer: Any,
    teacher: nn.Module | Provider | None = None,
) -> list[dict[str, Any]]:
    """[{text, truth, answers {model: labels}}] of some rows of which a pair of the models has not as much right.

    names: of the labels. teacher: as of evaluate_all. Where words are tagged, only those are listed that one of the
    pair tags wrong.
    """
    one, other = pair
    picked = np.flatnonzero(qualities[one].right != qualities[other].right)
    if not len(picked):
        return []
    picked = picked[np.linspace(0, len(picked) - 1, min(SHOWN, len(picked))).astype(int)]
    chosen = [rows[int(number)] for number in picked]
    heard: dict[str, Said] = evaluate_all(task, models, chosen, teacher=teacher, tally=Said)
    true = next(iter(heard.values())).true
    found = []
    for number, row in enumerate(chosen):
        said = {name: told.said[number] for name, told in heard.items()}
        if task.pooled:  # one answer for the whole text
            wrong, words = [0], [""]
        else:
            wrong = [i for i, right in enumerate(true[number]) if not said[one][i] == said[other][i] == right]
            words = _words(row, tokenizer)
        put = {
            name: ", ".join(f"{words[i]} {_named(labels[i], names)}".strip() for i in wrong)
            for name, labels in {"": true[number], **said}.items()
        }
        found.append({"text": _text(row, tokenizer), "truth": put.pop(""), "answers": put})
    return found


def _named(label: int | list[bool], names: Sequence[str]) -> str:
    if isinstance(label, int):
        return names[label]
    return " + ".join(name for name, on in zip(names, label, strict=True) if on) or NONE


def _text(row: dict, tokenizer: Any) -> str:
    """What is read, without special tokens; the two texts of a pair with a bar between them."""
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    runs = itertools.groupby(row["input_ids"], key=lambda token: token in marks)
    return " | ".join(tokenizer.decode(list(run)).strip() for mark, run in runs if not mark)


def _words(row: dict, tokenizer: Any) -> list[str]:
    """The words with a label: each begins where its label stands."""
    starts = [place for place, label in enumerate(row["labels"]) if label >= 0]
    spans = itertools.pairwise([*starts, len(row["input_ids"])])
    return [tokenizer.decode(row["input_ids"][a:b], skip_special_tokens=True).strip() for a, b in spans]
