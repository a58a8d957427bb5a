"""State-space models by the names that networks for synthetic-aperture radar are configured with, and their sizes."""

import difflib
import inspect
from typing import Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.models.s4d import S4DConfig, S4DModel

NAMES = ("s4_ssm", "s4d")
PRESETS = {  # a teacher, and students without gates
    "teacher": {"model_dim": 64, "state_dim": 540, "num_layers": 6, "gate": "channel"},
    "standard": {"model_dim": 64, "state_dim": 540, "num_layers": 6, "gate": "off"},
    "compressed": {"model_dim": 32, "state_dim": 256, "num_layers": 4, "gate": "off"},
    "tiny": {"model_dim": 24, "state_dim": 128, "num_layers": 3, "gate": "off"},
}


def get_model_from_configs(
    name: str = "s4_ssm", *, use_selectivity: bool | None = None, **settings: Any
) -> S4DModel:
    """The model of a configuration; its weights are drawn anew, for `load_state_dict`.

    use_selectivity: True for gate="channel", False for gate="off". settings: of S4DConfig. Raises RecipeError.
    """
    if name not in NAMES:
        raise RecipeError(f"unknown model {name!r}", f"name: one of {', '.join(NAMES)}")
    known = [key for key in inspect.signature(S4DConfig.__init__).parameters if key not in ("self", "kwargs")]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise RecipeError(
                f"unknown setting {key!r} of {name}",
                (f"did you mean {near[0]!r}? " if near else "")
                + f"known: name, use_selectivity, {', '.join(known)}",
            )
    if use_selectivity is not None:
        if "gate" in settings:
            raise RecipeError(
                f"use_selectivity={use_selectivity} and gate={settings['gate']!r} say the same thing",
                "give one",
            )
        if not isinstance(use_selectivity, bool):
            raise RecipeError(f"use_selectivity must be true or false, got {use_selectivity!r}")
        settings["gate"] = "channel" if use_selectivity else "off"
    return S4DModel(S4DConfig(**settings))


def preset(name: str) -> dict[str, Any]:
    """Sizes and gate of a named model. Raises RecipeError."""
    if not isinstance(name, str) or name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}", f"choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]
