"""A small model trained by our loop and by a bare one: the same arithmetic, so what differs is the loop."""

import torch
import torch.nn.functional as F
from performance_models import RATE, full_rows
from performance_step import ENDLESS, recipe_of, train
from performance_worker import Gate
from torch import Tensor, nn

from llm_finetuner import assets
from llm_finetuner.assembly import Parts
from llm_finetuner.data import columns
from llm_finetuner.data.order import Order
from llm_finetuner.models import loading
from llm_finetuner.optim import adamw
from llm_finetuner.tasks.causal_lm import CausalLM

BATCH, TOKENS, ROWS, STEPS = 8, 128, 64, 10  # as the quickstart; steps a repetition
TEMPERATURE, ALPHA = 1.0, 0.1


def models() -> tuple[nn.Module, nn.Module]:
    """The quickstart's student, with new weights, and its teacher."""
    folder = assets.path("quickstart")
    student = loading.load_pretrained(str(folder / "student"), dtype="float32", from_scratch=True)
    return student, loading.load_pretrained(str(folder / "teacher"), dtype="float32").requires_grad_(False)


def rows_of(student: nn.Module):
    return full_rows(ROWS, TOKENS, student.config.vocab_size)


def ours(gate: Gate) -> None:
    student, teacher = models()
    parts = Parts(student=student, teacher=teacher, train=rows_of(student), device="cpu")
    options = {"temperature": TEMPERATURE, "alpha": ALPHA}
    tokens = STEPS * BATCH * (TOKENS - 1)
    train(gate, recipe_of("vanilla_distillation", options, batch_size=BATCH), parts, tokens, every=STEPS)


def bare(gate: Gate) -> None:
    """A loop as one would write it for this one loss, with our order of the rows, our batches and our optimizer."""
    student, teacher = models()
    rows, task = rows_of(student), CausalLM()
    order = Order(columns.lengths(rows), BATCH, BATCH, seed=0)
    parameters = list(student.parameters())
    optimizer = adamw(parameters, 0.0, torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = RATE
    gate.weights()
    losses: list[float] = []
    for step in range(1, ENDLESS):
        for numbers, _ in order.step(step):
            batch = task.collate(columns.examples(rows, numbers))
            optimizer.zero_grad()
            loss = loss_of(student, teacher, batch)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == STEPS:
            gate(loss=sum(losses) / STEPS)
            losses.clear()


def loss_of(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """alpha CE + (1 - alpha) KL at temperature 1: one log-softmax of each model."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    own = F.log_softmax(student(**given, use_cache=False).logits[:, :-1].flatten(0, 1), -1)
    with torch.no_grad():
        told = F.log_softmax(teacher(**given, use_cache=False).logits[:, :-1].flatten(0, 1), -1)
    kl = F.kl_div(own, told, log_target=True, reduction="batchmean")
    return ALPHA * F.nll_loss(own, batch["labels"][:, 1:].flatten()) + (1 - ALPHA) * kl
