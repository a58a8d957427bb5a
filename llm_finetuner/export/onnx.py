"""ONNX files for onnxruntime, handed over only when they answer as PyTorch does.

By torch.onnx.export with dynamo=True: torch.export refuses Python code that branches on what it reads. The older
exporter follows one example, writes down the branch that the example took and says nothing: with dynamic rotary
frequencies longer texts would be read wrongly (docs/log.md). With eager attention, for T5's fused one cannot be
written, and some families have none.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_finetuner.errors import ModelError
from llm_finetuner.export.graphs import AXES, Graph, graphs_of
from llm_finetuner.export.parity import Sessions, Texts, check
from llm_finetuner.task import Task

TRACED = (7, 5), (4, 3)  # tokens of the two texts that torch.export looks at, and of their targets


class Onnx:
    """ONNX in float32 for onnxruntime, any batch and length, held against PyTorch before it is handed over."""

    needs = ("onnx", "onnxscript", "onnxruntime")

    @torch.no_grad()
    def write(self, model: nn.Module, tokenizer: Any, task: Task, folder: Path) -> dict[str, Any]:
        """Write the graphs, config.json and the tokenizer; the model is changed on the way.

        Returns {"parameters", "graphs", "difference", "allowed"}: of each graph its file, bytes, parameters, and the
        axes of what it takes and puts out. Raises ModelError for a model that cannot be written, or then answers
        otherwise.
        """
        if task.numbers:
            raise ModelError(
                f"ONNX files are written of models that read texts, and a {type(model).__name__} reads numbers",
                "--to merged takes any model; --to folded makes a Time-LLM small and fast",
            )
        if model.config.to_dict().get("quantization_config"):
            raise ModelError(
                f"this {type(model).__name__} is held in fewer bits, and ONNX files of it would not be",
                "export a model in full precision; an adapter is folded into its base as that is on disk",
            )
        model.to("cpu", torch.float32).eval().set_attn_implementation("eager")
        graphs = graphs_of(model, tokenizer, task)
        texts = Texts(model, graphs)
        values = texts.side_by_side(texts.alone(*TRACED))
        written = []
        for graph in graphs:
            written.append(_write(graph, values, folder / graph.file))
            values[graph.output] = graph.module(*(values[name] for name in graph.feeds.values()))
        _write_beside(model, tokenizer, folder)
        difference, allowed = check(model, texts, Sessions(graphs, folder), both_sides=task.writes)
        parameters = sum(one["parameters"] for one in written)
        return {"parameters": parameters, "graphs": written, "difference": difference, "allowed": allowed}


def _write(graph: Graph, values: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Write one graph and return what is told of it. Raises ModelError."""
    names = list(graph.feeds.values())
    axes = tuple(dict(enumerate(AXES[name])) for name in names)
    try:
        with _silence():
            program = torch.onnx.export(
                graph.module, tuple(values[name] for name in names), input_names=list(graph.feeds),
                output_names=[graph.output], dynamic_shapes=(axes,), dynamo=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"torch {torch.__version__} cannot write this model as ONNX: {_first_words(error.__cause__ or error)}",
            "a newer torch may; --to merged takes any model",
        ) from error
    made = program.model.graph
    for node in made.all_nodes():  # or the file says where on this disk the code of each one stands
        node.metadata_props.clear()
    program.save(str(path))  # weights of more than 1.5 GB go into a file beside it: protobuf ends at 2
    return {
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        "parameters": sum(weight.const_value.size for weight in made.initializers.values()),
        "inputs": {value.name: _axes(value) for value in made.inputs},
        "outputs": {value.name: _axes(value) for value in made.outputs},
    }


def _first_words(error: BaseException) -> str:
    """The first line of an error, with the second where the first only leads up to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _axes(value: Any) -> list[str | int]:
    """Sizes where they are fixed, names where they are not."""
    return [axis if isinstance(axis, int) else str(axis) for axis in value.shape]


def _write_beside(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """What else belongs to such a folder: configuration, labels included, and the tokenizer."""
    model.config.architectures, model.config.dtype = [type(model).__name__], torch.float32
    model.config.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """While it lasts torch prints nothing: where it fails it prints whole graphs, and what counts is in its error."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
