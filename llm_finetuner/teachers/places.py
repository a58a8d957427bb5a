"""What the disk tells of a teacher that fills a cache: its weights, and the folder of its answers. No torch here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_finetuner.errors import RecipeError, TrainingError

MANIFEST, FITTED = "manifest.json", "fitted.safetensors"  # of a cache
HINT = "name a folder for it, new or of such a cache, where you may write: --cache (teacher.options.path)"
PATTERNS = ("*.safetensors", "*.bin")


def weight_files(name: str) -> dict[str, list[int]]:
    """{file: [bytes, time of its last change in ns]} of a model's folder; nothing for a model of the hub."""
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        return {}
    found = sorted(file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file())
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in found}


def check_place(path: str) -> None:
    """Raise RecipeError where the folder of a cache is a file or cannot be made."""
    folder = Path(path).expanduser()
    try:
        if (folder / MANIFEST).exists():
            return  # it may be there to be read only
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise RecipeError(f"the cache {path} cannot be looked at: {error.strerror}", HINT) from error
    if not there.is_dir():
        raise RecipeError(f"the cache {path} cannot be made: {there} is a file", HINT)
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"the cache {path} cannot be made: no right to write into {there}", HINT)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """While it lasts, an error of the file system is a TrainingError that names the cache."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write the cache {folder}: {error.strerror or error}", HINT) from error
