"""Steps of TRL (https://github.com/huggingface/trl), through the documented arguments of its trainers.

Gradient checkpointing, on by default there, is off: it would make them slower. Its GKD loss has no cross-entropy and no
temperature, so it does less than our default.
"""

import tempfile

import torch
from performance_models import RATE, answer_tokens, batches, build_models, full_rows, instructions, step_on
from performance_worker import Gate
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from llm_finetuner import assets
from llm_finetuner.models import loading
from llm_finetuner.tasks.causal_lm import CausalLM

ENDLESS = 10**6


class Between(TrainerCallback):
    """The gate after every optimizer step."""

    def __init__(self, gate: Gate, tokens: int):
        self.gate, self.tokens = gate, tokens

    def on_log(self, args, state, control, logs=None, **_):
        self.gate(loss=logs["loss"], tokens=self.tokens)


def gkd(gate: Gate, family: str, vocabulary: int, rows: dict, size: int) -> None:
    """Offline: on the data's rows (lmbda = 0), forward KL (beta = 0)."""
    data = full_rows(**rows, vocabulary=vocabulary)
    _train(gate, build_models(family, vocabulary), data, size, 1, size * (rows["tokens"] - 1))


def gkd_on_instructions(gate: Gate, family: str, vocabulary: int, count: int, size: int) -> None:
    """All rows in one optimizer step, as ours."""
    data = instructions(count, vocabulary)
    _train(gate, build_models(family, vocabulary), data, size, -(-count // size), answer_tokens(data))


def _train(gate: Gate, models, rows, size: int, accumulated: int, tokens: int) -> None:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = models
    config = GKDConfig(
        output_dir=tempfile.mkdtemp(dir="."), lmbda=0.0, beta=0.0, max_steps=ENDLESS, learning_rate=RATE,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = GKDTrainer(
        student, teacher, config, data_collator=CausalLM().collate, train_dataset=rows,
        processing_class=loading.load_tokenizer(str(assets.path("quickstart/teacher"))),
        callbacks=[Between(gate, tokens)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def distillation(gate: Gate, family: str, vocabulary: int, rows: dict, size: int) -> None:
    """The loss of its DistillationTrainer, which learns only from texts that the student writes, in a bare loop."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = build_models(family, vocabulary)
    data = batches(full_rows(**rows, vocabulary=vocabulary), size)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        own = student.base_model(**given, use_cache=False).last_hidden_state[:, :-1]
        with torch.no_grad():
            told = teacher.base_model(**given, use_cache=False).last_hidden_state[:, :-1]
        heads = [model.get_output_embeddings().weight for model in (student, teacher)]
        return _chunked_divergence_loss(own, told, *heads, batch["labels"][:, 1:] != -100, beta=0.0)[0]

    step_on(gate, student.parameters(), data, loss)
