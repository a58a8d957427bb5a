"""What a run trains beside the student: early exits and peers, written into the run's folder and read back.

Letters: N positions, D width.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from llm_finetuner.errors import ModelError
from llm_finetuner.learner import Learner
from llm_finetuner.models.anatomy import final_norm_of, replace_final_norm
from llm_finetuner.models.shrink import shrink

EXITS = "exits.safetensors"


def save_beside(learner: Learner, tokenizer: Any, folder: Path) -> None:
    """Write exits.safetensors (the norm of every exit) and peer_1/, peer_2/ ... where there are any."""
    (folder / EXITS).unlink(missing_ok=True)  # of an earlier run in this folder
    if learner.exits:
        weights = {name: tensor.contiguous().cpu() for name, tensor in learner.exits.state_dict().items()}
        save_file(weights, str(folder / EXITS))
    for number, peer in enumerate(learner.peers, 1):
        place = folder / f"peer_{number}"
        peer.save_pretrained(str(place))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(place))


def exits_of(folder: str | Path) -> dict[int, dict]:
    """The weights of every exit of a run: {block: state of its norm}; empty where it has none."""
    path = Path(folder) / EXITS
    found: dict[int, dict] = {}
    for name, tensor in (load_file(str(path)) if path.exists() else {}).items():
        block, _, rest = name.partition(".")
        found.setdefault(int(block), {})[rest] = tensor
    return found


def stop_early(model: nn.Module, folder: str | Path, exit_layer: int) -> nn.Module:
    """The model that stops after block `exit_layer`: its first blocks, the exit's own norm, the shared head.

    A copy, and a plain transformers model. Raises ModelError for a block without a trained exit.
    """
    exits = exits_of(folder)
    if exit_layer not in exits:
        raise ModelError(
            f"{folder} has no exit after block {exit_layer}",
            f"its exits: {', '.join(map(str, sorted(exits))) or 'none; train with self_distillation'}",
        )
    short = shrink(model, blocks=list(range(exit_layer + 1)))
    norm = final_norm_of(short)
    norm.load_state_dict(exits[exit_layer])
    replace_final_norm(short, norm)
    return short
