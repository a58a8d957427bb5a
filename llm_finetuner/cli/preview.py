"""How the rows of a recipe will be read: their shape in a sentence, two of them, how many and how long they are."""

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_finetuner.cli import series_sight, signal_sight
from llm_finetuner.cli.plain import listed
from llm_finetuner.cli.series_sight import SeriesSight
from llm_finetuner.cli.task_rows import SAMPLE, SHOWN, read, seen
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.recipe_series import FORECASTING, REGRESSION
from llm_finetuner.registry import TASKS, resolve


@dataclass(frozen=True)
class Sight:
    """rows: [(text, counted)] a row. examples and length (tokens, on average) are what training will see.

    labels: how often each label is given, of texts and of tags. weights: what each weighs, where weights are wanted.
    """

    sentence: str
    rows: list[list[tuple[str, bool]]]
    examples: int
    length: float
    labels: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def show(self, screen: Any) -> None:
        """For people."""
        screen.show(self.sentence)
        screen.preview(self.rows)
        for name, numbers in (("labels", self.labels), ("class weights", self.weights)):
            if numbers:
                screen.show(f"{name}: {listed(numbers)}")

    def plain(self) -> dict[str, Any]:
        """As data."""
        said = {"sentence": self.sentence, "examples": self.examples, "rows": self.rows}
        given = {"labels": self.labels, "class_weights": self.weights}
        return said | {name: numbers for name, numbers in given.items() if numbers}


def look(recipe: Recipe) -> Sight | SeriesSight:
    """Read the data of a recipe, with the tokenizer of its student. Raises FinetunerError."""
    if recipe.task == FORECASTING:
        return series_sight.look(recipe, stamp(recipe.data.source))
    if recipe.task == REGRESSION:
        return Sight(*signal_sight.look(recipe, stamp(recipe.data.source)))
    from llm_finetuner.named_models import student_source

    data = json.dumps(dataclasses.asdict(recipe.data))
    return _look(recipe.task, student_source(recipe), data, stamp(recipe.data.source))


def stamp(source: str) -> tuple:
    """Changes when the file does, so that a mended file is read again; a folder or glob is known by its name only."""
    path = Path(source).expanduser()
    return (path.resolve(), path.stat().st_mtime_ns) if path.exists() else (Path.cwd(),)


@functools.lru_cache(maxsize=4)
def _look(task_name: str, student: str, spelled: str, _stamp: tuple) -> Sight:
    from llm_finetuner.cli.estimate import positions
    from llm_finetuner.cli.progress import quiet_libraries
    from llm_finetuner.models.loading import load_tokenizer

    quiet_libraries()
    data, task = Data(**json.loads(spelled)), resolve(TASKS, task_name, "task")()
    tokenizer = load_tokenizer(student)
    found, dataset = read(data, task)
    limit = min(data.max_length, positions(student) or data.max_length)  # what training will cut at
    data, labels, weights = dataclasses.replace(data, max_length=limit), {}, {}
    if task.shapes_of_text:
        said, rows, stats = _text(found.shape, dataset, tokenizer, data)
    else:
        said, rows, stats, labels, weights = seen(task_name, task, dataset, tokenizer, data, student)
    count, sampled = len(dataset), min(SAMPLE, len(dataset))
    examples = max(1, round(count * stats["examples"] / sampled))
    cut = cut_in_words(int(stats["truncated"]), sampled, count, limit)
    sentence = f"{count:,} rows, {said}" if said else f"{count:,} prepared rows"
    skipped = f", {found.skipped} bad rows left out" if found.skipped else ""
    sentence = f"{sentence}{skipped}, {stats['mean_length']:.0f} tokens on average{cut}"
    return Sight(sentence, rows, examples, stats["mean_length"], labels, weights)


def _text(shape: Any, dataset: Any, tokenizer: Any, data: Data) -> tuple[str, list, dict[str, float]]:
    """Rows whose text is written on: (the layout in words, rows to show, figures of the first rows)."""
    from llm_finetuner.data import shapes, text

    options = {name: vars(data)[name] for name in ("text_columns", "max_length", "loss_on", "on_bad_row")}
    head = dataset.select(range(min(SAMPLE, len(dataset))))
    shown = text.preview(head, tokenizer, n=SHOWN, **options)
    return shapes.describe(shape) if shape else "", shown, text.prepare(head, tokenizer, **options).stats


def cut_in_words(cut: int, seen: int, rows: int, limit: int) -> str:
    """How many rows are longer than the limit, for the end of the sentence."""
    among = "" if seen == rows else f" of the first {seen}"
    return f"; {cut}{among} rows are longer than {limit} tokens and will be cut" if cut else ""
