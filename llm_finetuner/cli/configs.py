"""What the config.json of a model says, without loading the model: on this disk, or in the hub's local cache."""

import json
from pathlib import Path
from typing import Any

from llm_finetuner.cli.hub import is_on_hub

DEPTH = (  # what configurations call it, where there are two stacks that of the decoder
    "num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers",
)  # fmt: skip
FORECASTERS = ("time_llm", "patch", "linear", "naive")  # model_type of models that forecast


def depth_of(name: str) -> int | None:
    """Blocks of a model by its config.json; None where there is none at hand that says so."""
    config = config_of(name)
    inner = (config.get(name) for name in ("decoder", "text_config", "backbone"))
    sections = [*(section for section in inner if isinstance(section, dict)), config]
    found = (section.get(key) for section in sections for key in DEPTH)
    return next((depth for depth in found if isinstance(depth, int)), None)


def has_two_stacks(name: str) -> bool:
    """Whether config.json says that a model has an encoder and a decoder."""
    return config_of(name).get("is_encoder_decoder") is True


def is_forecaster(name: str) -> bool:
    """Whether config.json says that a model forecasts series."""
    return config_of(name).get("model_type") in FORECASTERS


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a model, of an adapter that of its base; empty where none is at hand."""
    config, seen = _json_of(name, "config.json"), {name}
    while config is None:  # an adapter: its base is asked, which may be an adapter again
        name = (_json_of(name, "adapter_config.json") or {}).get("base_model_name_or_path")
        if not isinstance(name, str) or not name or name in seen:
            return {}
        seen.add(name)
        config = _json_of(name, "config.json")
    return config


def _json_of(name: str, file: str) -> dict[str, Any] | None:
    """A file of a model's folder, or of the hub's local cache."""
    path: Any = Path(name).expanduser() / file
    if is_on_hub(name):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(name, file)
        except HFValidationError:
            return None
        if not isinstance(path, str):
            return None
    return read(Path(path))


def read(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever loads the model says what is wrong with it
    return found if isinstance(found, dict) else None
