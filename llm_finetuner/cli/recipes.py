"""Recipe files as they are typed: one that is not there is told apart from those that are."""

import difflib
from pathlib import Path

from llm_finetuner.errors import RecipeError

FOLDER = Path("recipes")  # of this repository


def offered() -> list[str]:
    """The recipes that come with the repository, where it is the folder one stands in."""
    return sorted(map(str, FOLDER.glob("*.yaml")))


def existing(typed: str) -> Path:
    """The file that was typed. Raises RecipeError with the nearest ones that there are."""
    path = Path(typed.strip()).expanduser()
    if path.exists():
        return path
    beside = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
    there = {str(file): file.stem for file in (*map(Path, offered()), *beside)}
    near = difflib.get_close_matches(path.stem, there.values(), 2, 0.6)
    found = [name for stem in dict.fromkeys(near) for name, other in there.items() if other == stem]
    hint = f"did you mean {' or '.join(found)}?" if found else "give a .yaml file; the menu writes them too"
    raise RecipeError(f"cannot read the recipe {typed}: there is no such file", hint)
