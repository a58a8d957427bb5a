"""Sequence regression: numbers at every sample of a sequence, complex or real, as radar columns that are focused.

The positions that count are samples. A complex number is two real ones, side by side, wherever losses read it: answers
are [N, 2 O] and hidden states [N, 2 H], so that squared errors, cosines and relations are those of complex vectors
(real part of the inner product) and no angle is ever compared. A model with delay d answers position t at t + d.

Shapes: B sequences, L samples, I inputs, O outputs, N samples that count, H width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_finetuner.benchmark import focusers, signal_figures
from llm_finetuner.benchmark.signal_tally import NMSE, SignalTally
from llm_finetuner.data import columns, sar_files, signals
from llm_finetuner.data.signals import Signals
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.models.anatomy import Enough, capture, sort_out
from llm_finetuner.models.complex_projection import ComplexProjection
from llm_finetuner.models.s4d import S4DConfig, S4DModel
from llm_finetuner.objectives.series import output_mse
from llm_finetuner.output import AsIs, Head, Output, Want
from llm_finetuner.recipe import Data
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.task import AS_NUMBERS, NO_NUMBERS, Asked, Task

SOME = 16  # rows that speeds, and how far gates open, are measured on

BLIND = (
    "a model that sees nothing behind the position it answers cannot focus radar columns: give its shape a delay of .6 "
    "of an aperture (delay=38 for airborne), or bidirectional=true"
)


class SequenceRegression(Task):
    """Models that map [B, L, I] to [B, L, O]: S4D."""

    auto, configs = "AutoModel", S4DConfig
    measure = NMSE
    unfit, answers = (*NO_NUMBERS, "pinball", "spectrum", "multi_scale"), "numbers"
    objectives = {"forward_kl": output_mse}  # what a cache loses
    numbers = True
    exclusive = False

    def width(self, model: nn.Module) -> int:
        """Real numbers of a hidden state: H, or 2 H."""
        return super().width(model) * _parts(model)

    def vocabulary(self, model: nn.Module) -> int:
        """Real numbers of an answer."""
        return model.config.output_dim * _parts(model)

    def projection(self, model: nn.Module, width: int, start: str, dtype: torch.dtype) -> nn.Module:
        """Complex for a complex model: turning all states by one phase turns what is made of them by the same."""
        if _parts(model) == 1 or width % 2:
            return super().projection(model, width, start, dtype)
        return ComplexProjection(self.width(model) // 2, width // 2, start).to(dtype)

    # ---- rows

    def own_parts(
        self, source: Any, data: Data, note: Callable[[str], None]
    ) -> tuple[Signals, Signals | None]:
        """The rows to train on, and those of validation, where there are any."""
        found = signals.read(source, data.eval_fraction)
        note(found.describe())
        train, validation = found.part("train"), found.part("validation")
        if data.eval_source:
            validation = signals.read(data.eval_source, 0).part("train")
        train = train.select(range(min(len(train), data.samples or len(train))))
        return train, columns.evenly(validation, data.eval_samples) if len(validation) else None

    def prepare_rows(self, rows: Any, tokenizer: Any, data: Data, model: nn.Module | None) -> Prepared:
        """Rows of the test part, which nothing was fitted to or chosen on. Raises DataError."""
        found = rows if isinstance(rows, Signals) else signals.read(rows, data.eval_fraction).part("test")
        if not len(found):
            raise DataError(
                f"{found.recording.name} has no test part",
                "a folder test/, or a share of the rows: --eval-fraction",
            )
        return Prepared(found, None, ["inputs"], {"examples": len(found), "truncated": 0, "dropped": 0})

    def doubts(self, rows: Signals, model: nn.Module) -> Sequence[str]:
        """Radar columns under a model that sees nothing of what lies behind the position it answers."""
        blind = not model.config.bidirectional and not model.config.delay
        return [BLIND] if blind and rows.recording.about.get("kind") == sar_files.KIND else []

    def test_rows(self, train: Signals, held_out: Signals | None) -> Signals:
        """The rows of the test part; without one those held out, if any were."""
        test = train.recording.part("test")
        return test if len(test) else super().test_rows(train, held_out)

    def lengths(self, rows: Signals) -> np.ndarray:
        """Samples of each row."""
        return np.full(len(rows), rows.length)

    def check_inputs(self, rows: Signals, model: nn.Module) -> None:
        """Raise DataError for rows that the model was not made for."""
        parts, config = _parts(model), model.config
        has = rows.inputs.shape[2] * (1 + (np.iscomplexobj(rows.inputs) and parts == 1))
        if has != config.input_dim:
            pairs = ", complex ones read as pairs of real ones" if has != rows.inputs.shape[2] else ""
            raise DataError(
                f"the rows have {has} channels of input{pairs}, the model reads {config.input_dim}",
                f"a model with input_dim={has}",
            )
        wanted, asked = rows.targets.shape[2] * (1 + np.iscomplexobj(rows.targets)), self.vocabulary(model)
        if wanted and wanted != asked:
            raise DataError(
                f"a target is {wanted} real numbers, an answer of the model {asked}",
                "a model with another output_dim, or complex_valued as the targets are",
            )

    def check_rows(self, rows: Signals) -> None:
        """All rows hold something to learn."""

    def check_labelled(self, rows: Signals) -> None:
        """Raise DataError where no row has targets."""
        if not rows.labelled.any():
            raise DataError(
                f"no row of the {rows.part} part has targets, so there is nothing to learn without a teacher and "
                "nothing to judge by",
                "targets.npy with numbers in it; a method with a teacher learns rows without targets from it alone",
            )

    def collate(self, examples: list[dict], counted: bool = True, packed: bool = False) -> dict[str, Tensor]:
        """{inputs [B, L, I], targets [B, L, numbers], NaN where not known, counted [B, L], scale [B, numbers]}."""
        counted_BL = torch.from_numpy(np.stack([example["counted"] for example in examples]))
        targets_BLO = torch.from_numpy(np.stack([example["targets"] for example in examples]))
        scale_BO = torch.from_numpy(np.stack([example["scale"] for example in examples]))
        return {
            "inputs": torch.from_numpy(np.stack([example["inputs"] for example in examples])),
            "targets": _pairs(targets_BLO),
            "counted": counted_BL & counted,
            "scale": scale_BO.repeat_interleave(1 + targets_BLO.is_complex(), 1),
        }

    def count(self, batch: dict[str, Tensor]) -> int:
        """Samples that count, with targets or without."""
        return int(batch["counted"].sum())

    def tokens(self, batch: dict[str, Tensor]) -> int:
        return batch["counted"].numel()

    def cost(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        return batch["counted"].numel(), batch["counted"].numel()

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """What the answers to one row hang on: its numbers alone."""
        read = np.ascontiguousarray(row["inputs"])
        return Asked(read.view(np.uint8).ravel().astype(np.int32), b"signals", np.asarray(row["counted"]))

    def by_row(self, rows: Signals) -> Iterator[dict[str, Any]]:
        """Rows one after the other."""
        return (rows[number] for number in range(len(rows)))

    def rows_of(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """The rows of a collated batch of arrays."""
        return ({name: x[row] for name, x in batch.items()} for row in range(len(batch["counted"])))

    def positions(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """targets [N, numbers] over the scale of the data, that scale, and the row of each [N]."""
        counted_BL = batch["counted"]
        rows_N = counted_BL.nonzero()[:, 0]
        scale_NV = batch["scale"][rows_N]
        targets_NV = batch["targets"][counted_BL] / scale_NV
        scale = scale_NV if scale_NV.shape[1] else None  # rows without targets have none
        return {"targets": targets_NV, "scale": scale, "examples": rows_N, "numbers": True}

    def together(self, parts: Sequence[Signals]) -> signals.Joined:
        """The rows of these parts one behind the other."""
        return signals.Joined(parts)

    def contents(self, rows: Signals) -> Iterator[np.ndarray]:
        """The numbers of each row, and which samples count."""
        for row in self.by_row(rows):
            yield from (row["inputs"], row["targets"], row["counted"])

    def about(self, data: Data) -> dict[str, Any]:
        """Rows are taken as they are."""
        return {}

    # ---- models

    def fit(self, model: nn.Module | None, rows: Signals, seed: int) -> None:
        """A model that learns for the first time does so in numbers of RMS 1, and remembers of what in the data."""
        if model is not None and rows.part == "train" and model.config.input_scale is None:
            config, (read_I, told_O) = model.config, rows.recording.scales
            inputs = np.repeat(read_I, config.input_dim // len(read_I)).tolist()
            outputs = np.repeat(told_O, config.output_dim // len(told_O)).tolist() if len(told_O) else None
            model.set_scales(inputs, outputs)

    def tokenizer(self, name: str) -> None:
        """These models read numbers."""

    def check_model(self, model: nn.Module, name: str) -> None:
        """Raise ModelError for what does not map a sequence of numbers to one."""
        if not isinstance(model, S4DModel):
            raise ModelError(
                f"{name} ({type(model).__name__}) does not map sequences of numbers",
                "take s4d, or a run of one",
            )

    def check_adapter(self, model: nn.Module) -> None:
        """Raise ModelError: they are trained whole."""
        raise ModelError(f"{type(model).__name__} is small and is trained whole", "tuning.kind=full")

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raise ModelError where a teacher answers other numbers."""
        ours, theirs = self.vocabulary(student), self.vocabulary(teacher)
        if ours != theirs:
            raise ModelError(
                f"the student answers {ours} real numbers a sample, the teacher {theirs}",
                "train one of them anew with the other's output_dim and complex_valued",
            )

    def check_packing(self, model: nn.Module) -> None:
        """Raises RecipeError: rows are of one length and need no packing."""
        raise RecipeError("train.packing is for texts: sequences are all of one length", "leave it out")

    def translate(self, scheme: Scheme, model: nn.Module) -> Scheme:
        """Terms that read numbers: cross-entropy is the error to the truth, forward KL that to the teacher."""
        return scheme.with_terms(lambda terms: map(_translated, terms))

    @torch.no_grad()
    def predict(self, model: nn.Module, tokenizer: None, rows: Sequence[Any], data: Data) -> list[np.ndarray]:
        """The answer [L, O] to each sequence [L, I], sample by sample. Raises DataError."""
        given = (row["inputs"] if isinstance(row, dict) else row for row in rows)
        read = [signals.array_of(row, f"sequence {number}") for number, row in enumerate(given)]
        if len({sequence.shape for sequence in read}) > 1:
            raise DataError("the sequences are of unequal lengths", "predict those of one length together")
        read_NLI = signals.shaped(np.stack(read), "the sequences")
        counted = np.ones(read_NLI.shape[1], bool)
        rest = {"targets": np.empty((*counted.shape, 0)), "counted": counted, "scale": np.empty(0)}
        batch = self.collate([{"inputs": sequence, **rest} for sequence in read_NLI])
        rows_NV = self.run(model, batch, Want()).rows
        said = rows_NV.unflatten(0, (len(read), -1)).unflatten(-1, (-1, _parts(model))).cpu()
        return list(
            (torch.view_as_complex(said.contiguous()) if _parts(model) == 2 else said[..., 0]).numpy()
        )

    def tally(self, examples: int, model: nn.Module, teacher: Any = None) -> SignalTally:
        """What sums up an evaluation."""
        return SignalTally(examples, model.config.complex_valued)

    def speed_batch(self, rows: Signals, models: Sequence[nn.Module]) -> Tensor:
        """Some rows [B, L, I], as the models read them."""
        batch = torch.from_numpy(np.stack(rows[: min(SOME, len(rows))]["inputs"]))
        return _read_by(models[0], batch)

    def reach(self, rows: Signals) -> int | None:
        """How far a filter was said to look: the samples in front that do not count. None where all count."""
        return int(rows[0]["counted"].argmax()) or None

    def simple_models(self, train: Signals) -> list[tuple[str, nn.Module]]:
        """Zeros, and of simulated radar columns what focuses without learning."""
        return focusers.simple_models(train)

    def details(self, models: dict[str, nn.Module], rows: Signals, shown: Sequence[str]) -> dict[str, Any]:
        """Images, profiles, SSIM, responses to single points."""
        turned = np.iscomplexobj(rows.targets)

        def answer(model: nn.Module, inputs_NLI: np.ndarray) -> np.ndarray:
            said = np.stack(self.predict(model, None, list(inputs_NLI), Data()))
            return said[..., ::2] + 1j * said[..., 1::2] if turned and not np.iscomplexobj(said) else said

        of = {name: (model, partial(answer, model)) for name, model in models.items()}
        return {"signals": signal_figures.details(of, rows, shown)}

    def run(self, model: nn.Module, batch: dict[str, Tensor], want: Want) -> Output:
        """One forward pass. Zeros behind the end let a delayed model answer the last positions."""
        counted_BL, delay, said = batch["counted"], model.config.delay, None
        read_BLI = _read_by(model, batch["inputs"])
        length = read_BLI.shape[1]
        behind = delay if counted_BL[:, max(0, length - delay) :].any() else 0

        def pick(x_BLD: Tensor) -> Tensor:
            answers_BLD = _pairs(x_BLD)[:, delay : delay + length]
            return answers_BLD[counted_BL[:, : answers_BLD.shape[1]]]

        kept, hooks = (
            ({}, []) if want == Want() else capture(model, want)
        )  # those that learn nothing have no blocks
        try:
            said = model(nn.functional.pad(read_BLI, (0, 0, 0, behind)) if behind else read_BLI)
        except Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        where = self.positions(batch)
        real = torch.empty(0, dtype=read_BLI.dtype).real.dtype
        targets_NV = where["targets"].to(real)
        if not targets_NV.shape[1]:
            targets_NV = targets_NV.new_full((len(targets_NV), self.vocabulary(model)), torch.nan)
        rows_NV = targets_NV.new_empty(len(targets_NV), 0)
        if said is not None:
            rows_NV = pick(said)
            if where["scale"] is not None:
                rows_NV = rows_NV / where["scale"].to(targets_NV)
        found = sort_out(kept, pick, _no_maps)
        return Output(rows=rows_NV, head=Head(AsIs()), **{**where, "targets": targets_NV}, **found)


def _translated(term: Term) -> Term:
    name = AS_NUMBERS.get(term.objective)
    return term if name is None else replace(term, objective=name, options={})


def _parts(model: nn.Module) -> int:
    """Real numbers that a number of the model is made of."""
    return 1 + bool(model.config.complex_valued)


def _pairs(x: Tensor) -> Tensor:
    """Complex numbers along the last axis as pairs of real ones side by side: [..., D] -> [..., 2 D]; real as it is."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def _read_by(model: nn.Module, inputs_BLI: Tensor) -> Tensor:
    """In the numbers of the model: a real one reads complex channels as pairs of channels."""
    dtype = model.dtype
    if model.config.complex_valued:
        return inputs_BLI.to(model.device, dtype.to_complex())
    return _pairs(inputs_BLI).to(model.device, dtype)


def _no_maps(_maps: Tensor) -> Tensor:
    raise RecipeError("these models have no attention maps", "take hidden_nmse, or hidden_mse")
