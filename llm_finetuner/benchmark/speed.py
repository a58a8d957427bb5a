"""Size, speed and cost of models: parameters, bytes, throughput, latency, memory, compute of a training step.

Shapes: B sequences, T tokens.
"""

import datetime
import inspect
import platform
import statistics
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from llm_finetuner.benchmark import flops
from llm_finetuner.benchmark.quality import eval_mode
from llm_finetuner.benchmark.text import positions
from llm_finetuner.errors import DataError
from llm_finetuner.models.loading import is_quantised
from llm_finetuner.models.mixers import goes_on

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
LATENCY_OF_WINDOW = "one channel of one look-back"
TURN = 0.05  # seconds of forward passes before it is the next model's turn
STATES = ("past_key_values", "cache_params")  # what models call what they remember of a text
ACTIVATIONS = ("activation", "activation_function", "hidden_act")  # what configurations call theirs
PROMPT = 8  # tokens read before latency is measured
MEMORY_IS = {
    "cuda": "weights, plus the most that a forward pass of the batch added",
    "cpu": "weights and buffers alone: what a forward pass adds cannot be measured reliably on a CPU",
}
LATENCY_IS = {  # by whether the model writes
    True: "one more token of one sequence, with the KV cache",
    False: "one sequence of the fixed batch, read and answered",
}


def speed_batch(
    rows: Sequence[dict], models: Sequence[nn.Module], *, batch: int = 4, length: int = 64
) -> Tensor:
    """Token ids [B, T] cut from prepared rows, repeated if there are few.

    T is at most half of what every model can read; ids beyond the smallest vocabulary, where models have tokens of
    their own, are others in it. Raises DataError when the rows hold no token.
    """
    limits = [limit for limit in map(positions, models) if limit is not None]
    length = min([length, *(max(1, limit // 2) for limit in limits)])
    ids: list[int] = []
    for row in rows:
        ids += list(row["input_ids"])
        if len(ids) >= batch * length:
            break
    if not ids:
        raise DataError("no tokens to measure speed with", "pass rows that are not empty")
    ids = ids * (batch * length // len(ids) + 1)
    smallest = min(model.get_input_embeddings().num_embeddings for model in models)
    return torch.tensor(ids[: batch * length]).view(batch, length) % smallest


@torch.no_grad()
def measure(
    models: dict[Hashable, nn.Module], ids: Tensor, *, repeats: int = 5, new_tokens: int = 32
) -> dict[Hashable, dict[str, float | None]]:
    """{name: {"tokens_per_second", "latency_ms", "flops"}}, medians over the repeats, after a warm-up of each model.

    tokens_per_second: ids [B, T] through one forward pass, logits of every position included, or samples of sequences
    [B, T, channels]; of forecasters ids are
    look-backs [B, T] of numbers, and windows are counted. latency_ms: one more token for a single sequence, with the
    KV cache; a whole sequence where the model does not write. A model with encoder and decoder reads ids as its
    source and as its target, and each id counts once. The models take turns within each repeat, in another order each
    time, so that what else the machine does meanwhile slows all of them alike; small models are run several times a
    turn. flops: operations of the forward pass for one of what is counted (flops.py), None where they are not seen.
    """
    count = len(ids) if ids.is_floating_point() and ids.dim() == 2 else ids.shape[:2].numel()
    seconds: dict = {name: {"forward": [], "token": []} for name in models}
    names = list(models)
    with eval_mode(*models.values()):
        for repeat in range(repeats + 1):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                forward = _forward_seconds(models[name], ids)
                writes = models[name].can_generate()
                token = (
                    _decode_seconds(models[name], ids[:1, :PROMPT], new_tokens)
                    if writes
                    else _forward_seconds(models[name], ids[:1])
                )
                if repeat:  # the first round warms up
                    seconds[name]["forward"] += forward
                    seconds[name]["token"] += token
        operations = {name: _operations(model, ids) for name, model in models.items()}
    return {
        name: {
            "tokens_per_second": count / statistics.median(taken["forward"]),
            "latency_ms": 1000 * statistics.median(taken["token"]),
            "flops": operations[name] and operations[name] / count,
        }
        for name, taken in seconds.items()
    }


def _forward(model: nn.Module, ids: Tensor) -> None:
    ids = ids.to(model.device)
    if ids.is_floating_point() or ids.is_complex():
        model(ids)
        return
    writes = (
        model.config.is_encoder_decoder and model.can_generate()
    )  # one that labels texts makes a target itself
    target = {"decoder_input_ids": ids} if writes else {}
    model(input_ids=ids, use_cache=False, **target)


def _operations(model: nn.Module, ids: Tensor) -> int | None:
    """Of a forward pass; None where there is none to see, or weights are multiplied by another library."""
    return None if is_quantised(model) else flops.count(lambda: _forward(model, ids)) or None


def _forward_seconds(model: nn.Module, ids: Tensor) -> list[float]:
    """Seconds of each forward pass that fits into TURN, of one at least."""
    taken: list[float] = []
    while sum(taken) < TURN:
        start = _now(model)
        _forward(model, ids)
        taken.append(_now(model) - start)
    return taken


def _decode_seconds(model: nn.Module, ids: Tensor, new_tokens: int) -> list[float]:
    """Seconds of each of new_tokens steps (fewer where positions end) that one sequence grows by, after its prompt."""
    limit = positions(model)
    steps = new_tokens if limit is None else max(1, min(new_tokens, limit - ids.shape[1]))
    ids = ids.to(model.device)
    two = model.config.is_encoder_decoder
    source = {"encoder_outputs": model.get_encoder()(input_ids=ids)} if two else {}
    grows = "decoder_input_ids" if two else "input_ids"
    cached, takes = goes_on(model), inspect.signature(model.forward).parameters
    said = model(**{grows: ids}, **source, use_cache=cached)
    taken = []
    for place in range(ids.shape[1], ids.shape[1] + steps):
        start = _now(model)
        token = said.logits[:, -1:].argmax(-1)
        ids = token if cached else torch.cat([ids, token], 1)
        state = {name: said[name] for name in STATES if name in said}
        if "cache_params" in state and "cache_position" in takes:  # a Mamba of older transformers
            state["cache_position"] = torch.tensor([place], device=ids.device)
        said = model(**{grows: ids}, **source, **state, use_cache=cached)
        taken.append(_now(model) - start)
    return taken


def _now(model: nn.Module) -> float:
    """The clock, once the model's device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def conditions(model: nn.Module) -> str:
    """On what speeds were measured, and when: a speed means nothing without it."""
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "1 thread"
    where = f"{platform.machine()} CPU, {threads}"
    if model.device.type == "cuda":
        where = torch.cuda.get_device_name(model.device)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"on {where}, torch {torch.__version__}, {str(model.dtype).removeprefix('torch.')}, {today}"


@torch.no_grad()
def peak_memory_mb(model: nn.Module, ids: Tensor) -> float:
    """Megabytes (10^6 bytes) that running the model takes; MEMORY_IS says what is counted on which device."""
    tensors = [*model.parameters(), *model.buffers()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if model.device.type != "cuda":
        return held / 1e6
    with eval_mode(model):
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        _forward(model, ids)
        torch.cuda.synchronize(model.device)
    return (held + torch.cuda.max_memory_allocated(model.device) - before) / 1e6


def layout(model: nn.Module) -> tuple:
    """Equal for two models that can only differ in speed by chance: same class, activation, and tensors but for values.

    A model that learns nothing (focusers.py) is told apart by its `process`.
    """
    shapes = ((name, tuple(weight.shape), weight.dtype) for name, weight in model.named_parameters())
    acts = tuple(getattr(model.config, name, None) for name in ACTIVATIONS)
    return type(model), getattr(model, "process", None), acts, model.device.type, *shapes


def bytes_on_disk(folder: str | Path | None) -> int | None:
    """Bytes of the weight files in a folder, of the adapter alone in an adapter's; None if there are none."""
    files = [file for kind in WEIGHT_FILES for file in Path(folder).glob(kind)] if folder else []
    return sum(file.stat().st_size for file in files) or None


def parameters(model: nn.Module) -> int:
    """Weights of the model: tied ones once, those packed in 4 bits each."""
    return model.num_parameters()


def multiplying_parameters(model: nn.Module) -> int:
    """Weights that multiply a token: all but the tables that are only looked up. One tied to the head counts, once.

    Known weakness: in a mixture of experts those that a token does not visit are counted too.
    """
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        tables.pop(id(head.weight), None)
    return parameters(model) - sum(tables.values())


def cost_ratio(student: nn.Module, teacher: nn.Module) -> float:
    """Compute of a distillation step over a cross-entropy step: 1 + forward(teacher) / (3 x forward(student)).

    forward = 2 x multiplying parameters, floating point operations a token; a backward pass costs twice a forward
    pass (Kaplan et al. 2020, arXiv 2001.08361). Attention's share, which grows with the length, is left out, and
    so is what a student with frozen weights saves.
    """
    return 1 + multiplying_parameters(teacher) / (3 * multiplying_parameters(student))
