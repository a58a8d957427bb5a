"""Which evaluation picks the most accurate weights of a classifier: the least loss, the most accuracy, or the last one.

    python benchmarks/kept_weights.py [--rows 600 2500] [--steps 600] [--seeds 6]

Sentences of opinion words, turned round by "not"; a tenth of the labels are drawn by chance, so that a long training
grows sure of what it cannot know. A BERT of 2 blocks and width 32 learns from few or many of them and is evaluated ten
times on 2,000 others. Of these, 50 to 800 drawn at random choose an evaluation (300 draws a seed), the rest tell how
accurate its weights are. Printed: mean accuracy by what chose. Ten minutes on one core that is free.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from llm_finetuner.benchmark.quality import evaluate  # noqa: E402
from llm_finetuner.finetuner import LLMFineTuner  # noqa: E402
from llm_finetuner.tasks.classification import Classification  # noqa: E402

GOOD, BAD = "good great nice".split(), "bad awful poor".split()
OTHERS = "the a is was very film cast plot".split()
NAMES = ["bad", "fine", "good"]
NOISE, POOL, DRAWS = 0.1, 2000, 300
CHOOSERS = {
    "loss": lambda loss, right: loss.argmin(),
    "accuracy": lambda loss, right: right.argmax(),
    "accuracy, then loss": lambda loss, right: np.lexsort((loss, -right))[0],
    "the last": lambda loss, right: len(loss) - 1,
}


def sentences(count: int, seed: int) -> datasets.Dataset:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.choices([*GOOD, *BAD, *OTHERS, *OTHERS], k=draw.randint(4, 10))
        tone = sum((word in GOOD) - (word in BAD) for word in words)
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words)), "not")
            tone = -tone
        label = NAMES[1 + (tone > 0) - (tone < 0)]
        rows.append(
            {"text": " ".join(words), "label": draw.choice(NAMES) if draw.random() < NOISE else label}
        )
    return datasets.Dataset.from_list(rows)


def model(seed: int) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHERS, "not"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=len(NAMES), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return BertForSequenceClassification(config), fast


def train(rows: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss, and right or not, of every example of the pool at each evaluation: [10, POOL] and [10, POOL]."""
    network, tokenizer = model(seed)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tuner = LLMFineTuner(
            network, folder, task="classification", tokenizer=tokenizer, seed=seed, device="cpu"
        )
        tuner.load_model(method="full")
        learned, pool = (
            tuner.prepare_dataset(sentences(*how))[0] for how in ((rows, 1000 + seed), (POOL, 99))
        )

        def keep(kind: str, record: dict) -> None:
            if kind == "evaluation":
                found.append(evaluate(Classification(), tuner.model, pool, batch_size=250))

        tuner.train(
            learned, steps=steps, batch_size=32, gradient_accumulation_steps=1, learning_rate=3e-3, warmup=0.05,
            eval_dataset=pool.select(range(64)), save_every=0, keep_best=False, precision="fp32", on_event=keep,
        )  # fmt: skip
    return np.array([one.nll for one in found]), np.array([one.right for one in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[600, 2500], help="to learn from")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    print(f"| rows | rows that choose | {' | '.join(CHOOSERS)} |\n|---|---|{'---|' * len(CHOOSERS)}")
    for rows in args.rows:
        runs = [train(rows, args.steps, seed) for seed in range(args.seeds)]
        for choosing in (50, 100, 200, 400, 800):
            draw, told = np.random.default_rng(0), {name: [] for name in CHOOSERS}
            for nll, right in runs:
                for _ in range(DRAWS):
                    order = draw.permutation(POOL)
                    chosen, others = order[:choosing], order[choosing:]
                    for name, choose in CHOOSERS.items():
                        best = choose(nll[:, chosen].mean(1), right[:, chosen].mean(1))
                        told[name].append(right[best, others].mean())
            cells = " | ".join(f"{100 * np.mean(values):.1f}" for values in told.values())
            print(f"| {rows} | {choosing} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
