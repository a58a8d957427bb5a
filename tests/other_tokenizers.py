"""Real tokenizers of several kinds, trained on the spot: byte-level and SentencePiece, with and without BOS."""

import json

from conftest import build_gpt2, build_llama, build_tokenizer, sentences

from llm_finetuner.models.vocabulary import Vocabulary

SMILE, FAMILY = "\U0001f600", "\U0001f468\u200d\U0001f469"
TEXTS = [
    "the red house sees the old dog .",
    "a blue bird, likes " + SMILE + " trees",
    "na\u00efve \u00fcber \u4e2d\u6587 " + FAMILY + "!",
    "  two blanks\n\nand lines\t",
    "x",
]
WRITTEN_OUT = "</s> <|endoftext|> <0x41> written out"  # text, not tokens
WORDS = [
    *sentences(60, seed=3),
    *["what a naive bird is here, over there and nowhere near", "lines and blanks"] * 20,
]


def build_other(size: int = 400, front: bool = True, specials: tuple = ("<s>", "</s>", "<pad>")):
    """A byte-level BPE of other text and size, which puts <s> in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=size, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    if front:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build_piece(kind: str = "bpe", fallback: bool = True, front: bool = False):
    """As SentencePiece has it: a sign for the blank, one before every text, bytes for unknown signs."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if fallback else []
    core = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer
    more = {} if kind == "bpe" else {"unk_token": "<unk>"}
    core.train_from_iterator(WORDS, trainer(vocab_size=120, show_progress=False, **more))
    if kind == "bpe":
        learned = core.get_vocab()
        names = ["<unk>", "<s>", "</s>", *bytes_, *sorted(learned, key=learned.get)]
        state = json.loads(core.to_str())["model"]["merges"]
        model = models.BPE(
            {name: i for i, name in enumerate(names)}, [tuple(m) for m in state], unk_token="<unk>",
            byte_fallback=fallback, fuse_unk=True,
        )  # fmt: skip
    else:
        scores = [(p, s) for p, s in json.loads(core.to_str())["model"]["vocab"] if p != "<unk>"]
        names = [("<unk>", 0.0), ("<s>", -99.0), ("</s>", -99.0), *((b, -20.0) for b in bytes_), *scores]
        model = models.Unigram(names, unk_id=0, byte_fallback=fallback)
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if front:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


BUILDERS = {
    "bytes": build_tokenizer,
    "other": build_other,
    "pieces": build_piece,
    "pieces with BOS": lambda: build_piece(front=True),
    "unigram": lambda: build_piece("unigram"),
}


def rows_of(vocabulary: Vocabulary, texts=TEXTS, prompt: int = 0, eos: bool = True) -> list[dict]:
    """The rows of some texts: the tokenizer's own BOS in front, EOS behind, the first `prompt` tokens not counted."""
    rows = []
    for ids in vocabulary.encode(texts):
        front = [] if vocabulary.front is None else [vocabulary.front]
        ids = front + ids + ([vocabulary.roles["eos"]] if eos else [])
        labels = [-100] * (prompt + len(front)) + ids[prompt + len(front) :]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


def model_for(vocabulary: Vocabulary, seed: int = 0):
    """Random weights in float64, with three logits more than there are tokens."""
    build = build_gpt2 if seed == 0 else build_llama
    return build(len(vocabulary) + 3, seed=seed).double().eval()
