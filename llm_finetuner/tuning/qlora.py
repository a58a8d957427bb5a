"""QLoRA (arXiv 2305.14314): LoRA on a frozen model held in 4 bits."""

from llm_finetuner.errors import ModelError
from llm_finetuner.tuning.lora import lora


def qlora(
    model,
    total_steps: int,
    task,
    *,
    r: int = 16,
    lora_alpha: float = 64,
    lora_dropout: float = 0.1,
    target_modules: list[str] | None = None,
):
    """Add LoRA to a quantised model. Raises ModelError when it is not quantised."""
    from llm_finetuner.models.loading import is_quantised

    if not is_quantised(model):
        raise ModelError(
            "QLoRA needs a model held in 4 or 8 bits, this one is not",
            "load it with load_in_4bit=True, or use lora",
        )
    return lora(
        model,
        total_steps,
        task,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
    )
