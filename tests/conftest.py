"""Tiny real models, tokenizers and data that the tests build and train themselves: no hub, no network."""

import json
import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as finetune_cli.py does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
WORDS = "the a red blue old new cat dog bird house tree sees likes finds loses near under over by .".split()

QUICK = {"num_epochs": 1, "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Small talk with some regularity, so that a tiny model can learn it."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]


def build_tokenizer(extra: list[str] = ()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", *extra], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences(200), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def build_gpt2(vocabulary: int, width: int = 16, layers: int = 2, dropout: float = 0.0, seed: int = 0):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=2, n_positions=128, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
        )
    )  # fmt: skip


def build_llama(vocabulary: int, width: int = 32, layers: int = 4, seed: int = 1):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
            initializer_range=0.2,
        )
    )  # fmt: skip


def save_model(folder: Path, model, tokenizer) -> str:
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory, tokenizer) -> str:
    """A GPT-2 of 2 blocks, width 16."""
    return save_model(tmp_path_factory.mktemp("student"), build_gpt2(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, tokenizer) -> str:
    """A Llama of 4 blocks, width 32: another family, depth and width than the student."""
    return save_model(tmp_path_factory.mktemp("teacher"), build_llama(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def data_file(tmp_path_factory) -> str:
    """Question and answer rows."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"question": f"what of {s}?", "answer": s[::-1]} for s in sentences(40, seed=1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """Real question and answer text; tests that need it skip where it is absent."""
    folder = SHARED / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("real data not at hand: ../shared/data/gsm8k")
    return folder


def prepared_rows(count: int = 12, vocabulary: int = 64, seed: int = 0, prompt: int = 2):
    """Rows of random ids whose first `prompt` tokens do not count, of different lengths."""
    import datasets

    draw = random.Random(seed)
    ids = [[draw.randrange(vocabulary) for _ in range(draw.randint(5, 14))] for _ in range(count)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [[-100] * prompt + row[prompt:] for row in ids],
        }
    )


@pytest.fixture
def finetuner(student_folder, tmp_path):
    from llm_finetuner.finetuner import LLMFineTuner

    return LLMFineTuner(student_folder, tmp_path / "run")


@pytest.fixture
def rows(tokenizer):
    return prepared_rows(16, len(tokenizer))
