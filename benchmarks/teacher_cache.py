"""What a cache of a teacher's answers costs and loses, beside top-32 in bfloat16: bytes, nats and microseconds a token.

    python benchmarks/teacher_cache.py [--teacher FOLDER --text FILE]

Without options: the shipped teacher on modules of the standard library that it has not seen.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llm_finetuner import assets
from llm_finetuner.data import stdlib
from llm_finetuner.models import loading
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.output import Want
from llm_finetuner.tasks.causal_lm import CausalLM
from llm_finetuner.teachers.cached import Cached
from llm_finetuner.teachers.caching import write_cache
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.sparse import spread
from llm_finetuner.teachers.store import Store

LENGTH, ROWS = 128, 400


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--teacher", default=None)
    asked.add_argument("--text", default=None)
    asked = asked.parse_args()
    folder = asked.teacher or str(assets.path("quickstart/teacher"))
    text = (
        Path(asked.text).read_text(encoding="utf-8")
        if asked.text
        else "\n".join(row["text"] for row in stdlib.corpus("test"))
    )
    ids = loading.load_tokenizer(folder)(text)["input_ids"]
    rows = [
        {"input_ids": part, "attention_mask": [1] * LENGTH, "labels": part}
        for part in (ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH))
    ]
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    task, teacher = CausalLM(), Live(CausalLM(), loading.load_pretrained(folder, dtype="float32"))
    vocabulary = task.vocabulary(teacher.model)
    with tempfile.TemporaryDirectory() as scratch:
        for k in (20, 50, 100):
            began = time.process_time()
            made = write_cache(teacher, task, rows, f"{scratch}/{k}", vocabulary=vocabulary, about={}, k=k)
            print({**made, "path": folder, "k": k, "seconds": round(time.process_time() - began, 1)})
        cache = Cached(Store.open(Path(scratch) / "50"), task, torch.device("cpu"))
        batch = task.collate(rows[100:108])
        live, kept = teacher(batch, Want()), cache(batch, Want())
        log_probs = live.head(live.rows).float().log_softmax(1)
        listed, best = log_probs.topk(32)
        even = spread(best, listed.bfloat16().float(), vocabulary)
        print("top-32 in bfloat16, even tail, KL:", forward_kl(even, log_probs).mean().item())
        for name, work in (
            ("decode", lambda: kept.head(kept.rows)),
            ("log_softmax of as many logits", lambda: log_probs.log_softmax(1)),
            ("read a batch", lambda: cache(batch, Want())),
        ):
            print(f"{name}: {microseconds(work) / len(log_probs):.1f} us a token")


def microseconds(work) -> float:
    """The shortest of ten, so that other processes count little."""
    times = []
    for _ in range(10):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1e6 * min(times)


if __name__ == "__main__":
    main()
