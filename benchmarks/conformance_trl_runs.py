"""One step of TRL's trainers, through their documented arguments, as a gradient, and the rows it was taken on."""

import copy
import random
from dataclasses import dataclass

import conformance_paths  # noqa: F401
import conftest
import torch
from conformance_step import EOS, Bench, Gradient
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

NEW_TOKENS = 12


def model_of(bench: Bench, seed: int, more: int = 0, dropout: float = 0.0) -> nn.Module:
    model = conftest.build_llama(bench.vocabulary + more, width=16, layers=2, seed=seed)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    return model


@dataclass
class Ran:
    """gradient: of one step. rows: what it learned from, as rows of ours."""

    gradient: Gradient
    rows: list[dict]


class Watch(TrainerCallback):
    """Keeps the gradient as it is before the optimizer's step."""

    gradient: Gradient = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradient = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for name, p in model.named_parameters()
        }


def arguments(bench: Bench, size: int, count: int) -> dict:
    return {
        "output_dir": str(bench.new_folder()), "per_device_train_batch_size": size,
        "gradient_accumulation_steps": count // size, "max_steps": 1, "learning_rate": 1.0, "optim": "sgd",
        "max_grad_norm": 0.0, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


# ---- GKDTrainer


def pad_rows(examples: list[dict]) -> dict[str, Tensor]:
    """Right padding for texts, left padding for prompts, as its own collator does."""
    length = max(len(e["input_ids"]) for e in examples)
    prompts = [e["input_ids"][: _prompt(e)] for e in examples]
    width = max(map(len, prompts))

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([e[key] + [value] * (length - len(e[key])) for e in examples])

    return {
        "input_ids": padded("input_ids", EOS), "attention_mask": padded("attention_mask", 0),
        "labels": padded("labels", -100),
        "prompts": torch.tensor([[EOS] * (width - len(p)) + p for p in prompts]),
        "prompt_attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }  # fmt: skip


def _prompt(example: dict) -> int:
    return next(i for i, label in enumerate(example["labels"]) if i and label != -100)


def run_gkd(bench: Bench, student, teacher, rows, size: int = 8, share: float = 0.0, **options) -> Ran:
    """share: of the batches that the student writes (lmbda). Forward KL, beta = 0."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(
        **arguments(bench, size, len(rows)), lmbda=share, beta=0.0, max_new_tokens=NEW_TOKENS, **options
    )
    watch, written = Watch(), []
    student = copy.deepcopy(student)
    trainer = GKDTrainer(
        student, copy.deepcopy(teacher) if share else teacher, config, data_collator=pad_rows, train_dataset=rows,
        processing_class=bench.tokenizer, callbacks=[watch],
    )  # fmt: skip
    write = trainer.generate_on_policy_outputs

    def observed(*args):
        said = write(*args)
        for ids, mask, labels in zip(*said, strict=True):
            on = mask.bool()
            n = int(on.sum())
            written.append(
                {"input_ids": ids[on].tolist(), "attention_mask": [1] * n, "labels": labels[on].tolist()}
            )
        return said

    trainer.generate_on_policy_outputs = observed
    random.seed(0)
    torch.manual_seed(0)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return Ran(watch.gradient, written or list(rows))


# ---- DistillationTrainer


def prompts_of(bench: Bench) -> list[str]:
    return [bench.tokenizer.decode(ids[: 2 + i % 3]) for i, ids in enumerate(bench.texts)]


def run_distillation(bench: Bench, student, teacher, size: int = 8, **options) -> Ran:
    """The student writes after 8 prompts of unequal length. Forward KL, beta = 0."""
    import datasets
    from trl import DistillationConfig, DistillationTrainer

    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.padding_side = "left"
    config = DistillationConfig(
        **arguments(bench, size, 8), beta=0.0, max_completion_length=NEW_TOKENS, **options
    )
    watch = Watch()
    trainer = DistillationTrainer(
        copy.deepcopy(student), teacher, config, datasets.Dataset.from_dict({"prompt": prompts_of(bench)}),
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rows = []
    for batch in trainer._buffered_inputs:  # what it wrote, looked at only
        for p, p_on, c, c_on in zip(
            *(batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
            strict=True,
        ):
            prompt, text = p[p_on.bool()].tolist(), c[c_on.bool()].tolist()
            labels = [-100] * len(prompt) + text
            rows.append({"input_ids": prompt + text, "attention_mask": [1] * len(labels), "labels": labels})
    return Ran(watch.gradient, rows)
