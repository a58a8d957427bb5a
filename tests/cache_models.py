"""A tiny teacher, and its answers on disk, for the tests of the cached teacher."""

from pathlib import Path

import torch
from conftest import build_llama

from llm_finetuner.output import Want
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.store import Store

V = 64
TASK, CPU = CausalLM(), torch.device("cpu")
NOTHING = Want()
ABOUT = {"teacher": "t", "fingerprint": "f", "max_length": 14, "loss_on": "completion"}


def build_teacher():
    return build_llama(V).double()


def write(model, rows, path, **options):
    options = {"vocabulary": V, "about": ABOUT, "k": 20, **options}
    return write_cache(Live(TASK, model), TASK, rows, path, **options)


def open_cache(path, **present) -> Cached:
    return Cached(Store.open(Path(path)), TASK, CPU, present)


def listed(rows) -> list[dict]:
    return [rows[i] for i in range(len(rows))]


def answers(teacher, rows, want=NOTHING, batch_size=4):
    """Log-probabilities of each row, [n, V], with its features."""
    said = []
    for start in range(0, len(rows), batch_size):
        out = teacher(TASK.collate(rows[start : start + batch_size]), want)
        for number in range(min(batch_size, len(rows) - start)):
            here = out.examples == number
            log_probs = out.head(out.rows[here]).float().log_softmax(-1)
            said.append((log_probs, {layer: x[here] for layer, x in out.features.items()}))
    return said
