"""The stacks of blocks of a model, one, or a decoder's and an encoder's, and what its config says of them."""

from torch import nn
from transformers import PretrainedConfig

from llm_finetuner.errors import ModelError

# what a config of two stacks calls their depths, the decoder's first: T5 and its kin, BART and its kin
DEPTHS = (("num_decoder_layers", "num_layers"), ("decoder_layers", "encoder_layers"))
# lists with a value for each block
PER_BLOCK = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_window")


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks of a transformers model, first to last. Raises ModelError where there is none to be found.

    Of a model with encoder and decoder it is the decoder's, whose states the head reads.
    """
    if model.config.is_encoder_decoder:
        return _outermost(model, "decoder")
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no list of {depth} blocks to take hidden states from")
    return stacks[0]


def stacks_of(model: nn.Module) -> list[nn.ModuleList]:
    """What `blocks_of` gives, and behind it the encoder's blocks where there is an encoder. Raises ModelError."""
    two = model.config.is_encoder_decoder
    return [blocks_of(model), *([_outermost(model, "encoder")] if two else [])]


def depths_of(config: PretrainedConfig) -> list[int]:
    """How many blocks each stack has, in the same order. Raises ModelError where the config does not say."""
    return [getattr(section, name) for section, name in _places(config)]


def with_blocks(config: PretrainedConfig, numbers: list[list[int]]) -> PretrainedConfig:
    """A copy of the config for these blocks of each stack, in the same order. Raises ModelError."""
    made = type(config).from_dict(config.to_dict())
    rest = {}
    for (section, name), kept in zip(_places(made), numbers, strict=True):
        setattr(section, name, len(kept))
        rest[id(section)] = section, kept  # what else a section of both stacks says is of the encoder
    for section, kept in rest.values():
        held = section.to_dict()
        # older versions of transformers say in it, too, how deep the encoder of a BART is
        if "num_hidden_layers" in held:
            section.num_hidden_layers = len(kept)
        for name in PER_BLOCK:
            if isinstance(held.get(name), list) and held[name]:
                setattr(section, name, [held[name][number] for number in kept])
    return made


def _outermost(model: nn.Module, side: str) -> nn.ModuleList:
    """The configs name depths in many ways, but the outermost list of an encoder or decoder is that of its blocks."""
    half = {"encoder": model.get_encoder, "decoder": model.get_decoder}[side]()
    stack = next((m for m in half.modules() if isinstance(m, nn.ModuleList)), None)
    if stack is None:
        raise ModelError(f"{type(model).__name__} has no list of blocks in its {side}")
    return stack


def _places(config: PretrainedConfig) -> list[tuple[PretrainedConfig, str]]:
    """(section, name) of the depth of each stack."""
    if not config.is_encoder_decoder:
        return [(config.get_text_config(), "num_hidden_layers")]
    known = config.to_dict()
    if known.keys() >= {"decoder", "encoder"}:  # a config for each, as of T5Gemma
        return [(config.decoder, "num_hidden_layers"), (config.encoder, "num_hidden_layers")]
    found = next((names for names in DEPTHS if known.keys() >= set(names)), None)
    if found is None:
        raise ModelError(
            f"the configuration of {config.model_type} says in no known way how many blocks there are"
        )
    return [(config, name) for name in found]
