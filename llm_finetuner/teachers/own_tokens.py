"""A teacher with another tokenizer, where an answer belongs to a whole text: each of the two reads the text itself.

What it says stands where the student's answers do, one a text, so all terms on answers and on what labels are read off
work. What belongs to tokens has no counterpart, and is refused.
"""

from collections.abc import Sequence
from typing import Any

from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.layer_maps import POOLED, POOLED_NAME
from llm_finetuner.output import Output, Want, moved
from llm_finetuner.scheme import Term
from llm_finetuner.teachers.identity import reading_digest
from llm_finetuner.teachers.live import Live
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.terms import kind_of

NO_LIMIT = 10**9  # what a tokenizer that knows no longest text gives is more


class OwnTokens(Provider):
    """`live` is given the texts of a batch in its own tokens, as many as it can read."""

    def __init__(self, live: Live, tokenizer: Any, name: str):
        self.live, self.tokenizer, self.name = live, tokenizer, name
        self.model, self.parameters = live.model, live.parameters
        self.width, self.depth = live.width, live.depth
        known = [n for n in (live.positions, tokenizer.model_max_length) if n and n < NO_LIMIT]
        self.limit = min(known, default=None)
        self.noted = {"teacher_tokenizer": reading_digest(tokenizer), "teacher_tokens": self.limit}

    def prepare(self, want: Want, terms: Sequence[Term]) -> None:
        if want.attention or want.states or want.embeddings or set(want.layers) - {POOLED}:
            named = (t.objective for t in terms if kind_of(t) != "logits" and t.layers != POOLED_NAME)
            raise RecipeError(
                f"{next(named, 'keep_layers')} is about tokens, and {self.name} cuts the texts into others than the "
                "student",
                f"compare answers, or with layers: {POOLED_NAME} what labels are read off; or take a teacher with "
                "the student's tokenizer",
            )
        self.live.prepare(want, terms)

    def __call__(self, batch: dict[str, Any], want: Want) -> Output:
        anew = self.live.task.read_anew(batch, self.tokenizer, self.limit)
        highest, size = int(anew["input_ids"].max()), self.model.get_input_embeddings().num_embeddings
        if highest >= size:
            raise ModelError(
                f"the tokenizer of {self.name} gives token id {highest}, its model knows ids 0 to {size - 1}",
                "give the teacher with the tokenizer that it was trained with",
            )
        return self.live(moved(anew, batch["input_ids"].device), want)

    def check(self, rows: Any) -> None:
        self.live.task.check_texts(rows)
