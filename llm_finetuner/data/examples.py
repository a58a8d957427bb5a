"""Examples on their way into a dataset: labels, counts, and the columns as Arrow."""

from typing import TYPE_CHECKING, Any

from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

IGNORED = -100  # the label of a position that is not counted


class Builder:
    """Collects examples in Arrow, batch by batch (a Python int takes nine times the room), and counts."""

    first = 1  # the first label that counts: nothing predicts the one before
    uncounted = "rows without a counted token"
    hint = "is the completion empty, or max_length too small? loss_on='all' counts prompts too"

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.waiting: list[tuple[list[int], list[int], list[int]]] = []
        self.examples = self.tokens = self.counted = self.longest = 0
        self.truncated = self.dropped = self.skipped = 0

    def refuse(self, number: int, error: DataError, on_bad_row: str) -> None:
        """Count a bad row, or raise its error with the row's 1-based number."""
        if on_bad_row != "skip":
            raise DataError(f"row {number}: {error.what}", error.hint) from error
        self.skipped += 1

    def add(self, ids: list[int], counted: list[bool]) -> None:
        """One example; `counted` says of each token whether it is learned."""
        labels = [token if flag else IGNORED for token, flag in zip(ids, counted, strict=True)]
        self.add_labels(ids, [1] * len(ids), labels)

    def add_labels(self, ids: list[int], mask: list[int], labels: list[int]) -> None:
        """One example as it is, or one more dropped if no position is counted."""
        learned = sum(label != IGNORED for label in labels[self.first :])
        if not learned:
            self.dropped += 1
            return
        self.waiting.append((ids, mask, labels))
        self.examples += 1
        self.tokens += len(ids)
        self.counted += learned
        self.longest = max(self.longest, len(ids))

    def flush(self) -> None:
        """Turn what is waiting into Arrow."""
        import pyarrow as pa

        kinds = {"input_ids": pa.int32(), "attention_mask": pa.int8(), "labels": pa.int64()}
        columns = zip(*self.waiting, strict=True) if self.waiting else ([], [], [])
        arrays = [pa.array(c, pa.list_(kind)) for c, kind in zip(columns, kinds.values(), strict=True)]
        self.batches.append(pa.record_batch(arrays, names=list(kinds)))
        self.waiting = []

    def dataset(self) -> "datasets.Dataset":
        """What was added and flushed. Raises DataError if that is nothing."""
        import datasets
        import pyarrow as pa

        if not self.examples:
            raise DataError(
                f"nothing to learn: {self.dropped} {self.uncounted}, {self.skipped} bad rows left out",
                self.hint,
            )
        return datasets.Dataset(pa.Table.from_batches(self.batches))

    def stats(self) -> dict[str, float]:
        """The counts described at `Prepared`."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "counted_tokens": self.counted,
            "truncated": self.truncated,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "mean_length": self.tokens / max(1, self.examples),
            "max_length": self.longest,
        }


def check_options(dataset: "datasets.Dataset", max_length: int, on_bad_row: str) -> None:
    """Raise DataError for options out of range and for no rows."""
    if on_bad_row not in ("stop", "skip"):
        raise DataError(f"on_bad_row is {on_bad_row!r}", "it is 'stop' or 'skip'")
    if max_length < 4:
        raise DataError(f"max_length is {max_length}", "it is 4 tokens or more")
    if not len(dataset):
        raise DataError("the dataset has no rows", "check the source of the data")
