"""Checkpoints that are whole or do not exist: written aside, checksummed, then renamed.

Only what moves is kept: trainable weights, projections, optimizer, random states. Frozen weights come from the model.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_finetuner.errors import CheckpointError, TrainingError

KEEP = 2  # newest checkpoints that stay on disk


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The weights that move."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def restore(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy what `trainable` returned back into place. Raises CheckpointError when it is of another model."""
    own = trainable(module)
    if own.keys() != weights.keys() or any(own[k].shape != weights[k].shape for k in own):
        odd = next(iter(own.keys() ^ weights.keys()), None) or next(
            k for k in own if own[k].shape != weights[k].shape
        )
        raise CheckpointError(
            f"the checkpoint is of another model: {odd} differs", "resume with the recipe of that run"
        )
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def save(folder: Path, weights: dict[str, Tensor], state: dict, about: dict) -> Path:
    """Write folder/{weights.safetensors, state.pt, manifest.json}, whole or not at all. Raises TrainingError."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, str(aside / "weights.safetensors"))
        torch.save(state, aside / "state.pt")
        names = ("weights.safetensors", "state.pt")
        manifest = {**about, "sha256": {name: _digest(aside / name) for name in names}}
        (aside / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for name in (*names, "manifest.json"):
            _sync(aside / name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        _sync(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"cannot write the checkpoint {folder}: {error}",
            "free some disk space; older checkpoints are untouched",
        ) from error
    return folder


def load(folder: Path) -> tuple[dict[str, Tensor], dict, dict]:
    """Read (weights, state, manifest). Raises CheckpointError naming the file that is missing or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, digest in manifest["sha256"].items():
            if _digest(folder / name) != digest:
                raise CheckpointError(
                    f"{folder / name} is damaged: its checksum is not the one written beside it"
                )
        weights = load_file(str(folder / "weights.safetensors"))
        state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
    return weights, state, manifest


def numbered(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def newest(run: Path, note) -> tuple[dict, dict, dict] | None:
    """The newest checkpoint that is whole; each damaged one is told to `note`. None when there is none."""
    for folder in reversed(numbered(run)):
        try:
            return load(folder)
        except CheckpointError as error:
            note(f"{error.what}; falling back to the checkpoint before it")
    return None


def prune(run: Path) -> None:
    """Remove all but the newest."""
    for folder in numbered(run)[:-KEEP]:
        shutil.rmtree(folder, ignore_errors=True)


def random_state() -> dict:
    """Every generator that training draws from, in types that a weights-only load accepts."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # resumed on other hardware, GPUs draw anew
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
