"""The embedded default data set: the running Python's own standard library, split into train and test.

Every machine that can run this tool has this text, so nothing need be downloaded. Left out is what differs
between Python 3.11 and 3.14 or between distributions (removed modules, tkinter, private trees), the tests, and
tables that no one wrote.
"""

import hashlib
import json
import os
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from llm_finetuner.errors import DataError

HELD_OUT = 12  # one module in twelve is held out

# A module in one of these folders is not in the corpus.
SKIPPED_FOLDERS = """
    __phello__ __pycache__ _pyrepl dist-packages distutils encodings ensurepip idle_test idlelib lib-dynload
    lib2to3 msilib pydoc_data site-packages test test_ext tests tkinter turtledemo
"""
# Modules removed by 3.14 or not on every system, and tables that were generated.
SKIPPED_FILES = """
    _aix_support.py _android_support.py _apple_support.py _bootsubprocess.py _ios_support.py
    _opcode_metadata.py _osx_support.py _sitebuiltins.py aifc.py asynchat.py asyncore.py cgi.py cgitb.py chunk.py
    crypt.py html/entities.py imghdr.py imp.py keyword.py locale.py mailcap.py nntplib.py nturl2path.py opcode.py
    pipes.py sitecustomize.py smtpd.py sndhdr.py sre_compile.py sre_constants.py sre_parse.py stringprep.py
    sunau.py telnetlib.py this.py token.py turtle.py usercustomize.py uu.py xdrlib.py
"""


def is_held_out(module: str) -> bool:
    """Whether a module, by its path below the library ("json/decoder.py"), belongs to the test split.

    A hash of the path alone, so the split is the same on every version. `pathlib.py` and `pathlib/__init__.py`
    hash alike, because a module that becomes a package must not move from one side to the other.
    """
    name = module.removesuffix("/__init__.py").removesuffix(".py")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0


def corpus(split: str) -> list[dict[str, str]]:
    """The modules of "train" or "test" in alphabetical order, as {"text": source, "module": "json/decoder.py"}.

    Raises DataError for another split, and where the library has no sources (a frozen or zipped Python).
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}", "use 'train' or 'test'")
    rows = [row for row in _modules() if is_held_out(row["module"]) == (split == "test")]
    if not rows:
        raise DataError(f"this Python has no library sources in {root()}", "use a file of your own as data")
    return rows


def write(folder: str | os.PathLike[str]) -> Path:
    """Write train.jsonl and test.jsonl into `folder` and return it; a file that is right already is not touched."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in corpus(split))
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        # Written aside and moved, so that an interrupted or a second process never leaves half a file.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=folder, delete=False
        ) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    return folder


def root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _modules() -> Iterator[dict[str, str]]:
    library, folders, files = root(), set(SKIPPED_FOLDERS.split()), set(SKIPPED_FILES.split())
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        module = path.relative_to(library)
        if module.as_posix() in files or module.name.startswith("_sysconfigdata"):
            continue
        if any(part in folders or part.startswith("config-") for part in module.parts[:-1]):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            warnings.warn(f"{path} is left out of the corpus: {error}", stacklevel=3)
            continue
        if text.strip():
            yield {"text": text, "module": module.as_posix()}
