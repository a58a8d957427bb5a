"""Every weight moves."""

from llm_finetuner.errors import ModelError


def full(model, total_steps: int, task):
    """Train all weights, held in float32. Raises ModelError for a quantised model."""
    import torch

    from llm_finetuner.models.loading import is_quantised
    from llm_finetuner.tuning.tuned import Tuned

    if is_quantised(model):
        raise ModelError(
            "a model held in 4 or 8 bits cannot be trained in full", "use an adapter: lora, qlora or adalora"
        )
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            weight.requires_grad_(True)
    return Tuned(model)
