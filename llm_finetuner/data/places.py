"""Where rows come from: a file, folder, glob, `save_to_disk` folder, hub name or live rows."""

import difflib
import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_finetuner.data.json_rows import row_fault
from llm_finetuner.data.lines import Record
from llm_finetuner.data.readers import READERS, kind_of, read_file
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

SAME_SPLIT = ({"validation", "valid", "val", "dev", "eval"}, {"train"}, {"test"})
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def open_source(source: Any, config: str | None, split: str, files: str | Sequence[str] | None) -> Any:
    """An iterator of (file, record) for what we read ourselves, otherwise a datasets.Dataset."""
    if isinstance(source, list | tuple):
        return _given(source)
    if not isinstance(source, str | Path):
        return _live(source, split)
    text = str(source).strip()
    if not text:
        raise DataError("the source of the data is empty", "give a file, a folder, a glob or a hub name")
    try:
        return _named(text, Path(text).expanduser(), config, split, files)
    except (OSError, RuntimeError) as error:  # a folder we may not enter, a name too long, ~ of nobody
        raise DataError(
            f"{text[:200]} cannot be read: {error}", "check the path and its permissions"
        ) from error


def _named(text: str, path: Path, config: str | None, split: str, files: str | Sequence[str] | None) -> Any:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved(path, split)
        return _records(_files_in(path, split, files))
    if path.is_file():
        if not {path.stem, path.parent.name} & _synonyms(split):
            _check_split(text, split)
        return _records([path])
    if glob.has_magic(text):
        matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
        usable = [m for m in matches if m.is_file() and kind_of(m)]
        if not usable:
            raise DataError(f"no readable file matches {text!r}", f"kinds read: {' '.join(READERS)}")
        _check_split(text, split)
        return _records(usable)
    if _looks_local(text, path):
        raise _no_such_file(text, path)
    return _hub(text, config, split, files)


def _check_split(source: str, split: str) -> None:
    """Files without splits are all "train": DataError, for other rows than those asked for are a wrong answer."""
    if split != "train":
        raise DataError(
            f"{source} has no split {split!r}", "name another file: --data, or --eval-data for held-out rows"
        )


def _records(paths: Iterable[Path]) -> Iterator[tuple[str, Record]]:
    return ((str(path), record) for path in paths for record in read_file(path))


def _given(rows: Sequence[Any]) -> Iterator[tuple[str, Record]]:
    for number, row in enumerate(rows, 1):
        problem = row_fault(row)
        if not problem and not all(isinstance(key, str) for key in row):
            problem = "a column name is not a string"
        yield "the list given", Record(number, None if problem else row, problem, str(row)[:200], "row")


def _live(source: Any, split: str) -> "datasets.Dataset":
    import datasets

    if isinstance(source, datasets.DatasetDict):
        return _pick(source, split, "the DatasetDict given")
    if isinstance(source, datasets.Dataset):
        return source
    raise DataError(
        f"a {type(source).__name__} cannot be read", "give a path, a hub name, a Dataset or a list of dicts"
    )


def _saved(path: Path, split: str) -> "datasets.Dataset":
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: this save_to_disk folder is damaged: {error}", "save the dataset again"
        ) from error
    return _pick(loaded, split, str(path)) if isinstance(loaded, datasets.DatasetDict) else loaded


def _pick(splits: "datasets.DatasetDict", split: str, name: str) -> "datasets.Dataset":
    found = next((key for key in splits if key in _synonyms(split)), None)
    if found is None:
        raise DataError(f"{name} has no split {split!r}", f"splits found: {', '.join(splits)}")
    return splits[found]


def _synonyms(split: str) -> set[str]:
    return next((names for names in SAME_SPLIT if split in names), {split})


def _files_in(folder: Path, split: str, files: str | Sequence[str] | None) -> list[Path]:
    if files:
        patterns = [files] if isinstance(files, str) else list(files)
        matches = (m for p in patterns for m in sorted(glob.glob(p, root_dir=folder, recursive=True)))
        named = [folder / match for match in matches if (folder / match).is_file()]
        if not named:
            raise DataError(
                f"{folder}: no file matches {', '.join(patterns)}", "names and globs count from the folder"
            )
        return list(dict.fromkeys(named))
    visible = (
        p for p in folder.rglob("*") if not any(part[0] == "." for part in p.relative_to(folder).parts)
    )
    found = sorted(p for p in visible if p.is_file() and kind_of(p))
    if not found:
        raise DataError(f"{folder}: no file that can be read", f"kinds read: {' '.join(READERS)}")
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(_split_of(path, folder), []).append(path)
    if set(by_split) == {""}:  # no name carries a split
        _check_split(str(folder), split)
        return found
    wanted = [path for name in by_split if name in _synonyms(split) for path in by_split[name]]
    if not wanted:
        names = ", ".join(sorted(name for name in by_split if name))
        raise DataError(
            f"{folder}: no files of the split {split!r}", f"splits found: {names}; or name files="
        )
    return wanted


def _split_of(path: Path, folder: Path) -> str:
    """The split that a name carries: train.jsonl, train-00000-of-00004.parquet, train/part1.jsonl; or ""."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.name.split(".")[0])
    for name in (stem, *reversed(path.relative_to(folder).parts[:-1])):
        if any(name in names for names in SAME_SPLIT):
            return name
    return ""


def _looks_local(text: str, path: Path) -> bool:
    parts = path.parts
    known = kind_of(path) or path.suffix.lower() in (".gz", ".xlsx", ".arrow", ".zip")
    return bool(known) or text[0] in "./~\\" or "\\" in text or len(parts) > 2 or Path(parts[0]).is_dir()


def _no_such_file(text: str, path: Path) -> DataError:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    beside = [p.name for p in sorted(folder.iterdir())]
    near = difflib.get_close_matches(path.name, beside, 3, 0.6) if folder == path.parent else []
    there = ", ".join(near or [name for name in beside if kind_of(Path(name))][:5])
    hint = (
        ("did you mean " if near else f"in {folder} there is ") + there
        if there
        else f"{folder} holds no data files"
    )
    return DataError(f"no such file: {text}", hint)


def _hub(name: str, config: str | None, split: str, files: str | Sequence[str] | None) -> "datasets.Dataset":
    if not HUB_NAME.fullmatch(name):
        raise DataError(
            f"no local file or folder {name!r}, and it cannot be a hub name", "check the spelling"
        )
    import datasets

    try:  # trust_remote_code is never set: a dataset that needs it is refused by the hub's own loader
        return datasets.load_dataset(name, config, split=split, data_files=files)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"there is no local file or folder named {name!r}, and the hub said: {said}",
            "check name, config and split; offline give a local path; private data: `hf auth login`",
        ) from error
