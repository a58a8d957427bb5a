"""Has a recipe's teacher complete the prompts of a recipe's rows, and writes a data set that any student can read."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetuner.assembly import fit_length, load_rows
from llm_finetuner.engine import default_device
from llm_finetuner.errors import DataError, RecipeError
from llm_finetuner.models import loading
from llm_finetuner.named_models import load_teacher
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.run import writing
from llm_finetuner.teaching import check_control
from llm_finetuner.trainer import OnEvent
from llm_finetuner.writing import write_rows

TOKENS = ".tokens"  # added to the name: what the teacher wrote, as it comes, so that a kill loses one batch


def write_dataset(
    recipe: Recipe, path: str | Path, *, overwrite: bool = False, device: str | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write JSON lines of {prompt, completion, row, sample, ended}: text, to be tokenised by any student.

    The recipe's method is one whose teacher writes. `ended` is false where max_new_tokens cut the text. The same call
    goes on where a killed one stopped; with overwrite it begins anew. Returns {"path", "rows", "cut", "blank",
    "tokens"}. Raises FinetunerError.
    """
    say = on_event or (lambda kind, record: None)
    plan, spec, path = recipe.scheme.writing, recipe.teacher, Path(path)
    if plan is None or spec is None or spec.kind != "live":
        raise RecipeError(
            "texts are written by one live teacher", "method: sequence_distillation, teacher.name: ..."
        )

    kept = path.with_name(path.name + TOKENS)

    def as_named(text: str) -> str:
        return text.replace(str(kept), str(path))  # of the two files users know the one that they named

    def note(text: str) -> None:
        say("note", {"text": as_named(text)})

    check_control(recipe, None)
    tokenizer, where = loading.load_tokenizer(spec.name), default_device(device)
    task = resolve(TASKS, recipe.task)()
    teacher = load_teacher(spec, where, task.auto)
    data = replace(fit_length(recipe.data, teacher, note), eval_source=None, eval_split=None, eval_fraction=0)
    rows, _ = load_rows(data, task, teacher, tokenizer, recipe.train.seed, str(path.parent), note)
    if overwrite:
        kept.unlink(missing_ok=True)
    seed, longest = recipe.train.seed, data.max_length
    try:
        write_rows(teacher, tokenizer, rows, plan, kept, seed=seed, max_length=longest, note=note)
    except DataError as error:
        raise DataError(as_named(error.what), error.hint) from error
    records = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    records = sorted(
        (record for record in records if record["sample"] < plan.samples),
        key=lambda record: (record["row"], record["sample"]),
    )
    lines = list(_lines(records, tokenizer))
    if not lines:
        raise DataError("the teacher wrote nothing but blanks", "is it a language model of this data?")
    with writing(path.parent):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {
        "path": str(path),
        "rows": len(lines),
        "cut": sum(not line["ended"] for line in lines),
        "blank": len(records) - len(lines),
        "tokens": sum(len(record["tokens"]) for record in records),
    }


def _lines(records: list[dict], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Rows of text, without those whose completion is blank: there is nothing to learn in them."""
    for record in records:
        prompt, tokens = record["prompt"], record["tokens"]
        ended = tokens[-1:] == [tokenizer.eos_token_id]
        if prompt[:1] == [tokenizer.bos_token_id]:  # reading the row puts it in front again
            prompt = prompt[1:]
        asked = _text(tokenizer, prompt)
        # decoded behind its prompt: some vocabularies drop a blank at the start of a text
        whole = _text(tokenizer, prompt + tokens[: len(tokens) - ended])
        answer = whole[len(asked) :] if whole.startswith(asked) else _text(tokenizer, tokens)
        if answer.strip():
            about = {"row": record["row"], "sample": record["sample"], "ended": ended}
            yield {"prompt": asked, "completion": answer, **about}


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
