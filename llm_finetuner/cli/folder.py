"""Where a run may write: nothing of somebody else's is overwritten, and a folder that cannot be is known at once."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llm_finetuner.cli.exits import program
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Recipe, members_of
from llm_finetuner.run import is_run

OTHER = "choose another --output, one that is new or empty"
WRITTEN = "written.jsonl"  # what a teacher wrote for a run: the same run goes on with it
NO_MATTER = ("bad_rows.jsonl", WRITTEN)  # what a run may have left that stopped before its first step


def check_output(recipe: Recipe, overwrite: bool = False) -> None:
    """Refuse a folder that a run of this recipe may not write to. Raises RecipeError.

    `overwrite` is for runs of ours alone: the folder of a model, of the data, or of anything else stays as it is.
    """
    try:
        _check(recipe, Path(recipe.output), overwrite)
    except OSError as error:
        raise RecipeError(
            f"output {recipe.output} cannot be written: {error.strerror or error}",
            "choose another --output, in a folder that you may write to",
        ) from error


def forget_texts(recipe: Recipe) -> None:
    """Remove what a teacher wrote for an earlier run in the folder, which may have been of other settings."""
    (Path(recipe.output) / WRITTEN).unlink(missing_ok=True)


def check_shared(recipe: Recipe, markers: Sequence[str], flag: str = "--output") -> None:
    """Refuse an output folder that holds anything, unless it is of ours by one of these files: then it is gone on with.

    Raises RecipeError.
    """
    folder = Path(recipe.output)
    try:
        _spare(recipe, folder)
        if is_run(folder):
            raise RecipeError(
                f"{recipe.output} holds a run", f"choose another {flag}, one that is new or empty"
            )
        ours = any((folder / name).exists() for name in markers)
        if folder.is_dir() and not ours and any(map(_matters, folder.iterdir())):
            raise RecipeError(f"{recipe.output} is not empty, and what it holds is not of ours", OTHER)
        _try_to_write(folder)
    except OSError as error:
        raise RecipeError(
            f"{recipe.output} cannot be written: {error.strerror or error}",
            f"choose another {flag}, in a folder that you may write to",
        ) from error


def _spare(recipe: Recipe, folder: Path) -> None:
    _spare_models(recipe, folder)
    _spare_data(recipe, folder)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"output {recipe.output} is a file", "choose another name with --output")


def _check(recipe: Recipe, folder: Path, overwrite: bool) -> None:
    _spare(recipe, folder)
    if is_run(folder):
        if not overwrite:
            raise RecipeError(
                f"{recipe.output} already holds a run",
                f"go on with it: {program()} resume {recipe.output}; replace it: --overwrite; "
                "or choose another --output",
            )
    elif folder.is_dir() and any(map(_matters, folder.iterdir())):
        raise RecipeError(f"output {recipe.output} is not empty, and what it holds is no run of ours", OTHER)
    _try_to_write(folder)


def _matters(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in NO_MATTER


def _spare_models(recipe: Recipe, folder: Path) -> None:
    models = [("student", recipe.student.name)]
    if recipe.teacher:
        models += [("teacher", member.name) for member in members_of(recipe.teacher)]
        models += [("cache", recipe.teacher.options.get("path", ""))]
    for who, name in ((who, name) for who, name in models if name):
        where = Path(name).expanduser()
        if where.is_dir() and where.resolve().is_relative_to(folder.resolve()):
            how = "is the folder of" if where.resolve() == folder.resolve() else "holds"
            raise RecipeError(f"output {recipe.output} {how} the {who} {name}", OTHER)


def _spare_data(recipe: Recipe, folder: Path) -> None:
    for name in filter(None, (recipe.data.source, recipe.data.eval_source)):
        where = Path(name).expanduser()
        if where.exists() and folder.resolve() in (where.resolve(), where.resolve().parent):
            raise RecipeError(f"output {recipe.output} is the folder of the data {name}", OTHER)
        if where.is_dir() and not recipe.data.files and folder.resolve().is_relative_to(where.resolve()):
            raise RecipeError(
                f"output {recipe.output} lies inside the data {name}: its own log would be read as rows",
                OTHER,
            )


def _try_to_write(folder: Path) -> None:
    """Make the folder and a file in it, and take both away again. Raises OSError."""
    made: list[Path] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir()
            made.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # another run is making its own folder beside it
                path.rmdir()
