"""Real models and a real tokenizer, small enough to build in a test."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = "the cat sat on a mat and saw one small dog run to its red house by sea".split()
END = "<end>"


def sentence(random_source: random.Random, words: int) -> str:
    """Words that follow each other by a rule, so that a model can learn them."""
    at = random_source.randrange(len(WORDS))
    return " ".join(WORDS[(at + step) % len(WORDS)] for step in range(words))


def texts(count: int, seed: int = 0, low: int = 4, high: int = 14) -> list[str]:
    source = random.Random(seed)
    return [sentence(source, source.randint(low, high)) for _ in range(count)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end token and no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(200), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def tiny_gpt2(vocabulary: int, width: int = 32, layers: int = 2, seed: int = 0, positions: int = 64):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def tiny_llama(vocabulary: int, width: int = 32, layers: int = 2, seed: int = 0, positions: int = 64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
    )
    return LlamaForCausalLM(config)


def prepared(tokenizer, lines: list[str], prompt_tokens: int = 0) -> list[dict]:
    """Rows as `prepare_dataset` makes them: the end token counts, the first prompt_tokens do not."""
    rows = []
    for line in lines:
        ids = [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]
        labels = [-100] * prompt_tokens + ids[prompt_tokens:]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


def train(model: PreTrainedModel, rows: list[dict], steps: int, learning_rate: float = 1e-2, batch: int = 8):
    """A few plain steps on single rows, so that a model knows something."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        for offset in range(batch):
            row = rows[(step * batch + offset) % len(rows)]
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            (model(input_ids=ids, labels=labels).loss / batch).backward()
        optimizer.step()
    return model
