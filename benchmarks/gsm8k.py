"""Prepares what benchmarks/methods.py compares methods on: GSM8K text in blocks, its teachers and its students.

    python benchmarks/gsm8k.py --data FOLDER [--out outputs/methods] [--only text teacher second student]

FOLDER holds train.jsonl and test.jsonl of https://github.com/openai/grade-school-math (MIT licence), from
grade_school_math/data there. Questions and answers are one text, without the calculator's marks (<<48/2=24>>).
A sixteenth of the training rows is dev, which chooses; test has chosen nothing. Each part is done once: what
lies in the out folder is kept. On a CPU without bfloat16 arithmetic add --float32, without a C++ compiler
--no-compile. An hour and a half on one core; parts may run side by side once the text is there.

Letters: B blocks, T tokens in a block, N tokens in a stream.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import check_quickstart_teacher as checking  # noqa: E402
import train_quickstart_teacher as training  # noqa: E402

OUT = ROOT / "outputs" / "methods"
VOCABULARY = 2048
DEV = 16  # one training row in so many is dev
MARKS = re.compile(r"<<.*?>>")
# width, layers, dropout, steps of 4096 tokens, seed
TEACHERS = {"teacher": (256, 4, 0.1, 1000, 0), "second": (192, 4, 0.1, 900, 1)}
STUDENTS = {"student": (128, 2), "middle": (192, 3)}  # width, layers
SPREAD = 0.05  # of their first weights: at 0.02, transformers' own, cross-entropy is 6 % worse on dev after 100 steps
PARTS = ("text", *TEACHERS, "student")


def read_texts(folder: Path) -> dict[str, list[str]]:
    """Question and answer of every row by part: train, dev, test."""
    texts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl"
        if not path.exists():
            sys.exit(f"{path} is not there: get it from https://github.com/openai/grade-school-math")
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            first = hashlib.sha256(row["question"].encode()).digest()[0]
            part = "dev" if split == "train" and first % DEV == 0 else split
            texts[part].append(MARKS.sub("", f"{row['question']}\n{row['answer']}"))
    return texts


def prepare_text(args: argparse.Namespace) -> None:
    """Tokenizer, streams, and the students' configurations."""
    texts = read_texts(args.data)
    tokenizer = training.train_tokenizer(texts["train"], VOCABULARY)
    for name, (width, layers) in STUDENTS.items():
        config = training.student_config(VOCABULARY, width, layers)
        config.initializer_range = SPREAD
        config.save_pretrained(args.out / name)
        tokenizer.save_pretrained(args.out / name)
    streams = {part: training.encode(tokenizer, rows) for part, rows in texts.items()}
    save_file(streams, args.out / "streams.safetensors")
    print({part: len(stream) for part, stream in streams.items()}, "tokens", flush=True)


def load_streams(out: Path) -> dict[str, torch.Tensor]:
    """Token ids [N] by part: train, dev, test."""
    return load_file(out / "streams.safetensors")


def add_dropout(model: torch.nn.Module, share: float) -> None:
    """Drop out of what every block adds to the stream: the text is small, and a Llama has no dropout there."""

    def drop(module, _inputs, said):
        if isinstance(said, tuple):
            return (torch.nn.functional.dropout(said[0], share, module.training), *said[1:])
        return torch.nn.functional.dropout(said, share, module.training)

    for block in model.model.layers:
        block.self_attn.register_forward_hook(drop)
        block.mlp.register_forward_hook(drop)


def train_teacher(name: str, args: argparse.Namespace) -> dict:
    """Train one of TEACHERS on the training part, keep its best step on dev, and write it."""
    width, layers, dropout, steps, seed = TEACHERS[name]
    streams = {**load_streams(args.out), "extra": torch.empty(0, dtype=torch.long)}
    torch.manual_seed(seed)
    model = training.build_teacher(VOCABULARY, width, layers)
    add_dropout(model, dropout)
    plan = argparse.Namespace(**{**vars(args), "steps": args.steps or steps, "seed": seed})
    model, record = training.train_teacher(model, plan, streams)
    record |= {"dropout": dropout, "seed": seed, **training.figures(model, streams, args.device)}
    model.save_pretrained(args.out / name)
    # as the other models have it
    for file in (args.out / "student").glob("tokenizer*"):
        (args.out / name / file.name).write_bytes(file.read_bytes())
    return record


def train_student(args: argparse.Namespace) -> dict:
    """The student on cross-entropy alone until dev stalls: the most that it gets out of this text by itself."""
    streams = load_streams(args.out)
    torch.manual_seed(0)
    plan = argparse.Namespace(
        **vars(args) | {"text": "train", "folder": args.out, "lr": 4e-3, "muon": 0.02, "seed": 0}
        | {"steps": args.steps or 100_000}
    )  # fmt: skip
    model, steps = checking.train_student(plan, streams)
    model.save_pretrained(args.out / "student_alone")
    return {"steps": steps, **training.figures(model, streams, args.device)}


def prepare(args: argparse.Namespace) -> None:
    """Do what is not there yet of args.only."""
    args.out.mkdir(parents=True, exist_ok=True)
    if "text" in args.only and not (args.out / "streams.safetensors").exists():
        prepare_text(args)
    for part in [name for name in PARTS[1:] if name in args.only]:
        record_file = args.out / f"{part}.json"
        if record_file.exists():
            continue
        began = time.process_time()
        record = train_student(args) if part == "student" else train_teacher(part, args)
        record |= {"cpu_seconds": round(time.process_time() - began), "torch": torch.__version__}
        record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(part, json.dumps(record), flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that preparing takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--data", type=Path, help="folder with GSM8K's train.jsonl and test.jsonl")
    made.add_argument("--out", type=Path, default=OUT)
    made.add_argument("--float32", action="store_true", help="for processors without bfloat16 arithmetic")
    made.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return made


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """What the trainers of the examples read besides."""
    args.dtype = torch.float32 if args.float32 else torch.bfloat16
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    made.add_argument("--steps", type=int, help="instead of each part's own")
    made.add_argument("--every", type=int, default=100, help="steps between looks at dev")
    prepare(settle(made.parse_args()))


if __name__ == "__main__":
    main()
