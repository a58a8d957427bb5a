"""Sequence-level distillation: the teacher writes completions, a batch at a time, into a file that survives a kill."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner.benchmark.text import continuations
from llm_finetuner.data.examples import Builder
from llm_finetuner.errors import DataError, ModelError
from llm_finetuner.rollout import prompt_length, room_for
from llm_finetuner.scheme import Writing
from llm_finetuner.teachers.identity import fingerprint

PROMPTS_AT_ONCE = 16
POLL = 0.5  # seconds


def write_rows(
    teacher: nn.Module,
    tokenizer: Any,
    rows: Any,
    plan: Writing,
    path: Path,
    *,
    seed: int,
    max_length: int,
    note: Callable[[str], None],
    first: bool = True,
) -> Any:
    """Prepared rows whose completions the teacher wrote. `path`: JSON lines of {row, sample, teacher, ..., tokens}.

    The prompt of a row is what does not count, or its first half. What the file holds already is not written again.
    first: of several processes the first one writes, the others wait for its file.
    Raises ModelError, DataError.
    """
    if tokenizer is None:
        raise ModelError("the teacher writes text and needs a tokenizer", "give tokenizer=...")
    prompts = [row["input_ids"][: prompt_length(row)] for row in rows]
    room, new = room_for(plan.max_new_tokens, max_length)
    prompts = [ids[-room:] for ids in prompts]
    plan = replace(plan, max_new_tokens=new)
    about = _about(teacher, plan, seed)
    wanted = [(i, s) for i in range(len(prompts)) for s in range(plan.samples)]
    done = _read(path, prompts, plan.samples, about, mend=first)
    while not first and len(done) < len(wanted):
        time.sleep(POLL)
        done = _read(path, prompts, plan.samples, about, mend=False)
    missing = [place for place in wanted if place not in done]
    if missing:
        note(f"the teacher writes {len(missing)} completions into {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), PROMPTS_AT_ONCE):
        piece = missing[start : start + PROMPTS_AT_ONCE]
        said = _write(teacher, tokenizer, [prompts[i] for i, _ in piece], plan, _seed(seed, *piece[0]))
        with open(path, "a", encoding="utf-8") as file:
            for (i, sample), (tokens, ended) in zip(piece, said, strict=True):
                new = tokens + [tokenizer.eos_token_id] * ended
                done[i, sample] = new
                record = {
                    "row": i,
                    "sample": sample,
                    **about,
                    "prompt": prompts[i],
                    "tokens": new,
                }
                file.write(json.dumps(record) + "\n")
    if all(new in ([], [tokenizer.eos_token_id]) for new in done.values()):
        raise DataError(
            "the teacher wrote nothing but the end of the text", "is it a language model of this data?"
        )
    return _rows(rows, prompts, done, plan)


def _seed(seed: int, row: int, sample: int) -> int:
    """A draw of its own for every batch, from the first of its rows."""
    return random.Random(f"{seed} {row} {sample}").getrandbits(32)


def _write(teacher: nn.Module, tokenizer: Any, prompts: list[list[int]], plan: Writing, seed: int):
    sample = plan.sampling_temperature > 0
    return continuations(
        teacher, tokenizer, prompts, max_new_tokens=plan.max_new_tokens, batch_size=len(prompts), do_sample=sample,
        temperature=plan.sampling_temperature if sample else 1.0, seed=seed,
    )  # fmt: skip


def _about(teacher: nn.Module, plan: Writing, seed: int) -> dict[str, Any]:
    """What decides a completion beside its prompt."""
    offloaded = any(weight.is_meta for weight in teacher.parameters())
    return {
        "teacher": teacher.name_or_path if offloaded else fingerprint(teacher),
        "seed": seed,
        "temperature": plan.sampling_temperature,
        "max_new_tokens": plan.max_new_tokens,
    }


def _read(
    path: Path, prompts: list[list[int]], samples: int, about: dict, *, mend: bool
) -> dict[tuple[int, int], list[int]]:
    """What was written before a kill, by (row, sample); mend cuts a broken last line off the file.

    Raises DataError when it belongs to other prompts.
    """
    done: dict[tuple[int, int], list[int]] = {}
    whole = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break  # cut off by a kill
        if not line.endswith("\n"):
            break
        i = record["row"]
        was = {key: record.get(key) for key in about}
        if i >= len(prompts) or record["prompt"] != prompts[i] or was != about:
            raise DataError(
                f"{path} holds completions of other prompts, another teacher or other settings ({was})",
                "--overwrite begins anew; else remove that file, or choose another output",
            )
        if record["sample"] < samples:
            done[i, record["sample"]] = record["tokens"]
        whole.append(line)
    if mend and path.exists():
        path.write_text("".join(whole), encoding="utf-8")
    return done


def _rows(rows: Any, prompts: list[list[int]], done: dict[tuple[int, int], list[int]], plan: Writing) -> Any:
    builder = Builder()
    for (i, _), new in sorted(done.items()):
        if new:
            builder.add(prompts[i] + new, [False] * len(prompts[i]) + [True] * len(new))
    for row in rows if plan.keep_data else ():
        builder.add_labels(row["input_ids"], row["attention_mask"], row["labels"])
    builder.flush()
    return builder.dataset()
