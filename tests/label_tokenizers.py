"""For the tests on labels without a shift: small tokenizers of the BERT and the T5 kind, made from word lists."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

PIECES = [
    "the",
    "cat",
    "dog",
    "sees",
    "play",
    "##ing",
    "##ed",
    "x",
    "ber",
    "##lin",
    ".",
    "-",
    *map(str, range(300)),
]


def bert() -> BertTokenizer:
    """WordPiece with [CLS] and [SEP] around a text; "playing" is two tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate([*special, *PIECES])})


def t5(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """Unigram pieces with </s> behind a text and no mask token; without `eos`: nothing around a text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("_", -9.0)]
    pieces += [(f"_{word}", -2.0) for word in PIECES if not word.startswith("#")]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz:"]
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer = normalizers.Replace("\n", " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace("_", prepend_scheme="always")
    if eos:
        core.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, core.token_to_id(eos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token="<pad>", unk_token="<unk>")
