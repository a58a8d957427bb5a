"""Which models read several examples of one row as if each stood alone, and the advice for the others.

transformers (5.3 to 5.23 looked at) sees from position_ids that begin again, where it is given no attention_mask and no
cache, that a row holds several sequences, and masks attention between them, sliding windows included. A mask of
our own in 4 dimensions would be taken as it is for every block, so a window of some of them would be lost. Models that
keep a state along the row (Mamba, RWKV, Falcon H1), count positions themselves (OPT, BioGPT) or weigh distances
without position_ids (Bloom, MPT) do none of that, and say nothing: they would answer wrongly.
"""

from torch import nn

from llm_finetuner.errors import RecipeError

PACKABLE = (  # model_type; each is compared with its own unpacked answers in tests/test_packing.py
    "arcee", "codegen", "cohere", "cohere2", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "llama", "mistral", "nemotron", "olmo", "olmo2",
    "olmo3", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
ATTENTIONS = ("sdpa", "eager")  # flash attention tells sequences apart in a batch of one row only


def packable(model: nn.Module) -> bool:
    """Whether examples that share a row of this model do not hear one another."""
    return model.config.model_type in PACKABLE and model.config._attn_implementation in ATTENTIONS


def check_packable(model: nn.Module) -> None:
    """Raise RecipeError where packing would change what the model says."""
    if packable(model):
        return
    kind, attention = model.config.model_type, model.config._attn_implementation
    if kind in PACKABLE:
        raise RecipeError(
            f"train.packing is not known to be right with attention {attention!r}",
            f"load the model with attn_implementation {' or '.join(ATTENTIONS)}, or leave packing out",
        )
    raise RecipeError(
        f"train.packing: a {kind} is not known to keep examples apart that share a row",
        "set train.max_tokens instead, which saves padding with any model",
    )
