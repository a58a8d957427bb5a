"""Run by the tests in a process of its own: one training, which may be killed at a step or resumed.

usage: training_script.py OUTPUT TUNING METHOD KILL_AT RESUME
"""

import os
import signal
import sys

from conftest import build_gpt2, build_llama, prepared_rows

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train, Tuning
from llm_finetuner.trainer import fit

EXACT_BATCH = (1, 3)  # three batches a step, so that one of two processes has a stand-in in each


def main(output: str, tuning: str, method: str, kill_at: int, resume: bool, stop_signal: int) -> None:
    student, teacher, batch = build_gpt2(64, dropout=0.1), build_llama(64), (3, 2)
    if (
        method == "exact"
    ):  # without dropout, whose masks differ between processes, and without float32 rounding
        student, teacher = build_gpt2(64).double(), teacher.double()
        method, batch = "vanilla_distillation", EXACT_BATCH
    recipe = Recipe(
        method=method, tuning=Tuning(tuning), student=Model("s"), teacher=Teacher("t"), output=output,
        train=Train(epochs=2, batch_size=batch[0], gradient_accumulation_steps=batch[1], learning_rate=3e-3,
                    save_every=2, eval_every=3, schedule="linear", weight_decay=0.1),
    )  # fmt: skip

    def on_event(kind: str, record: dict) -> None:
        if kind == "step" and record["step"] == kill_at:
            os.kill(os.getpid(), stop_signal)

    rows = prepared_rows(20, 64)
    parts = Parts(
        student=student, teacher=teacher, train=rows, held_out=prepared_rows(5, 64, seed=9), device="cpu"
    )
    fit(recipe, parts, resume=resume, on_event=on_event)


if __name__ == "__main__":
    output, tuning, method, kill_at, resume, *rest = sys.argv[1:]
    main(output, tuning, method, int(kill_at), resume == "resume", int(rest[0]) if rest else signal.SIGKILL)
