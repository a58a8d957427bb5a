"""Trains the teacher that the quickstart ships: a Llama of 4.2M parameters, on Python's own library.

    python examples/train_quickstart_teacher.py --out data/quickstart

This is how data/quickstart was made, on one core of a CPU with bfloat16 arithmetic (AMX) that had other work
too; training.json there has the time. On another CPU add --float32 (two to three times as long), without a
C++ compiler add --no-compile.

Text: the quickstart's training modules and the library's other modules (idlelib, lib2to3, tkinter, removed
ones; no tests), less what hashes into the held-out twelfth. So the teacher has read half as much again as
the quickstart gives the student. A twelfth of the training modules is split off as dev, and the step that
is kept is the best one on dev; the held-out modules are read once, at the end. check_quickstart_teacher.py
asks whether it is better than its student.

Letters: B blocks, T tokens in a block, V vocabulary, N tokens in a stream. A perplexity is over blocks of
128 tokens, of which the first is not predicted.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PreTrainedTokenizerFast

# So that it runs in a clone with nothing installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from llm_finetuner.data import stdlib  # noqa: E402

END, PAD = "<|endoftext|>", "<|pad|>"
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
BLOCK = 128  # tokens in a block of the quickstart and of every perplexity here
# Tables, not text; and tests, which are written in another way than modules are.
NO_TEXT = {"encodings", "pydoc_data", "site-packages", "__phello__", "test", "tests", "idle_test"}


def read_texts() -> dict[str, list[str]]:
    """Sources by part: train, dev (a twelfth of the training modules), test (held out), extra (the rest)."""
    rows = {split: stdlib.corpus(split) for split in ("train", "test")}
    known = {row["module"] for part in rows.values() for row in part}
    texts = {"train": [], "dev": [], "test": [row["text"] for row in rows["test"]], "extra": []}
    for row in rows["train"]:
        digest = hashlib.sha256(f"dev {row['module']}".encode()).digest()
        texts["dev" if digest[0] % stdlib.HELD_OUT == 0 else "train"].append(row["text"])
    root = stdlib.root()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        table = NO_TEXT & set(module.split("/")[:-1]) or module.startswith(("_sysconfigdata", "config-"))
        if not (table or module in known or stdlib.is_held_out(module)):
            texts["extra"].append(path.read_text(encoding="utf-8"))
    return texts


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every string round-trips, and nothing is unknown."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one stream of ids [N], an end token after each."""
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])


def cut(stream: torch.Tensor, length: int, offset: int = 0) -> torch.Tensor:
    """[N] -> [B, length]; an offset moves the borders, so a second epoch does not see the same blocks."""
    stream = stream[offset:]
    return stream[: len(stream) // length * length].view(-1, length)


def build_teacher(vocabulary: int, width: int = 256, layers: int = 4) -> LlamaForCausalLM:
    """Heads of 64, output head untied."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 16 * 16 + 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            **IDS,
        )
    )


def student_config(vocabulary: int, width: int = 112, layers: int = 2) -> PhiConfig:
    """As it stands a fifth of the teacher's parameters; Phi because its head has a bias."""
    return PhiConfig(
        architectures=["PhiForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **IDS,
    )


def nll(model: torch.nn.Module, blocks_BT: torch.Tensor) -> torch.Tensor:
    """Mean nats a token; the logits in float32."""
    logits_BTV = model(input_ids=blocks_BT, use_cache=False).logits
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), blocks_BT[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: torch.nn.Module, blocks_BT: torch.Tensor, device: str) -> float:
    """exp of the mean nats a token; every token weighs the same."""
    model.eval()
    total = sum(nll(model, part.to(device)).item() * len(part) for part in blocks_BT.split(32))
    model.train()
    return math.exp(total / len(blocks_BT))


class Trainee:
    """A model, float32 masters of its weights, and the optimizers of the masters.

    bfloat16 weights alone lose updates that are under 1/256 of the weight; the masters keep them. Muon moves
    the blocks' matrices (a trial of 150 steps came to perplexity 46, AdamW alone to 89), AdamW the rest; at
    muon_lr 0 AdamW moves all.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, compiled: bool, lr: float, muon_lr: float):
        self.masters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        for p in model.parameters():  # and not model.to(dtype), which would round the rotary frequencies too
            p.data = p.data.to(dtype)
        self.model = model
        self.loss = torch.compile(nll) if compiled else nll
        hidden = [n for n, p in self.masters.items() if muon_lr and ".layers." in n and p.ndim == 2]
        rest = [p for n, p in self.masters.items() if n not in hidden]
        self.optimizers = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)]
        if hidden:
            self.optimizers.append(torch.optim.Muon([self.masters[n] for n in hidden], lr=muon_lr))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def step(self, blocks_BT: torch.Tensor, scale: float) -> float:
        loss = self.loss(self.model, blocks_BT)
        loss.backward()
        for name, p in self.model.named_parameters():
            self.masters[name].grad, p.grad = p.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.masters[name])
        return loss.item()


def batches(
    stream: torch.Tensor, length: int, batch: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Batches [batch, length] without end: each epoch in another order and with other block borders."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        blocks = cut(stream, length, offset)
        order = torch.randperm(len(blocks), generator=generator)
        for some in order.split(batch)[: len(order) // batch]:
            yield blocks[some]


def train_teacher(
    model: torch.nn.Module, args: argparse.Namespace, streams: dict[str, torch.Tensor]
) -> tuple[torch.nn.Module, dict]:
    """Full rate, then straight to zero over the last 60 % of the steps; the best on dev."""
    model.to(args.device)
    trainee = Trainee(model, args.dtype, args.compile, lr=8e-3, muon_lr=0.02)
    generator = torch.Generator().manual_seed(args.seed)
    feed = batches(torch.cat([streams["train"], streams["extra"]]), 256, 16, generator)
    dev_BT = cut(streams["dev"], BLOCK)[::4]
    best, kept, start = math.inf, None, time.time()
    for step in range(1, args.steps + 1):
        scale = min(1.0, step / 20, (args.steps - step + 1) / (0.6 * args.steps))
        loss = trainee.step(next(feed).to(args.device), scale)
        if step % args.every == 0 or step == args.steps:
            dev = perplexity(model, dev_BT, args.device)
            print(
                f"step {step} loss {loss:.3f} dev perplexity {dev:.2f} {time.time() - start:.0f} s",
                flush=True,
            )
            if dev < best:
                best, kept = dev, {name: p.detach().clone() for name, p in trainee.masters.items()}
    model.load_state_dict(kept, strict=False)
    figures = {"steps": args.steps, "tokens": args.steps * 16 * 256, "seconds": round(time.time() - start)}
    return model, figures


def figures(model: torch.nn.Module, streams: dict[str, torch.Tensor], device: str) -> dict[str, float]:
    """Parameters, and the perplexities on all of dev and test and on an eighth of the training blocks."""
    blocks = {part: cut(streams[part], BLOCK) for part in ("train", "dev", "test")}
    blocks["train"] = blocks["train"][::8]
    found = {f"{part}_perplexity": round(perplexity(model, b, device), 3) for part, b in blocks.items()}
    return {"parameters": sum(p.numel() for p in model.parameters()), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("data/quickstart"), help="gets teacher/ and student/"
    )
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps of 4096 tokens")
    parser.add_argument("--every", type=int, default=100, help="steps between looks at dev")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--float32", action="store_true", help="for processors without bfloat16 arithmetic")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.dtype = torch.float32 if args.float32 else torch.bfloat16
    torch.manual_seed(args.seed)
    texts = read_texts()
    tokenizer = train_tokenizer(texts["train"] + texts["dev"], args.vocabulary)
    streams = {part: encode(tokenizer, rows) for part, rows in texts.items()}
    print({part: len(stream) for part, stream in streams.items()}, "tokens", flush=True)
    teacher, record = train_teacher(build_teacher(args.vocabulary), args, streams)
    record |= {"seed": args.seed, "python": platform.python_version(), "torch": torch.__version__}
    record |= {"device": args.device, **figures(teacher, streams, args.device)}
    for name, part in (("teacher", teacher), ("student", student_config(args.vocabulary))):
        part.save_pretrained(args.out / name)
        tokenizer.save_pretrained(args.out / name)
    (args.out / "teacher" / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
