"""Small classifiers, rows and a reference for the tests of tasks with labels."""

import datasets
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from llm_finetuner.data import label_names
from llm_finetuner.models import labels

WORDS = "good bad great awful nice poor the a is was very not film cast plot".split()
NAMES = ["bad", "fine", "good"]


def build_tokenizer():
    return BertTokenizerFast(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    )


def build_bert(width=16, layers=2, seed=0, names=NAMES):
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, num_labels=len(names), initializer_range=0.3,
        )
    )  # fmt: skip
    labels.rename(model, names, 0)
    return model


def build_gpt2(names=NAMES, seed=0):
    torch.manual_seed(seed)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16, num_labels=len(names), pad_token_id=0,
        initializer_range=0.3, **none,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config)
    labels.rename(model, names, 0)
    return model


def prepared(count=8, seed=0, unlabelled=()):
    torch.manual_seed(seed)
    rows = []
    for i in range(count):
        length = 3 + i % 4
        ids = [2, *torch.randint(5, 20, (length,)).tolist(), 3]
        label = -100 if i in unlabelled else int(torch.randint(0, 3, ()))
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [label]})
    return label_names.put(datasets.Dataset.from_list(rows), NAMES)


def row_by_row(student, teacher, rows):
    """(own answer, the teacher's, label) of every row, alone and so without padding, with all hidden states."""
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            told = teacher.eval()(ids, output_hidden_states=True)
        yield student(ids, output_hidden_states=True), told, row["labels"][0]


def save(folder, tokenizer, **models):
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
