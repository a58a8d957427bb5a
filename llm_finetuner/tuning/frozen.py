"""The trunk stays as it is; what a task has put around it moves: a scoring layer, or all that is Time-LLM's own."""

from llm_finetuner.errors import ModelError


def frozen(model, total_steps: int, task):
    """Train the layers around the blocks alone. Raises ModelError for a model that has none, or is quantised."""
    from llm_finetuner.models.task_layers import task_layers
    from llm_finetuner.tuning.full import full

    tuned, moving = full(model, total_steps, task), task_layers(model)
    if not moving:
        raise ModelError(
            f"{type(model).__name__} has no layers of its task's own beside its blocks, so nothing would be trained",
            "tuning.kind=full, or lora",
        )
    model.base_model.requires_grad_(False)
    for name in moving:
        model.get_submodule(name).requires_grad_(True)
    return tuned
