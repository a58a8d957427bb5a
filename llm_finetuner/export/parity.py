"""Whether ONNX files answer as PyTorch does: texts side by side, padded, against each of them alone, without padding.

Shapes: B texts, T tokens, V vocabulary or labels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.errors import ModelError
from llm_finetuner.export.graphs import HEARD, Graph
from llm_finetuner.models.loading import positions_of

# Of the largest logit. float32 in another order differs by some 1e-6 of it, and where padding is read by far more.
TOLERANCE = 1e-4
LENGTHS = (5, 3), (70, 11, 2)  # tokens of the texts of two batches; of their targets the same backwards
REPORT = "nothing was written; please report the model. --to merged takes it as it is"


class Texts:
    """Random texts that a model can read, the same ones each time."""

    def __init__(self, model: nn.Module, graphs: list[Graph]):
        self.names = {name for graph in graphs for name in graph.feeds.values()} - {HEARD}
        config, size = model.config.to_dict(), model.get_input_embeddings().num_embeddings
        self.pad = max(config.get("pad_token_id") or 0, 0)  # -1 is how some say that there is none
        end = config.get("eos_token_id")  # a list of several, or beyond a vocabulary that was cut, of some
        self.end = end if end in range(size) and end != self.pad else None
        # BART and T5 look for the one end of a text, GPT-2 and RoBERTa for its padding: neither stands elsewhere
        self.words = torch.tensor([number for number in range(size) if number not in (self.pad, self.end)])
        self.positions = positions_of(model) or max(map(max, LENGTHS))
        self.draw = torch.Generator().manual_seed(0)

    def alone(self, lengths: Sequence[int], targets: Sequence[int]) -> list[dict[str, Tensor]]:
        """What a model takes of each text: [1, T], without padding."""
        room = self.positions
        return [self._text(min(n, room), min(of, room)) for n, of in zip(lengths, targets, strict=True)]

    def _text(self, length: int, target: int) -> dict[str, Tensor]:
        made = {
            "input_ids": self._ids(length),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            "token_type_ids": torch.arange(length)[None] * 2 // length,  # two parts
            "decoder_input_ids": self._ids(target),
        }
        return {name: x_1T for name, x_1T in made.items() if name in self.names}

    def _ids(self, count: int) -> Tensor:
        """Any words, and the end where the model has one: [1, count]."""
        ids_1T = self.words[torch.randint(len(self.words), (1, count), generator=self.draw)]
        if self.end is not None:
            ids_1T[:, -1] = self.end
        return ids_1T

    def side_by_side(self, texts: list[dict[str, Tensor]], left: bool = False) -> dict[str, Tensor]:
        """The same texts as one batch, padded on the right, or on the left: [B, their longest]."""
        batch = {}
        for name in texts[0]:
            longest, fill = max(text[name].shape[1] for text in texts), self.pad * name.endswith("input_ids")
            rooms = [longest - text[name].shape[1] for text in texts]
            batch[name] = torch.cat(
                [
                    nn.functional.pad(text[name], (room, 0) if left else (0, room), value=fill)
                    for text, room in zip(texts, rooms, strict=True)
                ]
            )
        return batch


class Sessions:
    """The files of some graphs in onnxruntime, on the CPU."""

    def __init__(self, graphs: list[Graph], folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.graphs = graphs
        with _told():
            self.sessions = [
                onnxruntime.InferenceSession(folder / graph.file, options, providers=["CPUExecutionProvider"])
                for graph in graphs
            ]

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the last graph puts out, each fed with what there is by then. Raises ModelError."""
        values: dict[str, Any] = {name: x.numpy() for name, x in batch.items()}
        for graph, session in zip(self.graphs, self.sessions, strict=True):
            with _told():
                given = {name: values[of] for name, of in graph.feeds.items()}
                (values[graph.output],) = session.run([graph.output], given)
        return torch.from_numpy(values[self.graphs[-1].output])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """While it lasts, an error of onnxruntime is a ModelError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as its

    try:
        yield
    except (
        its.Fail,
        its.InvalidArgument,
        its.InvalidGraph,
        its.NotImplemented,
        its.RuntimeException,
    ) as error:
        raise ModelError(f"onnxruntime cannot run the files: {str(error).splitlines()[0]}", REPORT) from error


def check(model: nn.Module, texts: Texts, sessions: Sessions, both_sides: bool) -> tuple[float, float]:
    """(largest difference of a logit, the largest that is allowed). Raises ModelError where it is more.

    both_sides: padding on the left must not change an answer either.
    """
    largest, apart = [], []
    for lengths in LENGTHS:
        given = texts.alone(lengths, lengths[::-1])
        alone = [model(**text).logits[0] for text in given]  # [T, V] or [V] each
        largest += [logits.abs().max() for logits in alone]
        for left in (False, True) if both_sides else (False,):
            found = sessions.logits(texts.side_by_side(given, left))
            for wanted, got in zip(alone, found, strict=True):
                if wanted.dim() == 2:
                    got = got[-len(wanted) :] if left else got[: len(wanted)]
                apart.append((got - wanted).abs().max())
    difference, allowed = float(torch.stack(apart).max()), TOLERANCE * float(torch.stack(largest).max())
    if not difference <= allowed:  # nan is not
        raise ModelError(
            f"the ONNX files do not answer as PyTorch: logits differ by {difference:.1e}, {allowed:.1e} is allowed",
            REPORT,
        )
    return difference, allowed
