"""Models with random weights, rows of random tokens, and the loops that are compared: built alike in every process.

Letters: B rows of a batch, T tokens, V vocabulary, N positions that count.
"""

from collections.abc import Callable, Iterable, Iterator

import datasets
import torch
import torch.nn.functional as F
from performance_loss import naive_loss
from performance_worker import Gate
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from llm_finetuner.tasks.causal_lm import CausalLM

RATE = (
    1e-9  # so that every variant stands at the same weights, and so at the same loss, whatever it did before
)
TEACHER, STUDENT = (12, 768), (6, 512)  # blocks, width
PAIRS = (
    (0, 0),
    (2, 4),
    (3, 6),
    (5, 10),
)  # of the loop that compares hidden states: student block, teacher block


def build_models(family: str, vocabulary: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(student, teacher) of a family, without dropout."""
    make = {"gpt2": gpt2, "qwen": qwen}[family]
    torch.manual_seed(0)
    return make(vocabulary, *STUDENT), make(vocabulary, *TEACHER).eval().requires_grad_(False)


def gpt2(vocabulary: int, blocks: int, width: int) -> PreTrainedModel:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_layer=blocks, n_embd=width, n_head=width // 64, **none, **ends)
    )


def qwen(vocabulary: int, blocks: int, width: int) -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary, num_hidden_layers=blocks, hidden_size=width, intermediate_size=3 * width,
            num_attention_heads=width // 64, num_key_value_heads=width // 128, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def full_rows(count: int, tokens: int, vocabulary: int) -> datasets.Dataset:
    """Rows of equal length, every token of which counts."""
    torch.manual_seed(1)
    ids = torch.randint(1, vocabulary, (count, tokens)).tolist()
    return datasets.Dataset.from_list(
        [{"input_ids": row, "attention_mask": [1] * tokens, "labels": row} for row in ids]
    )


def instructions(count: int, vocabulary: int, longest: int = 512) -> datasets.Dataset:
    """Prompts of 90 tokens in the median and answers of 45, log-normal as those of chats are; the answers count."""
    torch.manual_seed(1)
    rows = []
    for _ in range(count):
        prompt, answer = (
            int((middle * torch.randn(()).mul(0.8).exp()).clamp(4, longest // 2)) for middle in (90.0, 45.0)
        )
        ids = torch.randint(1, vocabulary, (prompt + answer,)).tolist()
        labels = [-100] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return datasets.Dataset.from_list(rows)


def answer_tokens(rows: datasets.Dataset) -> int:
    """Positions that count; the first token of a row is answered by nobody."""
    return sum(label != -100 for labels in rows["labels"] for label in labels[1:])


def batches(rows: datasets.Dataset, size: int) -> Iterator[dict[str, Tensor]]:
    """Batch after batch, for ever."""
    task, at = CausalLM(), 0
    while True:
        yield task.collate([rows[i % len(rows)] for i in range(at, at + size)])
        at += size


# ---- bare loops


def naive_step(gate: Gate, family: str, vocabulary: int, rows: dict, size: int) -> None:
    """Cross-entropy and KL over the logits of both models."""
    student, teacher = build_models(family, vocabulary)
    data = batches(full_rows(**rows, vocabulary=vocabulary), size)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        own = student(**given).logits
        with torch.no_grad():
            told = teacher(**given).logits
        return naive_loss(*(z[:, :-1].flatten(0, 1) for z in (own, told)), batch["labels"][:, 1:].flatten())

    step_on(gate, student.parameters(), data, loss)


def two_steps(
    gate: Gate, family: str, vocabulary: int, rows: dict, size: int, teacher_head: bool = True
) -> None:
    """A forward pass of the teacher, and a step of the student on cross-entropy: no distillation."""
    student, teacher = build_models(family, vocabulary)
    data = batches(full_rows(**rows, vocabulary=vocabulary), size)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            (teacher if teacher_head else teacher.base_model)(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        return student(**batch).loss

    step_on(gate, student.parameters(), data, loss)


def called_twice(gate: Gate, family: str, vocabulary: int, rows: dict, size: int) -> None:
    """Cross-entropy and hidden states of 4 pairs, each model asked once for its answer and once for its states."""
    student, teacher = build_models(family, vocabulary)
    data = batches(full_rows(**rows, vocabulary=vocabulary), size)
    maps = nn.ModuleList(nn.Linear(STUDENT[1], TEACHER[1], bias=False) for _ in PAIRS)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        answer = student(**batch).loss
        own = student(**given, output_hidden_states=True).hidden_states
        with torch.no_grad():
            teacher(**given)
            told = teacher(**given, output_hidden_states=True).hidden_states
        apart = [F.mse_loss(m(own[s + 1]), told[t + 1]) for m, (s, t) in zip(maps, PAIRS, strict=True)]
        return 0.3 * answer + 0.7 * sum(apart) / len(apart)

    step_on(gate, [*student.parameters(), *maps.parameters()], data, loss)


def step_on(gate: Gate, parameters: Iterable[Tensor], data: Iterator[dict], loss: Callable) -> None:
    """Batch after batch with AdamW and its defaults."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    gate()
    for batch in data:
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        gate(loss=value.item())
