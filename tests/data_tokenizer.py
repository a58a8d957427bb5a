"""For the tests on data: a tiny byte-level tokenizer, trained in milliseconds, and rows put together by hand."""

import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_finetuner.data import text

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "Question: how many?",
    "Answer: seven and two",
    "hello there",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q]' + m['content'] + '[A]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)

TALK = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "the fox"},
    {"role": "user", "content": "how many?"},
    {"role": "assistant", "content": "seven"},
]


def build(
    eos: str | None = "<eos>",
    bos: str | None = None,
    pad: str | None = None,
    adds_bos: bool = False,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens; `adds_bos` makes tokenizer(text) put BOS in front."""
    specials = [t for t in dict.fromkeys((eos, bos, pad, "<|im_start|>", "<|im_end|>")) if t]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(LINES, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


def rows_of(*rows):
    """A dataset of these dicts."""
    return datasets.Dataset.from_list(list(rows))


def ids(tokenizer, piece):
    """The ids of a text, nothing added."""
    return tokenizer(piece, add_special_tokens=False)["input_ids"]


def built(tokenizer, *pieces):
    """(input_ids, labels) of [(text or id, counted)], each piece tokenised alone."""
    tokens, labels = [], []
    for piece, counted in pieces:
        new = [piece] if isinstance(piece, int) else ids(tokenizer, piece)
        tokens += new
        labels += new if counted else [-100] * len(new)
    return tokens, labels


def prepared(tokenizer, *rows, **options):
    """[(input_ids, labels)] after checking that the columns and masks are what they must be."""
    dataset = text.prepare(rows_of(*rows), tokenizer, **options).dataset
    assert dataset.column_names == ["input_ids", "attention_mask", "labels"]
    for row in dataset:
        assert row["attention_mask"] == [1] * len(row["input_ids"]) and len(row["labels"]) == len(
            row["input_ids"]
        )
    return [(row["input_ids"], row["labels"]) for row in dataset]
