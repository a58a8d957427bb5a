"""How rows of tasks that do not write on are shown: their layout in words, what is learned of them, counts of labels.

Lists of T token ids and labels; -100 is no label.
"""

import itertools
from typing import Any

from llm_finetuner.cli.needed import CLASSIFYING, OF_LABELS
from llm_finetuner.recipe import Data
from llm_finetuner.registry import resolve

DESCRIBED = {
    **dict.fromkeys(CLASSIFYING, "llm_finetuner.data.label_columns:describe"),
    "token_classification": "llm_finetuner.data.tagged:describe",
    "masked_lm": "llm_finetuner.data.masked:describe",
    "seq2seq_lm": "llm_finetuner.data.transform:describe",
}
SAMPLE = 200  # rows that are tokenised to learn their length
SHOWN = 2  # rows
IGNORED = -100
WITHOUT = "no label"

Row = list[tuple[str, bool]]


def read(data: Data, task: Any) -> tuple[Any, Any]:
    """(what was read, the rows of it that are wanted). Raises DataError."""
    from llm_finetuner.assembly import only
    from llm_finetuner.data import sources

    found = sources.read(
        data.source, config=data.config, split=data.split, files=data.files, samples=data.samples,
        text_columns=data.text_columns, on_bad_row=data.on_bad_row, shapes_of_text=task.shapes_of_text,
    )  # fmt: skip
    return found, only(found.dataset, data.only, data.source)


def seen(
    name: str, task: Any, dataset: Any, tokenizer: Any, data: Data, student: str
) -> tuple[str, list[Row], dict[str, float], dict[str, int], dict[str, float]]:
    """(layout in words, rows to show, figures of the first rows, counts of labels, what they weigh).

    Raises FinetunerError.
    """
    if name in OF_LABELS:
        dataset = with_labels(name, dataset, data, labels_of(student))
    head = dataset.select(range(min(SAMPLE, len(dataset))))
    done = task.prepare_rows(head, tokenizer, data, None)
    if done.shape is None:
        said = ""
    elif name in DESCRIBED:
        said = resolve(DESCRIBED, name)(done.shape)
    else:
        said = f"read: {', '.join(done.columns)}"
    first = done.dataset.select(range(min(SHOWN, len(done.dataset)))).with_format(None)
    shown = [in_words(name, row, tokenizer, names_of(done.dataset)) for row in first]
    counts, weights = counted(name, task, dataset, done.shape, data) if done.shape else ({}, {})
    return said, shown, done.stats, counts, weights


# ---- labels


def counted(
    name: str, task: Any, dataset: Any, layout: Any, data: Data
) -> tuple[dict[str, int], dict[str, float]]:
    """(how often each label is given, what each weighs where weights are wanted). Raises DataError, RecipeError."""
    from llm_finetuner.data import class_weights

    if name not in OF_LABELS:
        return {}, {}
    counts, total = (counts_of if name in CLASSIFYING else tag_counts)(dataset, layout, data.label_names)
    if not data.class_weights:
        return counts, {}
    given = {label: counts.get(label, 0) for label in names_of(dataset)}
    return counts, class_weights.weigh(data.class_weights, given, total, task.exclusive)


def labels_of(model: str) -> list[str]:
    """The names of the labels that a model's configuration gives. Raises ModelError."""
    from transformers import AutoConfig

    from llm_finetuner.cli.estimate import reading

    with reading(model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def with_labels(task: str, dataset: Any, data: Data, own: list[str]) -> Any:
    """The rows with the names of their labels: the model's `own`, or those of all rows where nobody named it any."""
    from llm_finetuner.data import label_names, labelled, tagged
    from llm_finetuner.models.labels import generic

    if label_names.of(dataset):
        return dataset
    module = labelled if task in CLASSIFYING else tagged
    if generic(own) and "input_ids" not in dataset.column_names:
        own = module.names(dataset, module.recognise(dataset, data.text_columns), data.label_names) or own
    return label_names.put(dataset, own)


def names_of(rows: Any) -> list[str]:
    """The names of the labels that rows are numbered by, if any."""
    from llm_finetuner.data import label_names

    return label_names.of(rows) or []


def switched_on(shares: list[float]) -> list[int]:
    """The numbers of the labels that a text has, of a value for each label."""
    return [number for number, share in enumerate(shares) if share > 0.5]


def counts_of(dataset: Any, layout: Any, label_names: list[str] | None) -> tuple[dict[str, int], int]:
    """(how many rows have each label, how many have any); what is no label is told when the rows are prepared."""
    from llm_finetuner.data.class_names import reader
    from llm_finetuner.errors import DataError

    names = names_of(dataset)
    counts, total, without = dict.fromkeys(names, 0), 0, 0
    if layout.label is None:
        return {WITHOUT: len(dataset)}, 0
    numbers = reader(dataset, layout, names, layout.kind, label_names)
    for value in dataset.select_columns([layout.label]).with_format(None)[layout.label]:
        try:
            found = numbers(value)
        except DataError:
            continue
        if found[:1] == [IGNORED]:
            without += 1
            continue
        total += 1
        for number in found if layout.kind == "single" else switched_on(found):
            counts[names[number]] += 1
    return {**counts, **({WITHOUT: without} if without else {})}, total


def tag_counts(dataset: Any, shape: Any, label_names: list[str] | None) -> tuple[dict[str, int], int]:
    """The same of words and their tags."""
    from llm_finetuner.data import tagged
    from llm_finetuner.errors import DataError

    names, column = names_of(dataset), shape.columns[1]
    counts = [0] * len(names)
    number_of = tagged.numbers(dataset, shape, names, label_names)
    for tags in dataset.select_columns([column]).with_format(None)[column]:
        for tag in tags or ():
            try:
                number = None if tag in tagged.UNTAGGED else number_of(tag)
            except DataError:
                continue
            if number is not None:
                counts[number] += 1
    return dict(zip(names, counts, strict=True)), sum(counts)


# ---- rows


def in_words(task: str, row: dict[str, Any], tokenizer: Any, names: list[str]) -> Row:
    """A prepared row as the model sees it, and what is learned of it."""
    ids, labels = row["input_ids"], row["labels"]
    if task == "token_classification":
        return _tagged(ids, labels, tokenizer, names)
    if task == "masked_lm":
        return _filled(ids, labels, tokenizer)
    if task in CLASSIFYING:
        on = labels if task == "classification" else switched_on(labels)
        learned = ", ".join(names[number] for number in on if number != IGNORED) or WITHOUT
    else:
        learned = tokenizer.decode([label for label in labels if label != IGNORED], skip_special_tokens=True)
    return [(f"{tokenizer.decode(ids)} -> ", False), (learned, learned != WITHOUT)]


def _tagged(ids: list[int], labels: list[int], tokenizer: Any, names: list[str]) -> Row:
    """Each word with its tag behind it; a tag stands at the first token of its word."""
    starts = [place for place, label in enumerate(labels) if label != IGNORED]
    parts: Row = []
    for start, end in itertools.pairwise([*starts, len(ids)]):
        word = tokenizer.decode(ids[start:end], skip_special_tokens=True).strip()
        parts += [(f"{word}/", False), (f"{names[labels[start]]} ", True)]
    return parts


def _filled(ids: list[int], labels: list[int], tokenizer: Any) -> Row:
    """The text as it was, with the hidden tokens as what is learned."""
    whole = [
        (token if label == IGNORED else label, label != IGNORED)
        for token, label in zip(ids, labels, strict=True)
    ]
    runs = itertools.groupby(whole, key=lambda pair: pair[1])
    return [(f"{tokenizer.decode([token for token, _ in run])} ", hidden) for hidden, run in runs]
