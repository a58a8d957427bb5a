"""What every task is to the loop: rows, batches, and a model's answer to a batch. A task is a class in tasks/.

What is here most have in common. Each has these of its own: vocabulary(model), the width of the logits;
prepare_rows(rows, tokenizer, data, model) -> text.Prepared; check_packing(model) and check_model(model, name), which
raise; predict(model, tokenizer, texts, data); run(model, batch, want) -> Output. Where it keeps texts it has also
read_anew(batch, tokenizer, limit), the batch in other tokens, and check_texts(rows), which raises. Those that generate
also have prompt_ids(texts, tokenizer, data) and answer_ids(texts, tokenizer, data), the tokens of prompts and of
references; joined(prompt, answer, positions), an example of both; write(model, tokenizer, prompts, max_new_tokens=,
batch_size=) -> [(tokens, whether the model ended them)], and new_tokens(data), how many by default.

Shapes: B examples, T tokens, D hidden width; N positions that count, M tokens of all examples of a batch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from llm_finetuner import checks
from llm_finetuner.benchmark import speed
from llm_finetuner.benchmark.measure import Measure, perplexity
from llm_finetuner.benchmark.quality import Tally
from llm_finetuner.data import class_weights, columns, text
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import DataError
from llm_finetuner.models import loading
from llm_finetuner.models.anatomy import expose_attention
from llm_finetuner.models.labels import names_of
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.objectives.several_labels import weighted_binary_cross_entropy
from llm_finetuner.objectives.supervised import weighted_cross_entropy
from llm_finetuner.output import Want
from llm_finetuner.recipe import Data
from llm_finetuner.scheme import Scheme

OF_NUMBERS = ("mse", "huber", "output_mse", "pinball", "spectrum", "multi_scale")
AS_NUMBERS = {"cross_entropy": "mse", "forward_kl": "output_mse"}  # what they are where answers are numbers
NO_NUMBERS = (  # of choices
    "reverse_kl", "adaptive_kl", "alpha_beta", "total_variation", "logit_mse", "jsd", "skew_forward_kl",
    "skew_reverse_kl", "span_kl", "uld",
)  # fmt: skip


class Asked(NamedTuple):
    """What the answers to a row hang on, and which of its positions are asked about."""

    tokens: np.ndarray  # that are read, without padding
    more: bytes  # what else the answers hang on
    counted: np.ndarray  # bool, of each position that an answer could be compared at


class Task:
    """A task whose answers are tokens and stand in `labels`, a list as long as it needs to be."""

    auto: str  # the class of transformers that loads its models
    configs: type = PretrainedConfig  # what their configurations are
    measure: Measure = perplexity("a token", "tokens")  # what its models are judged by
    unfit: tuple[str, ...] = OF_NUMBERS  # objectives that read other answers
    answers = "tokens, or labels"  # what they are, in words
    objectives: dict[str, Callable] = {}  # what stands here for objectives that methods name
    labels = False  # whether the answers are labels with names, and not tokens
    writes = False  # whether the models continue texts
    generates = False  # whether they write texts at all, continuations or targets
    task_type: str | None = None  # what peft calls the task, where it has a name for it
    pooled = False  # whether an answer is read off one vector of a text
    two_stacks = False  # whether an encoder reads a source and a decoder answers
    shapes_of_text = False  # whether rows are texts that a model continues (data/shapes.py)
    first = 0  # the first label that an answer is compared with
    all_tokens = False  # whether blocks are read at all tokens of an example, whatever counts of it
    keeps_texts = False  # whether rows keep their texts, which a teacher can read in tokens of its own
    numbers = False  # whether the answers are numbers, and not choices
    series = False  # whether they are steps of series over time that follow (data/windows.py)
    exclusive = True  # whether the answers at a position exclude each other: they are one distribution

    def width(self, model: nn.Module) -> int:
        """Width of what the blocks put out: D."""
        return model.config.get_text_config().hidden_size

    def projection(self, model: nn.Module, width: int, start: str, dtype: torch.dtype) -> nn.Module:
        """A map that is learned, from its hidden states to those of a teacher of this width; start: see Term."""
        made = nn.Linear(self.width(model), width, bias=False).to(dtype)
        if start == "orthogonal":
            nn.init.orthogonal_(made.weight)
        if start == "identity" and made.in_features == width:
            nn.init.eye_(made.weight)
        return made

    def depth(self, model: nn.Module) -> int:
        """Number of blocks; of two stacks the decoder's."""
        return len(blocks_of(model))

    # ---- rows

    def fit(self, model: nn.Module | None, rows: Any, seed: int) -> None:
        """Make the model answer in the labels of the rows, or raise DataError. Tokens are what they are."""

    def check_names(self, model: nn.Module, rows: Any) -> None:
        """Raise DataError where rows are numbered by other labels than the model's. Tokens have no such names."""

    def check_labelled(self, rows: Any) -> None:
        """Raise DataError where nothing in the rows tells what is right. Texts tell it by themselves."""

    def weigh(self, model: nn.Module, rows: Any, setting: class_weights.Setting) -> dict[str, float]:
        """Weigh the model's labels in cross-entropy from here on: {name: weight}. Raises DataError."""
        found = class_weights.of_rows(rows, names_of(model), setting, self.exclusive)
        plain = weighted_cross_entropy if self.exclusive else weighted_binary_cross_entropy
        weights_C = torch.tensor(list(found.values()), dtype=torch.float64)
        self.objectives = {**self.objectives, "cross_entropy": functools.partial(plain, weights=weights_C)}
        return found

    def own_parts(self, source: Any, data: Data, note: Callable[[str], None]) -> tuple[Any, Any] | None:
        """(training rows, those that weights are chosen on), where the task reads and cuts its source by itself."""
        return None

    def halves(self, rows: Any, seed: int) -> tuple[Any, Any]:
        """Held-out rows that choose, and others that report."""
        return text.split(rows, 0.5, seed)

    def lengths(self, rows: Any) -> np.ndarray:
        """What each row weighs in a batch: its tokens."""
        if not hasattr(rows, "with_format"):  # lists, and rows that are made when they are asked for
            return np.array([len(row["input_ids"]) for row in rows])
        return columns.lengths(rows)

    def check_inputs(self, rows: Any, model: nn.Module) -> None:
        """Raise DataError where a model cannot read the rows."""
        checks.check_rows(rows, model)

    def check_rows(self, rows: Any) -> None:
        """Raise DataError where there is nothing to learn."""
        if not any((labels != IGNORED).any() for labels in columns.flat(rows, "labels")):
            raise DataError("no token of the data counts", "labels must hold more than -100")

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """Pad on the right to the longest: {input_ids, attention_mask [B, T], labels [B, their longest]}.

        counted=False masks every label: the stand-in batch of a process that has no example left in a step.
        """
        batch = {
            "input_ids": padded(examples, "input_ids"),
            "attention_mask": padded(examples, "attention_mask"),
            "labels": padded(examples, "labels", IGNORED),
        }
        if not counted:
            batch["labels"].fill_(IGNORED)
        return batch

    def count(self, batch: dict[str, Any]) -> int:
        """Positions that count."""
        return int((batch["labels"][:, self.first :] != IGNORED).sum())

    def positions(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Where the positions that count stand: targets [N], examples [N] and tokens [M] of an Output."""
        counted_BT = batch["labels"] != IGNORED
        counted_BT[:, : self.first] = False
        return {
            "targets": batch["labels"][counted_BT],
            "examples": counted_BT.nonzero()[:, 0],
            "tokens": batch["attention_mask"].nonzero()[:, 0] if self.all_tokens else None,
        }

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """What the answers to one row hang on, padded or not. Raises DataError where padding counts."""
        seen, labels = np.asarray(row["attention_mask"]).astype(bool), np.asarray(row["labels"])
        counted = labels[seen][self.first :] != IGNORED
        if counted.sum() != (labels[self.first :] != IGNORED).sum():
            raise DataError("a label counts where attention_mask is 0", "set the labels of padding to -100")
        return Asked(np.asarray(row["input_ids"])[seen], b"", counted)

    def redraw(self, data: Data, tokenizer: Any, seed: int) -> Callable[[dict, int, int], dict] | None:
        """What makes a row, given it, the epoch and its number, another one; None where rows stay as they are."""
        return None

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """(tokens that a forward pass reads, places that it computes, which padding is the rest of)."""
        return int(batch["attention_mask"].sum()), batch["attention_mask"].numel()

    def read_anew(self, batch: dict[str, Any], tokenizer: Any, limit: int | None) -> dict[str, Any]:
        """A batch in another tokenizer's tokens, at most `limit` a text, on the CPU; where rows keep their texts."""
        raise NotImplementedError

    def check_texts(self, rows: Any) -> None:
        """Raise DataError where rows do not hold the texts that `read_anew` reads."""

    def tokens(self, batch: dict[str, Any]) -> int:
        """What the speed of a step is told in."""
        return int(batch["attention_mask"].sum())

    def by_row(self, rows: Any) -> Iterator[Mapping[str, Any]]:
        """Prepared rows one after the other."""
        return columns.by_row(rows)

    def rows_of(self, batch: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The rows of a collated batch of arrays, padded or not."""
        return ({name: x[row] for name, x in batch.items()} for row in range(len(batch["input_ids"])))

    def contents(self, rows: Any) -> Iterator[np.ndarray]:
        """All that rows hold, as arrays: rows with the same ones are the same rows."""
        for name in ("input_ids", "labels"):
            yield from (values.astype(np.int64) for values in columns.flat(rows, name))
        yield columns.lengths(rows).astype(np.int64)

    def span(self, rows: Any) -> int:
        """Steps of windows that overlap (quality.Quality); 0 where rows are independent of each other."""
        return 0

    def together(self, parts: Sequence[Any]) -> Any:
        """Parts of prepared rows as one."""
        return datasets.concatenate_datasets(parts)

    def about(self, data: Data) -> dict[str, Any]:
        """How rows are prepared, as far as a cache of answers to them tells."""
        return {"max_length": data.max_length, "loss_on": data.loss_on}

    # ---- models

    def check_student(self, model: nn.Module, name: str) -> None:
        """Raise ModelError, RecipeError for a model that cannot learn this task."""
        self.check_model(model, name)

    def check_terms(self, scheme: Scheme, rows: Any) -> None:
        """Raise RecipeError for terms that say nothing about these rows."""

    def seen(self, model: nn.Module, rows: Any, name: str) -> str | None:
        """In a sentence that a model was trained on rows which it is judged by, where that is known."""
        return None

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a model by its name; None where models read no text. Raises ModelError."""
        return loading.load_tokenizer(name)

    def check_adapter(self, model: nn.Module) -> None:
        """Raise ModelError for a model that adapters do not fit."""

    def translate(self, scheme: Scheme, model: nn.Module) -> Scheme:
        """The terms of a method as they read this model's answers."""
        return scheme

    def meet(self, model: nn.Module, rows: Any) -> None:
        """Show a teacher the training rows before it is asked about them."""

    def check_stored(self, model: nn.Module) -> None:
        """Raise RecipeError for a teacher whose answers are not to be written down."""

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> Any:
        """What sums up an evaluation, beside a teacher: a model, or a Provider, or none."""
        return Tally(examples)

    def simple_models(self, train: Any) -> list[tuple[str, nn.Module]]:
        """Models that learn little or nothing, which a trained one has to beat: (what they are called, themselves)."""
        return []

    def details(self, models: dict[str, nn.Module], rows: Any, shown: Sequence[str]) -> dict[str, Any]:
        """Keys of a verdict that only some tasks have; shown: those whose answers are looked at more closely."""
        return {}

    def doubts(self, rows: Any, model: nn.Module) -> Sequence[str]:
        """Warnings of how the rows were read, and of what this model cannot learn from them."""
        return ()

    def stated(self, rows: Any) -> str:
        """What has to stand beside every score, as a sentence."""
        return ""

    def test_rows(self, train: Any, held_out: Any) -> Any:
        """Prepared rows that a finished run is judged on: those held out, if any were."""
        return train if held_out is None else held_out

    def speed_batch(self, rows: Any, models: Sequence[nn.Module]) -> Tensor:
        """What models are timed on. Raises DataError."""
        return speed.speed_batch(rows, models)

    def sampled_figures(
        self, model: nn.Module, tokenizer: Any, rows: Any, data: Data, count: int | None, batch_size: int
    ) -> dict[str, Any]:
        """Figures that take more than one pass, of `count` evenly spaced rows; None: as many as the task says."""
        return {}

    def prepare(self, model: nn.Module, want: Want) -> None:
        """Make a model ready to be asked for `want`."""
        if want.attention:
            expose_attention(model)


def padded(examples: list[dict], key: str, fill: int = 0) -> Tensor:
    """A list column of the examples, filled up on the right: [B, its longest]."""
    longest = max(len(example[key]) for example in examples)
    return torch.tensor([list(e[key]) + [fill] * (longest - len(e[key])) for e in examples])
