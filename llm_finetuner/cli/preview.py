"""How the rows of a recipe will be read: their shape in a sentence, two of them, how many and how long they are."""

import functools
from dataclasses import dataclass
from pathlib import Path

from llm_finetuner.recipe import Recipe

SAMPLE = 200  # rows that are tokenised to learn their length


@dataclass(frozen=True)
class Sight:
    """rows: [(text, counted)] a row. examples and length (tokens, on average) are what training will see."""

    sentence: str
    rows: list[list[tuple[str, bool]]]
    examples: int
    length: float


def look(recipe: Recipe) -> Sight:
    """Read the data of a recipe, with the tokenizer of its student. Raises FinetunerError."""
    data = recipe.data
    lists = tuple(tuple(x) if isinstance(x, list) else x for x in (data.files, data.text_columns))
    from llm_finetuner.named_models import student_source

    return _look(
        student_source(recipe), data.source, data.config, data.split, data.samples, data.max_length,
        data.loss_on, data.on_bad_row, *lists, tuple(data.only.items()), stamp(data.source),
    )  # fmt: skip


def stamp(source: str) -> tuple:
    """Changes when the file does, so that a mended file is read again; a folder or glob is known by its name only."""
    path = Path(source).expanduser()
    return (path.resolve(), path.stat().st_mtime_ns) if path.exists() else (Path.cwd(),)


@functools.lru_cache(maxsize=4)
def _look(
    student, source, config, split, samples, max_length, loss_on, on_bad_row, files, columns, wanted, _stamp
) -> Sight:
    from llm_finetuner.assembly import only
    from llm_finetuner.cli.estimate import positions
    from llm_finetuner.cli.progress import quiet_libraries
    from llm_finetuner.data import shapes, sources, text
    from llm_finetuner.models.loading import load_tokenizer

    quiet_libraries()
    tokenizer = load_tokenizer(student)
    read = sources.read(
        source,
        config=config,
        split=split,
        files=files,
        samples=samples,
        text_columns=columns,
        on_bad_row=on_bad_row,
    )
    dataset = only(read.dataset, dict(wanted), source)
    limit = min(max_length, positions(student) or max_length)  # what training will cut at
    options = {
        "text_columns": columns,
        "max_length": limit,
        "loss_on": loss_on,
        "on_bad_row": on_bad_row,
    }
    rows = len(dataset)
    head = dataset.select(range(min(SAMPLE, rows)))
    shown = text.preview(head, tokenizer, n=2, **options)
    stats = text.prepare(head, tokenizer, **options).stats
    examples = max(1, round(rows * stats["examples"] / len(head)))
    cut = cut_in_words(int(stats["truncated"]), len(head), rows, limit)
    sentence = f"{rows:,} rows, {shapes.describe(read.shape)}" if read.shape else f"{rows:,} prepared rows"
    skipped = f", {read.skipped} bad rows left out" if read.skipped else ""
    return Sight(
        f"{sentence}{skipped}, {stats['mean_length']:.0f} tokens on average{cut}",
        shown,
        examples,
        stats["mean_length"],
    )


def cut_in_words(cut: int, seen: int, rows: int, limit: int) -> str:
    """How many rows are longer than the limit, for the end of the sentence."""
    among = "" if seen == rows else f" of the first {seen}"
    return f"; {cut}{among} rows are longer than {limit} tokens and will be cut" if cut else ""
