"""Values as users type them: layers, objectives, conditions on columns, numbers that change over a run, and back."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from llm_finetuner import ramp
from llm_finetuner.errors import RecipeError
from llm_finetuner.layer_maps import NAMED, POOLED_NAME
from llm_finetuner.ranges import number_or_text
from llm_finetuner.recipe_series import OF_MODELS

OBJECTIVES_FORM = (
    "write objective=weight[:option=value], such as cross_entropy=0.5 jsd=0.5:beta=0.1:layers=last"
)


def read_layers(text: str) -> str | list:
    """Read "0,3" as [0, 3], "0:1,3:7" as [[0, 1], [3, 7]], "last" and "pooled" as they are. Raises RecipeError."""
    if text.strip() in (*NAMED, POOLED_NAME):
        return text.strip()
    try:
        parts = [[int(number) for number in word.split(":")] for word in text.replace(",", " ").split()]
    except ValueError:
        parts = []
    if not parts or any(len(part) not in (1, 2) or min(part) < 0 for part in parts):
        raise RecipeError(
            f"layers must be block numbers from 0 (0,3,6), pairs (0:1,3:7) or a map, got {text!r}",
            f"maps: {', '.join(NAMED)}; {POOLED_NAME}: what a text's label is read off",
        )
    return [part[0] if len(part) == 1 else part for part in parts]


def spell_layers(value: str | list) -> str:
    """The inverse of `read_layers`."""
    if isinstance(value, str):
        return value
    return ",".join(":".join(map(str, x)) if isinstance(x, list) else str(x) for x in value)


def read_names(text: str) -> list[str]:
    """Read `a, "b, c"` as ["a", "b, c"]: quotes keep a comma in a name."""
    found = next(csv.reader([text.replace("\n", " ")], skipinitialspace=True), [])
    return [word.strip() for word in found if word.strip()]


def spell_names(names: Sequence[Any]) -> str:
    """The inverse of `read_names`."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(names)
    return row.getvalue()


def read_objectives(words: list[str]) -> dict[str, Any]:
    """Read `reverse_kl=0.5:temperature=4..1:cosine:layers=0:1` as {"reverse_kl": {"weight": 0.5, ...}}.

    A piece between colons that sets nothing belongs to the one before. Raises RecipeError.
    """
    found: dict[str, Any] = {}
    for word in " ".join(words).replace(", ", " ").split():
        name, _, rest = word.partition("=")
        pieces: list[str] = []
        for piece in rest.split(":"):
            if not pieces or "=" in piece:
                pieces.append(piece)
            else:
                pieces[-1] += f":{piece}"
        if not name or name in found:
            raise RecipeError(
                f"{word!r} names {'an objective twice' if name else 'no objective'}", OBJECTIVES_FORM
            )
        weight = _weight(pieces[0], word)
        options = dict(piece.split("=", 1) for piece in pieces[1:])
        read = {
            key: read_layers(text) if key == "layers" else read_plain(text) for key, text in options.items()
        }
        found[name] = {"weight": weight, **read} if read else weight
    if not found:
        raise RecipeError("no objective is named", OBJECTIVES_FORM)
    return found


def _weight(text: str, word: str) -> Any:
    """A number, or a ramp; nothing: 1. Raises RecipeError."""
    value = read_plain(text) if text else 1.0
    if isinstance(value, str) and ".." in value:
        ramp.read(value)
    elif isinstance(value, str | bool | None):
        raise RecipeError(f"{word!r}: {text!r} is no weight", OBJECTIVES_FORM)
    return value


def spell_objectives(value: dict[str, Any]) -> list[str]:
    """One word an objective; `read_objectives` reads them back."""
    words = []
    for name, given in value.items():
        given = dict(given) if isinstance(given, dict) else {"weight": given}
        pieces = [spell_plain(given.pop("weight", 1.0))]
        for key, option in given.items():
            layers = key == "layers" and isinstance(option, str | list)
            pieces.append(f"{key}={spell_layers(option) if layers else spell_plain(option)}")
        words.append(f"{name}={':'.join(pieces)}")
    return words


def read_conditions(words: list[str]) -> dict[str, Any]:
    """Read `subject=math` as {"subject": "math"}: rows with this value in this column. Raises RecipeError."""
    found = {}
    for word in words:
        column, equals, text = word.partition("=")
        if not equals or not column.strip():
            raise RecipeError(f"{word!r} is not column=value", "example: --only subject=math")
        found[column.strip()] = read_plain(text.strip())
    return found


def read_shape(words: list[str]) -> dict[str, Any]:
    """Read `hidden_size=16` as {"hidden_size": 16}: an option of a model that is built here. Raises RecipeError."""
    found = {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not name:
            raise RecipeError(f"{word!r} is not option=value", "example: --shape hidden_size=16 num_layers=1")
        if name in OF_MODELS:
            raise RecipeError(
                f"{name} is not of a model's shape: the series say it",
                f"--{name.replace('_', '-')} (data.series.{name}), for all models of the run",
            )
        found[name] = read_plain(text)
    return found


def read_weights(words: list[str]) -> str | dict[str, Any]:
    """Read `bad=2`, `good=1` as {"bad": 2, "good": 1}, and one word, such as balanced, as it is. Raises RecipeError."""
    if len(words) == 1 and "=" not in words[0]:
        return words[0].strip()
    found = {}
    for word in words:
        label, equals, weight = word.rpartition("=")
        if not equals or not label.strip():
            raise RecipeError(f"{word!r} is not label=weight", "example: --class-weights bad=2 good=1")
        found[label.strip()] = number_or_text(weight.strip())
    return found


def read_number(path: str, text: str) -> float | str:
    """A number, or one that changes over the run ("4..1", "4..1:cosine"). Raises RecipeError."""
    if ".." in text:
        ramp.read(text)
        return text
    try:
        return float(text)
    except ValueError:
        raise RecipeError(
            f"{path} must be a number, or one that changes over the run such as 4..1, got {text!r}"
        ) from None


def read_plain(text: str) -> Any:
    """A number, true, false, null, a list such as ["value"], or text."""
    known = {"true": True, "false": False, "null": None}
    if text in known:
        return known[text]
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return number_or_text(text)


def spell_plain(value: Any) -> str:
    """The inverse of `read_plain`."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
