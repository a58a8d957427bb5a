"""AdaLoRA (arXiv 2303.10512): adapters whose rank moves to the layers where it helps."""

from llm_finetuner.tuning.lora import find_targets, inject

WARM, FINAL = 0.1, 0.3  # shares of the run before pruning starts and after the ranks are fixed


def adalora(
    model,
    total_steps: int,
    task,
    *,
    target_r: int = 8,
    init_r: int = 12,
    lora_alpha: float = 32,
    lora_dropout: float = 0.1,
    target_modules: list[str] | None = None,
):
    """Add adapters of rank init_r and prune them to target_r on average while training.

    The allocation needs the number of optimizer steps and a call after each; its orthogonality penalty joins the loss.
    """
    from peft import AdaLoraConfig

    steps = max(total_steps, 4)  # peft wants room for warm-up, pruning and the fixed rest
    config = AdaLoraConfig(
        target_r=target_r, init_r=init_r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, total_step=steps,
        tinit=int(WARM * steps), tfinal=int(FINAL * steps), deltaT=max(1, steps // 100),
        target_modules=find_targets(model, target_modules),
    )  # fmt: skip
    tuned = inject(model, config, task)
    allocator = tuned.peft.base_model.rankallocator

    def penalty():
        """Mean Frobenius distance of P^T P and Q Q^T from the identity, times peft's weight."""
        import torch

        distances = []
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                distances.append(
                    torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device, dtype=p.dtype))
                )
        return config.orth_reg_weight * torch.stack(distances).mean()

    past, seen = 0, 0  # steps of earlier phases, and of this one

    def after_step(step: int) -> None:
        """A later phase goes on where the one before ended: ranks that were pruned stay so."""
        nonlocal past, seen
        past, seen = (past + seen if step <= seen else past), step
        tuned.peft.base_model.update_and_allocate(past + step)

    def state() -> dict:
        moments = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {"moments": moments, "rank_pattern": config.rank_pattern}

    def load_state(saved: dict) -> None:
        where = next(model.parameters()).device
        for name, moment in saved["moments"].items():
            setattr(allocator, name, {key: value.to(where) for key, value in moment.items()})
        config.rank_pattern = saved["rank_pattern"]

    tuned.penalty, tuned.state, tuned.load_state = penalty, state, load_state
    tuned.after_step = after_step
    return tuned
