"""LoRA (arXiv 2106.09685): small low-rank matrices beside the frozen weights."""

from llm_finetuner.errors import ModelError


def lora(
    model,
    total_steps: int,
    *,
    r: int = 8,
    lora_alpha: float = 32,
    lora_dropout: float = 0.1,
    target_modules: list[str] | None = None,
):
    """Add LoRA to the target modules; None finds the attention layers of the architecture."""
    from peft import LoraConfig

    config = LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=find_targets(model, target_modules),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return inject(model, config)


def inject(model, config):
    """Put the adapter into `model` in place and return it as Tuned."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    from llm_finetuner.models.loading import is_quantised
    from llm_finetuner.tuning.tuned import Tuned

    if is_quantised(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    config.fan_in_fan_out = any(
        isinstance(module, Conv1D) for module in model.modules()
    )  # GPT-2 stores [in, out]
    with_adapter = get_peft_model(model, config)
    return Tuned(model, peft=with_adapter)


def find_targets(model, named: list[str] | None) -> list[str]:
    """Names of the modules to adapt, checked against the model. Raises ModelError naming what there is.

    By default the projections of the attention of peft's table for the architecture, or, where it has no entry, every
    linear layer of the blocks.
    """
    import torch
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = {
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head
    }
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    if named:
        wrong = [
            name for name in named if not any(layer == name or layer.endswith(f".{name}") for layer in layers)
        ]
        if wrong:
            raise ModelError(
                f"target_modules {wrong} are not linear layers of {type(model).__name__}",
                f"choose from: {', '.join(endings)}",
            )
        return list(named)
    known = KNOWN.get(model.config.get_text_config().model_type)
    if isinstance(known, list) and all(any(layer.endswith(f".{name}") for layer in layers) for name in known):
        return known
    if not endings:
        raise ModelError(f"{type(model).__name__} has no linear layers to adapt", "use full tuning")
    return endings
