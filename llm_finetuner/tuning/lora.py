"""LoRA (arXiv 2106.09685): small low-rank matrices beside the frozen weights."""

from llm_finetuner.errors import ModelError


def lora(
    model,
    total_steps: int,
    task,
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
    )  # fmt: skip
    return inject(model, config, task)


def inject(model, config, task):
    """Put the adapter into `model` in place and return it as Tuned. The layers of the task move whole."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    from llm_finetuner.models.loading import is_quantised
    from llm_finetuner.models.task_layers import task_layers
    from llm_finetuner.tuning.tuned import Tuned

    task.check_adapter(model)
    if is_quantised(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    config.fan_in_fan_out = any(
        isinstance(module, Conv1D) for module in model.modules()
    )  # GPT-2 stores [in, out]
    config.task_type, config.modules_to_save = task.task_type, task_layers(model) or None
    with_adapter = get_peft_model(model, config)
    _hold_in_float32(model)
    return Tuned(model, peft=with_adapter, labelled=task.labels)


def _hold_in_float32(model) -> None:
    """Hold what moves whole in float32 behind a trunk in half precision, which swallows small steps.

    Layers of two precisions then follow each other, so each of them takes its input to its own.
    """
    import torch
    from peft.utils import ModulesToSaveWrapper

    layers = {
        layer
        for wrapper in model.modules() if isinstance(wrapper, ModulesToSaveWrapper)
        for layer in wrapper.modules_to_save.modules() if layer._parameters
    }  # fmt: skip
    if not any(weight.dtype.itemsize < 4 for layer in layers for weight in layer.parameters()):
        return
    for layer in layers:
        layer.to(torch.float32)
    for layer in filter(None, (*layers, model.get_output_embeddings())):
        layer.register_forward_pre_hook(_to_own_precision)


def _to_own_precision(layer, inputs):
    return inputs[0].to(next(layer.parameters()).dtype), *inputs[1:]


def find_targets(model, named: list[str] | None) -> list[str]:
    """Names of the modules to adapt, checked against the model. Raises ModelError naming what there is.

    By default the projections of the attention of peft's table for the architecture, or, where it has no entry, every
    linear layer of the blocks.
    """
    import torch
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from transformers.pytorch_utils import Conv1D

    from llm_finetuner.models.task_layers import task_layers

    moved = {layer for name in task_layers(model) for layer in model.get_submodule(name).modules()}
    apart = {model.get_output_embeddings(), *moved}
    layers = {
        name
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear | Conv1D) and m not in apart
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
