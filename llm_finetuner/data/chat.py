"""Conversations -> token ids and which are learned, by the tokenizer's own (sandboxed) chat template.

The assistant's turns are found by rendering prefixes of the conversation. Where a template writes history
otherwise than a fresh turn (it drops earlier reasoning, say), every assistant turn becomes an example of its
own, written as the model will meet it. A tokenizer without a template gets PLAIN_TEMPLATE.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from llm_finetuner.errors import DataError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' and eos_token else '' }}{% endfor %}"
    "{{ '\\n\\n### Assistant:\\n' if add_generation_prompt else '' }}"
)
Turns = list[dict[str, str]]
Example = tuple[list[int], list[bool]]  # token ids, and whether each one is learned
Span = tuple[int, int]  # characters from, to


class Rendered(NamedTuple):
    """A conversation as text, the spans that are learned, and whether an EOS has to be added."""

    text: str
    spans: list[Span]
    add_eos: bool


def template(turns: Turns, tokenizer: Any, ask: bool = False) -> str:
    """The turns as text; `ask` adds an assistant's header. Raises DataError if the template fails."""
    chosen = None if tokenizer.chat_template else PLAIN_TEMPLATE
    return _guarded(
        lambda: tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=ask, chat_template=chosen
        )
    )


def encode(turns: Turns, tokenizer: Any, loss_on: str) -> list[Example]:
    """The examples of one conversation, in order. Raises DataError if the template fails or hides turns."""
    if loss_on == "all":
        text = template(turns, tokenizer)
        return [_tokens(Rendered(text, [(0, len(text))], not _ends_in_eos(text, tokenizer)), tokenizer)]
    whole = template(turns, tokenizer)
    said = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    spans = [_span(whole, turns, i, tokenizer) for i in said]
    if all(spans):
        return [_tokens(_trimmed(whole, spans, tokenizer), tokenizer)]
    if re.search(r"\{%-?\s*generation\s*-?%\}", str(tokenizer.chat_template)):
        return [_marked(turns, tokenizer)]
    alone = [
        (text, _span(text, turns, i, tokenizer))
        for i in said
        for text in [template(turns[: i + 1], tokenizer)]
    ]
    if not all(span for _, span in alone):
        raise DataError(
            "the tokenizer's chat template does not show where the assistant's turns begin and end",
            "learn the whole conversation: loss_on='all'",
        )
    return [_tokens(_trimmed(text, [span], tokenizer), tokenizer) for text, span in alone]


def _guarded(render: Callable[[], Any]) -> Any:
    import jinja2

    try:
        return render()
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(
            f"the tokenizer's chat template does not take this conversation: {error}",
            "check the order of the roles (many templates want user, assistant, user, ...)",
        ) from error


def _span(whole: str, turns: Turns, index: int, tokenizer: Any) -> Span | None:
    """Where turn `index` stands in `whole`, or None if the prefixes do not fit."""
    if index == 0:  # no template renders an empty conversation
        start = whole.find(turns[0]["content"])
        before = whole[: max(start, 0)]
    else:
        try:
            before = template(turns[:index], tokenizer, ask=True)
        except DataError:
            return None
    after = template(turns[: index + 1], tokenizer)
    fits = whole.startswith(before) and whole.startswith(after) and len(before) < len(after)
    return (len(before), len(after)) if fits else None


def _ends_in_eos(text: str, tokenizer: Any) -> bool:
    return bool(tokenizer.eos_token) and text.rstrip().endswith(tokenizer.eos_token)


def _trimmed(text: str, spans: list[Span], tokenizer: Any) -> Rendered:
    """Spans end with their EOS: generation stops there, a line break that the template adds is no lesson."""
    cut = []
    for start, end in spans:
        said = text[start:end]
        cut.append((start, start + len(said.rstrip()) if _ends_in_eos(said, tokenizer) else end))
    last = bool(cut) and not text[cut[-1][1] :].strip()  # the assistant has the last word
    return Rendered(text, cut, last and not _ends_in_eos(text, tokenizer))


def _tokens(rendered: Rendered, tokenizer: Any) -> Example:
    ids: list[int] = []
    counted: list[bool] = []
    if tokenizer.is_fast:
        # At once, as the ecosystem does; a token that reaches into a span is learned.
        coded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = list(coded["input_ids"])
        spans, at = rendered.spans, 0
        for first, last in coded["offset_mapping"]:
            while at < len(spans) and spans[at][1] <= first:
                at += 1
            counted.append(at < len(spans) and spans[at][0] < last)
    else:
        edges = [0, *(edge for span in rendered.spans for edge in span), len(rendered.text)]
        for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
            piece = tokenizer(rendered.text[first:last], add_special_tokens=False, verbose=False)["input_ids"]
            ids += piece
            counted += [number % 2 == 1] * len(piece)
    if rendered.add_eos and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        counted.append(True)
    return ids, counted


def _marked(turns: Turns, tokenizer: Any) -> Example:
    """By the template's own {% generation %} marks."""
    coded = _guarded(
        lambda: tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    )
    ids, counted = list(coded["input_ids"]), [bool(flag) for flag in coded["assistant_masks"]]
    eos = tokenizer.eos_token_id
    if eos is not None and counted and counted[-1] and ids[-1] != eos:
        ids.append(eos)
        counted.append(True)
    return ids, counted
