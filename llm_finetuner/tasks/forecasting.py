"""Forecasting: the next steps of a series from its last ones.

Shapes: B windows of several channels, C channels, N windows of one channel each, L look-back, H horizon, Q quantiles,
P patches, D width. The positions that count are the N, and an answer is a whole forecast: H numbers, or H x Q. What
is read of the blocks belongs to the N x P patches, and relations between pooled vectors to the channels of a window.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.benchmark import forecast_figures, seen
from llm_finetuner.benchmark.forecast_tally import MSE, ForecastTally
from llm_finetuner.data import columns, windows
from llm_finetuner.data.text import Prepared
from llm_finetuner.data.windows import Windows
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.layer_maps import POOLED, POOLED_NAME
from llm_finetuner.models import build, forecasters
from llm_finetuner.models.anatomy import Enough, capture, sort_out
from llm_finetuner.models.forecaster import Forecaster, ForecasterConfig, later
from llm_finetuner.models.linear_forecaster import fit_closed_form, waits_for_rows
from llm_finetuner.models.naive import Naive
from llm_finetuner.models.stacks import blocks_of
from llm_finetuner.objectives.series import output_mse
from llm_finetuner.output import AsIs, Head, Output, Want
from llm_finetuner.recipe import Data
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.task import AS_NUMBERS, NO_NUMBERS, Asked, Task
from llm_finetuner.terms import reads

OF_ONE = ("huber", "spectrum", "multi_scale")  # read one number a step


class Forecasting(Task):
    """Models of registry.MODELS, and folders that hold one."""

    auto, configs = "AutoModel", ForecasterConfig
    measure = MSE
    unfit, answers = NO_NUMBERS, "numbers"
    objectives = {"forward_kl": output_mse}  # what a cache loses
    numbers = series = True
    exclusive = False
    pooled = all_tokens = True

    def width(self, model: nn.Module) -> int:
        """D; 0 of a line."""
        return 0 if isinstance(model, forecasters.WITHOUT_BLOCKS) else super().width(model)

    def depth(self, model: nn.Module) -> int:
        return 0 if isinstance(model, forecasters.WITHOUT_BLOCKS) else len(blocks_of(model))

    def vocabulary(self, model: nn.Module) -> int:
        """Numbers of a forecast."""
        return model.config.outputs

    # ---- rows

    def own_parts(self, source: Any, data: Data, note: Callable[[str], None]) -> tuple[Windows, Windows]:
        """The windows to train on, and those of validation, of which `data.eval_samples` tell as much as all."""
        frame = self.frame(source, data)
        note(f"{frame.layout}; look-back {data.series.lookback}, horizon {data.series.horizon}")
        return frame.part("train"), columns.evenly(frame.part("validation"), data.eval_samples)

    def halves(self, rows: Windows, seed: int) -> tuple[Windows, Windows]:
        """The earlier windows of each series and the later ones, such that no step is forecast in both."""
        earlier, later = [], []
        for group in np.unique(rows.starts[:, 0]):
            numbers = np.flatnonzero(rows.starts[:, 0] == group)
            begins = rows.starts[numbers, 1]
            middle = np.sort(begins)[len(begins) // 2]
            earlier += numbers[begins + rows.horizon <= middle].tolist()
            later += numbers[begins >= middle].tolist()
        return rows.select(earlier), rows.select(later)

    def frame(self, source: Any, data: Data) -> windows.Frame:
        """The series of a source with their scales and parts. Raises DataError."""
        return windows.read(source, data.series)

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """The windows of the test part, which nothing was fitted to or chosen on. Raises DataError."""
        found = rows if isinstance(rows, Windows) else self.frame(rows, data).part("test")
        return Prepared(
            found, None, found.frame.names, {"examples": len(found), "truncated": 0, "dropped": 0}
        )

    def lengths(self, rows: Windows) -> np.ndarray:
        """Numbers of each window."""
        channels = np.array([group.values.shape[1] for group in rows.frame.groups])
        return rows.lookback * channels[rows.starts[:, 0]]

    def check_inputs(self, rows: Windows, model: nn.Module) -> None:
        """Raise DataError for windows that the model was not made for."""
        config = model.config
        if (config.lookback, config.horizon) != (rows.lookback, rows.horizon):
            raise DataError(
                f"the windows have look-back {rows.lookback} and horizon {rows.horizon}, "
                f"the model {config.lookback} and {config.horizon}",
                "give the model's: --lookback, --horizon (data.series)",
            )

    def check_rows(self, rows: Windows) -> None:
        """All windows hold something to learn."""

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """Channels one under the other: {context [N, L], target [N, H], window [N], counts [N]}."""
        channels = [example["context"].shape[1] for example in examples]
        return {
            "context": torch.from_numpy(np.concatenate([e["context"].T for e in examples])),
            "target": torch.from_numpy(np.concatenate([e["target"].T for e in examples])),
            "window": torch.arange(len(examples)).repeat_interleave(torch.tensor(channels)),
            "counts": torch.full((sum(channels),), counted),
        }

    def count(self, batch: dict[str, Tensor]) -> int:
        """Windows of one channel."""
        return int(batch["counts"].sum())

    def tokens(self, batch: dict[str, Tensor]) -> int:
        return len(batch["counts"])

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["context"].numel(), batch["context"].numel()

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """What the forecasts of one window hang on: its numbers alone."""
        read = np.ascontiguousarray(row["context"], dtype=np.float32)
        counted = row.get("counts", np.ones(read.shape[1], bool))
        return Asked(read.view(np.int32).ravel(), b"series", counted)

    def by_row(self, rows: Windows) -> Iterator[dict[str, Any]]:
        """Windows one after the other."""
        return (rows[number] for number in range(len(rows)))

    def rows_of(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """The channels of each window beside each other again."""
        ends = np.bincount(batch["window"]).cumsum()[:-1]
        parts = (np.split(batch[name], ends) for name in ("context", "counts"))
        return (
            {"context": context_CL.T, "counts": counts_C} for context_CL, counts_C in zip(*parts, strict=True)
        )

    def positions(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """targets [N, H], and the window of each [N]."""
        counts_N = batch["counts"]
        window_N = batch["window"][counts_N]
        return {
            "targets": batch["target"][counts_N], "examples": window_N, "together": window_N, "numbers": True,
        }  # fmt: skip

    def contents(self, rows: Windows) -> Iterator[np.ndarray]:
        """The numbers, and where each window begins and ends."""
        yield from (*rows.scaled, rows.starts, np.array([rows.lookback, rows.horizon]))

    def span(self, rows: Windows) -> int:
        """A window's forecast overlaps with those that begin within a horizon."""
        return rows.horizon

    def together(self, parts: Sequence[Windows]) -> Windows:
        """Parts of the same series as one."""
        return functools.reduce(operator.add, parts)

    def about(self, data: Data) -> dict[str, Any]:
        """Look-back and horizon."""
        return {"lookback": data.series.lookback, "horizon": data.series.horizon}

    # ---- models

    def fit(self, model: nn.Module | None, rows: Windows, seed: int) -> None:
        """Fit a line that is to be fitted in closed form, once; a model knows how far its training rows reached."""
        self.meet(model, rows)
        if model is not None and rows.part == "train":
            model.config.trained_until = later(model.config.trained_until, rows.frame.trained_until)

    def meet(self, model: nn.Module | None, rows: Windows) -> None:
        """The same line as a teacher."""
        if waits_for_rows(model):
            fit_closed_form(model, rows.blocks())

    def check_stored(self, model: nn.Module) -> None:
        """Raise RecipeError for a line that is fitted when training begins."""
        if waits_for_rows(model):
            raise RecipeError(
                "the line is fitted to the training rows in a second, so there are no answers to store yet",
                "take it as it is: teacher.kind=live",
            )

    def tokenizer(self, name: str) -> None:
        """Forecasters read numbers."""

    def simple_models(self, train: Windows) -> list[tuple[str, nn.Module]]:
        """The last value and the last season repeated, and a line fitted to the same rows in closed form."""
        sizes = {"lookback": train.lookback, "horizon": train.horizon}
        line = build.linear(**sizes)
        fit_closed_form(line, train.blocks())
        naive = forecast_figures.naive(train.frame)
        seasonal = [(forecast_figures.naive_name(naive), naive)] if naive.config.season > 1 else []
        return [("last value", build.repeat_last(**sizes)), *seasonal, ("line in closed form", line)]

    def details(self, models: dict[str, nn.Module], rows: Windows, shown: Sequence[str]) -> dict[str, Any]:
        """Errors by step and channel, skill, intervals, examples."""
        return {"series": forecast_figures.details(models, rows.frame, shown)}

    def doubts(self, rows: Windows, model: nn.Module) -> Sequence[str]:
        """What of the table was read otherwise than it may be meant."""
        return rows.frame.doubts

    def stated(self, rows: Windows) -> str:
        """Errors of other look-backs are not to be compared; why no season is repeated, where none is."""
        season, said = rows.frame.season, f"Look-back {rows.lookback}, horizon {rows.horizon}."
        if season > rows.lookback:
            return f"{said} The last season is not compared: its {season} steps are more than the look-back."
        return (
            said if season > 1 else f"{said} The last season is not compared: none is known (series.season)."
        )

    def test_rows(self, train: Windows, held_out: Windows) -> Windows:
        """The windows of the test part."""
        return train.frame.part("test")

    def check_model(self, model: nn.Module, name: str) -> None:
        """Raise ModelError for what is no forecaster."""
        if not isinstance(model, Forecaster):
            raise ModelError(
                f"{name} ({type(model).__name__}) is no forecaster",
                "take time_llm, patch, linear, or a run of one",
            )

    def check_student(self, model: nn.Module, name: str) -> None:
        """Raise ModelError for what is no forecaster, RecipeError for one that has nothing to learn."""
        super().check_student(model, name)
        if isinstance(model, Naive):
            raise RecipeError(
                f"{name} has nothing to learn", "a student is time_llm, patch, linear or a run of one"
            )

    def check_terms(self, scheme: Scheme, rows: Windows) -> None:
        """Raise RecipeError for relations between the channels of series that have but one."""
        channels = max(group.values.shape[1] for group in rows.frame.groups)
        related = [term for term in scheme.terms if term.layers == POOLED_NAME and "examples" in reads(term)]
        if related and channels < 2:
            raise RecipeError(
                f"{related[0].objective} compares the channels of a window, and every series here has one",
                "relation_weight: 0, or a table with several channels at the same times",
            )

    def seen(self, model: nn.Module, rows: Windows, name: str) -> str | None:
        """Rows of a part that begins before the model's training rows end."""
        return seen.before(model, rows.frame, rows.part, name)

    def check_adapter(self, model: nn.Module) -> None:
        """Raise ModelError for forecasters without a language model inside."""
        if model.base_model is model:
            raise ModelError(f"{type(model).__name__} is small and is trained whole", "tuning.kind=full")

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raise ModelError where a teacher forecasts something else."""
        for name in ("lookback", "horizon", "quantiles"):
            ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
            if ours != theirs:
                raise ModelError(
                    f"the student has {name} {ours}, the teacher {theirs}",
                    "train one of them anew with the other's",
                )

    def check_packing(self, model: nn.Module) -> None:
        """Raises RecipeError: windows are of one length and need no packing."""
        raise RecipeError("train.packing is for texts: windows are all of one length", "leave it out")

    def translate(self, scheme: Scheme, model: nn.Module) -> Scheme:
        """Terms that read numbers: cross-entropy is the error to the truth, forward KL that to the teacher."""
        levels = list(model.config.quantiles)
        return scheme.with_terms(lambda terms: (_translated(term, levels) for term in terms))

    def speed_batch(self, rows: Windows, models: Sequence[nn.Module]) -> Tensor:
        """Look-backs of some windows [N, L]: the channels of the first alone, where latency is measured, then more."""
        return torch.from_numpy(np.concatenate([rows[i]["context"].T for i in range(min(32, len(rows)))]))

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> ForecastTally:
        """What sums up an evaluation; a teacher may give quantiles where the model gives one number, or the reverse."""
        heard = teacher if isinstance(teacher, nn.Module) else model
        return ForecastTally(examples, model.config, list(heard.config.quantiles))

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass."""
        counts_N, said = batch["counts"], None
        plain = isinstance(model, forecasters.WITHOUT_BLOCKS)
        kept, hooks = ({}, []) if plain else capture(model, want)
        try:
            said = model(batch["context"])
        except Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        where = self.positions(batch)
        none = batch["target"].new_empty(len(where["targets"]), 0)
        rows_NV = none if said is None else said.values.flatten(1)[counts_N]
        patches = 0 if plain else model.patches
        found = sort_out(kept, lambda x_NTD: x_NTD[counts_N][:, -patches:].flatten(0, 1), _no_maps)
        if said is not None and said.hidden is not None:
            found["features"][POOLED] = said.hidden.mean(1)[counts_N]
        return Output(
            rows=rows_NV, head=Head(AsIs()), **found, **where,
            tokens=where["examples"].repeat_interleave(max(1, patches)),
        )  # fmt: skip


def _translated(term: Term, levels: list[float]) -> Term:
    name = AS_NUMBERS.get(term.objective, term.objective)
    options = term.options if name == term.objective else {}
    if levels and name == "mse":
        name, options = "pinball", {"quantiles": levels}
    if levels and name in OF_ONE:
        raise RecipeError(
            f"{name} reads one number a step, and this model gives quantiles",
            "leave it out, or series.quantiles: []",
        )
    return replace(term, objective=name, options=options)


def _no_maps(_maps: Tensor) -> Tensor:
    raise RecipeError(
        "attention maps of forecasters are not compared", "take hidden_mse, or pooled relations"
    )
