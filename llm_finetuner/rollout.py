"""On-policy distillation: the student writes a share of the examples that it then hears the teacher on.

GKD (Agarwal et al. 2024, arXiv 2306.13649) with DistiLLM's buffer of samples (arXiv 2402.03898).
"""

import random
from typing import Any

from torch import nn

from llm_finetuner.benchmark.text import continuations
from llm_finetuner.data.examples import IGNORED
from llm_finetuner.errors import ModelError
from llm_finetuner.scheme import OnPolicy

REPLAYED = 0.5  # of the student's examples, once the buffer holds some


def prompt_length(example: dict) -> int:
    """Tokens before the first that counts; where all of a row counts, its first half."""
    labels = example["labels"]
    first = next((i for i, label in enumerate(labels) if i > 0 and label != IGNORED), len(labels))
    return first if first > 1 else max(1, len(labels) // 2)


def room_for(max_new_tokens: int, max_length: int) -> tuple[int, int]:
    """Tokens of a prompt and new tokens that fit together: what does not fit at all gets half of max_length."""
    new = max_new_tokens if max_new_tokens < max_length else max_length // 2
    return max_length - new, new


class Rollout:
    """Replaces examples of a step. What it draws depends on the seed, the step and the process only.

    Each process keeps a buffer of its own; a run that is resumed begins with the first one's in all of them.
    """

    def __init__(self, plan: OnPolicy, tokenizer: Any, seed: int, max_length: int):
        if tokenizer is None:
            raise ModelError(
                "the student writes its own examples and needs its tokenizer", "give tokenizer=..."
            )
        self.plan, self.tokenizer, self.seed = plan, tokenizer, seed
        self.room, self.max_new_tokens = room_for(plan.max_new_tokens, max_length)
        self.buffer: list[dict] = []

    def __call__(
        self, student: nn.Module, window: list[list[dict]], step: int, rank: int = 0
    ) -> list[list[dict]]:
        """The examples of an optimizer step, with some of them written anew: all their prompts in one generation."""
        draw = random.Random(f"{self.seed} {step} {rank}")
        chosen: list[tuple[int, int]] = []
        window = [list(examples) for examples in window]
        for i, examples in enumerate(window):
            for j in range(len(examples)):
                if draw.random() >= self.plan.share:
                    continue
                if self.buffer and draw.random() < REPLAYED:
                    examples[j] = draw.choice(self.buffer)
                else:
                    chosen.append((i, j))
        written = self._write(student, [window[i][j] for i, j in chosen], draw.getrandbits(32))
        for (i, j), example in zip(chosen, written, strict=True):
            window[i][j] = example
        if self.plan.replay:
            self.buffer = (self.buffer + written)[-self.plan.replay :]
        return window

    def _write(self, student: nn.Module, examples: list[dict], seed: int) -> list[dict]:
        if not examples:
            return []
        prompts = [example["input_ids"][: prompt_length(example)][-self.room :] for example in examples]
        said = continuations(
            student, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, batch_size=len(prompts),
            do_sample=True, temperature=self.plan.sampling_temperature, seed=seed,
        )  # fmt: skip
        return [self._example(p, tokens, ended) for p, (tokens, ended) in zip(prompts, said, strict=True)]

    def _example(self, prompt: list[int], tokens: list[int], ended: bool) -> dict:
        """The end token counts where the student ended the text itself, so that it learns when to."""
        new = tokens + [self.tokenizer.eos_token_id] * ended
        new = new or [self.tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + new
        return {
            "input_ids": prompt + new,
            "attention_mask": [1] * len(labels),
            "labels": labels,
            "sampled": True,
        }

    def state(self) -> dict[str, Any]:
        return {"buffer": self.buffer}

    def load_state(self, state: dict[str, Any]) -> None:
        self.buffer = state["buffer"]
