"""Is the quickstart's teacher truly better than its student? Trains the student alone until it stops improving.

    python examples/check_quickstart_teacher.py --lr 4e-3
    python examples/check_quickstart_teacher.py --text all      # the student on the teacher's larger text

Cross-entropy, batches of 8 blocks of 128 tokens, full rate; when dev has stalled the rate is cut to a third, and the
third stall ends it. What is left is the best step on dev: the most that this student gets out of the text without
a teacher. Choose between rates by dev, never by test.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from train_quickstart_teacher import BLOCK, Trainee, batches, cut, encode, figures, perplexity, read_texts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PATIENCE = 2  # looks at dev without a gain of 0.2 % that make a stall


def build_student(folder: Path, stream: torch.Tensor) -> torch.nn.Module:
    """The student, its head bias at the log unigram of `stream` [N].

    Without that bias the first hundred steps only learn the unigram, and any teacher looks good against it.
    """
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    counts = torch.bincount(stream, minlength=config.vocab_size).float() + 0.5
    with torch.no_grad():
        model.lm_head.bias.copy_((counts / counts.sum()).log())
    return model


def train_student(args: argparse.Namespace, streams: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, int]:
    """The student at its best step on dev, and the steps it took to stop improving."""
    stream = streams["train"] if args.text == "train" else torch.cat([streams["train"], streams["extra"]])
    model = build_student(args.folder / "student", stream).to(args.device)
    trainee = Trainee(model, torch.float32, compiled=False, lr=args.lr, muon_lr=args.muon)
    feed = batches(stream, BLOCK, 8, torch.Generator().manual_seed(args.seed))
    dev_BT = cut(streams["dev"], BLOCK)[::4]
    best, kept, scale, waited, cuts, step, start = math.inf, {}, 1.0, 0, 0, 0, time.time()
    while cuts < 3 and step < args.steps:
        step += 1
        loss = trainee.step(next(feed).to(args.device), scale * min(1.0, step / 20))
        if step % args.every:
            continue
        dev = perplexity(model, dev_BT, args.device)
        print(f"step {step} loss {loss:.3f} dev perplexity {dev:.2f} {time.time() - start:.0f} s", flush=True)
        waited = 0 if dev < 0.998 * best else waited + 1
        if dev < best:
            best, kept = dev, {name: p.detach().clone() for name, p in trainee.masters.items()}
        if waited == PATIENCE:
            scale, waited, cuts = scale / 3, 0, cuts + 1
    model.load_state_dict(kept, strict=False)
    return model, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("data/quickstart"), help="has teacher/ and student/"
    )
    parser.add_argument("--text", choices=("train", "all"), default="train", help="all: the teacher's text")
    parser.add_argument("--lr", type=float, default=4e-3, help="AdamW's rate")
    parser.add_argument(
        "--muon", type=float, default=0.0, help="Muon's rate for the block matrices; 0: AdamW"
    )
    parser.add_argument("--steps", type=int, default=100_000, help="stop here in any case")
    parser.add_argument("--every", type=int, default=400, help="steps between looks at dev")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.folder / "teacher")
    streams = {part: encode(tokenizer, rows) for part, rows in read_texts().items()}
    student, steps = train_student(args, streams)
    print("student", json.dumps({"steps": steps, **figures(student, streams, args.device)}), flush=True)
    teacher = AutoModelForCausalLM.from_pretrained(args.folder / "teacher", dtype=torch.float32)
    print("teacher", json.dumps(figures(teacher.to(args.device), streams, args.device)))


if __name__ == "__main__":
    main()
