"""Run by the tests, in one process or two: a training in float64, plain or packed by a budget of tokens.

usage: batches_script.py OUTPUT plain|packed
"""

import sys

from conftest import build_gpt2, build_llama, prepared_rows

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

if __name__ == "__main__":
    output, way = sys.argv[1:]
    plan = {"max_tokens": 16, "packing": True} if way == "packed" else {}
    recipe = Recipe(
        method="vanilla_distillation", student=Model("s"), teacher=Teacher("t"), output=output,
        train=Train(epochs=2, batch_size=1, gradient_accumulation_steps=7, learning_rate=3e-3, save_every=0, **plan),
    )  # fmt: skip
    student, teacher = build_gpt2(64).double(), build_llama(64).double()
    fit(recipe, Parts(student=student, teacher=teacher, train=prepared_rows(20, 64), device="cpu"))
