"""Run by test_processes.py, in one process and in two: a short float64 training of a scheme.

usage: schemes_script.py OUTPUT SCHEME
"""

import sys
from dataclasses import replace

import classifiers
from conftest import build_gpt2, build_tokenizer, prepared_rows
from test_own_tokens import prepared, shuffled, texts

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.live import Live
from llm_finetuner.trainer import fit

SCHEMES = {
    "ensemble": ("vanilla_distillation", {}),
    "exits": ("self_distillation", {"exits": [0, 1]}),
    "online": ("online_distillation", {}),
    "sequence": ("sequence_distillation", {"max_new_tokens": 5, "sampling_temperature": 1.0, "samples": 2}),
    "own_tokens": ("vanilla_distillation", {"alpha": 0.3}),
}
ROWS = 10


def run(output: str, scheme: str) -> None:
    """Three examples a step, so that one of two processes has a stand-in in some."""
    method, options = SCHEMES[scheme]
    recipe = Recipe(
        method=method, options=options, student=Model("s"), teacher=Teacher("t"), output=output,
        train=Train(steps=4, batch_size=1, gradient_accumulation_steps=3, learning_rate=3e-3, watch_every=2),
    )  # fmt: skip
    if scheme == "own_tokens":
        return fit(replace(recipe, task="classification"), of_texts())
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    others = [build_gpt2(size, width=width, seed=width).double() for width in (24, 32)]
    given = {
        "ensemble": {"teacher": Ensemble([Live(CausalLM(), other) for other in others], "loss")},
        "exits": {},
        "online": {"peers": others},
        "sequence": {"teacher": others[0].eval()},
    }[scheme]
    student = build_gpt2(size, layers=3).double()
    rows, held_out = prepared_rows(ROWS, size), prepared_rows(3, size, seed=9)
    fit(
        recipe,
        Parts(student=student, tokenizer=tokenizer, train=rows, held_out=held_out, device="cpu", **given),
    )


def of_texts() -> Parts:
    """A classifier, and a teacher that has the student's tokens under other numbers."""
    tokenizer, student = classifiers.build_tokenizer(), classifiers.build_bert().double()
    teacher, theirs = shuffled(classifiers.build_bert(32, 3, seed=1).double(), tokenizer)
    rows = prepared("classification", texts(count=ROWS), tokenizer, student)
    return Parts(
        student=student, tokenizer=tokenizer, teacher=teacher, teacher_tokenizer=theirs, train=rows,
        held_out=rows.select(range(3)), device="cpu",
    )  # fmt: skip


if __name__ == "__main__":
    run(*sys.argv[1:])
