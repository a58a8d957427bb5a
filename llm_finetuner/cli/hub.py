"""The hub: whether it answers, and which of its models are on this disk already."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from llm_finetuner.cli import imports
from llm_finetuner.cli.needed import OWN, is_part
from llm_finetuner.models.build import BACKBONES
from llm_finetuner.recipe import Model, Recipe, members_of
from llm_finetuner.registry import MODELS

NOT_HERE = "not in the hub's local cache"
PATIENCE = 5.0  # seconds that the hub may take to answer
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def address() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def is_on_hub(name: str) -> bool:
    """Whether it can only be a hub name: it looks like one, and nothing local or built here is called that."""
    return (
        name not in MODELS
        and not Path(name).expanduser().exists()
        and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))
    )


@functools.cache
def trouble() -> str:
    """Why the hub is out of reach, or "" where it answers; asked once."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address(), method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:
        return ""  # an answer, if an unfriendly one
    except URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:  # ValueError: HF_ENDPOINT is no address
        return str(error)
    return ""


def names_in(recipe: Recipe) -> list[str | None]:
    """All of a recipe that may be a name on the hub."""
    models = [model.name for model in models_in(recipe)]
    return [*models, recipe.data.source, recipe.data.eval_source]


def models_in(recipe: Recipe) -> list[Model]:
    """The models that have to be there: not a student cut from its teacher, one behind an endpoint, or one built here.

    Of those that are built on a language model it is that.
    """
    return [found for model in _named_in(recipe) if (found := _loaded(model)) is not None]


def _loaded(model: Model) -> Model | None:
    """The model, or what is loaded of one that is built here."""
    if model.name not in MODELS:
        return model
    inner = model.shape.get("backbone", BACKBONES[0])
    return None if inner in BACKBONES else Model(inner)


def _named_in(recipe: Recipe) -> list[Model]:
    own = [] if is_part(recipe.student.name) else [recipe.student]
    teacher = recipe.teacher
    if (
        teacher is None
        or not recipe.needs_teacher
        or teacher.kind in OWN
        and not is_part(recipe.student.name)
    ):
        return own
    return [*own, *members_of(teacher)]


def is_offline() -> bool:
    """Whether the hub's libraries were told not to ask it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def prepare(names: Iterable[str | None], warn: Callable[[str], None]) -> None:
    """Before these names are loaded: wait for what is being imported, and see whether the hub can be asked.

    One that is out of reach is not, for its libraries try for a minute. Raises TrainingError.
    """
    imports.wait()
    if is_offline() or not any(name and is_on_hub(name) for name in names) or not trouble():
        return
    warn(f"{address()} is out of reach ({trouble()}): only what is in its local cache can be loaded")
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub" in sys.modules:  # they read it when they are imported
        sys.modules["huggingface_hub"].constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def whereabouts(name: str) -> str:
    """Where a model's weights come from, in words: "" for a folder."""
    if not is_on_hub(name):
        return ""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
    except HFValidationError:
        found = False
    if found:
        return "in the hub's local cache"
    return NOT_HERE if is_offline() else "will be downloaded from the hub"
