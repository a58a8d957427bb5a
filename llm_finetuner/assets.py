"""Finds the files we ship, in a checkout and in an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SHIPPED = (
    PACKAGE / "_shipped"
)  # only an installed package has it: pyproject.toml puts data/ and recipes/ there


def path(name: str) -> Path:
    """Where `quickstart/teacher` (in a checkout: data/quickstart/teacher) or `recipes/quickstart.yaml` is.

    Raises FileNotFoundError, with the place where it looked.
    """
    if SHIPPED.is_dir():
        found = SHIPPED / name
    else:
        found = PACKAGE.parent / name if name.startswith("recipes/") else PACKAGE.parent / "data" / name
    if not found.exists():
        raise FileNotFoundError(
            f"{name!r} should have come with LLM Finetuner but is not at {found}.\n"
            "Install the package again, or run `git status` in the checkout to see what is missing."
        )
    return found
