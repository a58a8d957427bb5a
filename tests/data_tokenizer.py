"""A tiny byte-level tokenizer for the tests on data: trained in milliseconds, with whatever special tokens are asked."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["the quick brown fox jumps over the lazy dog", "Question: how many?", "Answer: seven and two", "hello there"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q]' + m['content'] + '[A]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)


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
