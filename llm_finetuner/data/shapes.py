"""What the columns of a dataset mean, and the single place where a row becomes text.

    chat               messages | conversations: a list of {role, content} or {from, value}
    prompt_completion  prompt + completion | response                       verbatim
    instruction        instruction [+ input] + output | response            "### Instruction: ..." template
    question_answer    [context +] question + answer | answers              "Question: ...\\nAnswer:" template
    text               text | content | document | sentence, or the only column that holds text
    columns            two or more columns named by the user: the last one is learned from the others

Kinds are tried in this order. Column names are compared without regard to case.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llm_finetuner.errors import DataError

SAMPLE = 100  # rows from which a shape is recognised
CHAT_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("text", "content", "document", "sentence")
# kind, optional column, needed columns with their synonyms (the last one is learned)
PAIRS = (
    ("prompt_completion", "", ("prompt",), ("completion", "response")),
    ("instruction", "input", ("instruction",), ("output", "response")),
    ("question_answer", "context", ("question",), ("answer", "answers")),
)
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}  # ShareGPT's names and kin
RECOGNISED = (
    "recognised are: messages (chat) | prompt + completion | instruction [+ input] + "
    "output | question + answer | text; or name the columns, "
    "the one to learn last: text_columns=[...] / --text-columns a,b"
)


@dataclass(frozen=True)
class Shape:
    """What kind of rows these are, and which columns are read: the one that is learned stands last."""

    kind: str
    columns: tuple[str, ...]


def recognise(
    columns: Iterable[str], sample_rows: Sequence[dict], text_columns: Sequence[str] | str | None = None
) -> Shape:
    """The shape of rows with these columns; `text_columns` (names, the one to learn last) goes first.

    A column counts only where at least one of `sample_rows` holds text (or a chat) there.
    Raises DataError if nothing is recognised or a named column does not exist.
    """
    columns = list(columns)
    if text_columns:
        return _named(columns, sample_rows, text_columns)
    shape = _by_name(columns, sample_rows)
    if shape is None:
        found = [c for c in columns if any(_is_text(row.get(c)) for row in sample_rows)]
        if len(found) != 1:
            listed = ", ".join(columns) or "none"
            raise DataError(f"no known shape among the columns found: {listed}", RECOGNISED)
        shape = Shape("text", (found[0],))
    return shape


def _by_name(columns: list[str], rows: Sequence[dict]) -> Shape | None:
    actual = {column.lower().strip(): column for column in reversed(columns)}

    def find(names: Iterable[str], fits) -> str | None:
        found = (actual[name] for name in names if name in actual)
        return next((c for c in found if any(fits(row.get(c)) for row in rows)), None)

    if chat := find(CHAT_COLUMNS, lambda value: not _chat_fault(value)):
        return Shape("chat", (chat,))
    for kind, extra, asked, learned in PAIRS:
        first, last = find(asked, _is_text), find(learned, lambda value: _is_text(_answer(value)))
        if first and last:
            more = find((extra,), _is_text)
            # instruction, input: in the order in which they are written; context stands before its question
            middle = {"instruction": (first, more), "question_answer": (more, first)}.get(kind, (first,))
            return Shape(kind, (*(c for c in middle if c), last))
    text = find(TEXT_COLUMNS, _is_text)
    return Shape("text", (text,)) if text else None


def _named(columns: list[str], rows: Sequence[dict], wanted: Sequence[str] | str) -> Shape:
    wanted = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    actual = {column.lower().strip(): column for column in reversed(columns)}
    chosen = []
    for name in wanted:
        column = actual.get(name.strip().lower())
        if column is None:
            near = difflib.get_close_matches(name.strip().lower(), actual, 1)
            guess = f"; did you mean {actual[near[0]]!r}?" if near else ""
            raise DataError(f"there is no column {name!r}{guess}", f"columns found: {', '.join(columns)}")
        chosen.append(column)
    if len(chosen) == 1:
        is_chat = any(not _chat_fault(row.get(chosen[0])) for row in rows)
        return Shape("chat" if is_chat else "text", tuple(chosen))
    # The columns of a known shape keep its template: what `prepare` returned may be handed in again.
    known = _by_name(chosen, rows)
    return known if known and set(known.columns) == set(chosen) else Shape("columns", tuple(chosen))


def describe(shape: Shape) -> str:
    """One plain sentence for the user on how rows are read."""
    *given, last = shape.columns
    asked = " and ".join(f"'{c}'" for c in given)
    return {
        "chat": f"chat: each '{last}' is a conversation, and the assistant's turns are learned",
        "prompt_completion": f"prompt and completion: {asked} is given, '{last}' is learned",
        "instruction": f"instruction: {asked} in an instruction template, '{last}' is learned",
        "question_answer": f"question and answer: {asked} in a question template, '{last}' is learned",
        "text": f"plain text: all of '{last}' is learned",
        "columns": f"columns you named: {asked}, each on its own line, then '{last}', which is learned",
    }[shape.kind]


def problem(row: dict, shape: Shape) -> str:
    """Why this row cannot be used in this shape, or ""."""
    *given, last = shape.columns
    if shape.kind == "chat":
        fault = _chat_fault(row.get(last))
        return fault and f"column '{last}': {fault}"
    optional = {"instruction": given[1:], "question_answer": given[:-1]}.get(shape.kind, [])
    for column in shape.columns:
        value = _answer(row.get(column)) if column == last else row.get(column)
        if value is None and column not in optional:
            return f"column '{column}' is " + ("null" if column in row else "missing")
        if value is not None and not isinstance(value, str):
            return f"column '{column}' holds {type(value).__name__}, not text"
        if column not in optional and not value.strip():
            return f"column '{column}' is blank"
    return ""


def to_parts(row: dict, shape: Shape) -> list[tuple[str, bool]]:
    """The row as [(text, counted)], in order; chat needs a tokenizer's template and is rendered in `chat`."""
    *given, last = shape.columns
    answer = _answer(row[last])
    asked = [row.get(column) or "" for column in given]
    if shape.kind == "text":
        return [(answer, True)]
    if shape.kind == "prompt_completion":
        return [("".join(asked), False), (answer, True)]
    if shape.kind == "columns":
        return [("".join(f"{text}\n" for text in asked), False), (answer, True)]
    if shape.kind == "instruction":
        extra = f"### Input:\n{asked[1]}\n\n" if len(asked) > 1 and asked[1].strip() else ""
        return [(f"### Instruction:\n{asked[0]}\n\n{extra}### Response:\n", False), (answer, True)]
    if shape.kind == "question_answer":
        context = f"Context: {asked[0]}\n\n" if len(asked) > 1 and asked[0].strip() else ""
        # The blank goes with the answer: vocabularies have " 72" as one token, and a prompt that ends in a
        # blank is text that no pretrained model has met.
        return [(f"{context}Question: {asked[-1]}\nAnswer:", False), (" " + answer, True)]
    raise ValueError(f"rows of kind {shape.kind!r} are not made of parts")


def references(row: dict, shape: Shape) -> tuple[str, str | None]:
    """What to generate from and what to compare with: (prompt, reference); plain text has no reference.

    For chat this is a plain rendering without any tokenizer; `text.prompts` uses the tokenizer's own.
    """
    if shape.kind == "text":
        return to_parts(row, shape)[0][0], None
    if shape.kind == "chat":
        turns, reference = last_turn(messages(row, shape))
        written = "".join(f"### {turn['role'].capitalize()}:\n{turn['content']}\n\n" for turn in turns)
        return (written if reference is None else written + "### Assistant:\n"), reference
    (prompt, _), (answer, _) = to_parts(row, shape)
    return prompt, answer.strip()


def messages(row: dict, shape: Shape) -> list[dict[str, str]]:
    """The conversation of a chat row as [{"role", "content"}], ShareGPT's names mapped to today's."""
    turns = []
    for turn in _decoded(row[shape.columns[-1]]):
        role, content = _role_and_content(turn)
        turns.append({"role": ROLES.get(role.lower(), role.lower()), "content": content})
    return turns


def last_turn(turns: list[dict[str, str]]) -> tuple[list[dict[str, str]], str | None]:
    """(what stands before the assistant's last turn, its text); (all turns, None) if it never speaks."""
    for index in reversed(range(len(turns))):
        if turns[index]["role"] == "assistant":
            return turns[:index], turns[index]["content"]
    return turns, None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _answer(value: object) -> object:
    """SQuAD keeps its answers as {"text": [...]} and others as a list: the first one is learned."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):
        value = value[0] if value else None
    return value


def _decoded(value: object) -> object:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:  # a chat in a CSV, or in a column that Arrow could not type
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _role_and_content(turn: dict) -> tuple[object, object]:
    if turn.get("role") is not None or turn.get("content") is not None:
        return turn.get("role"), turn.get("content")
    return turn.get("from"), turn.get("value")


def _chat_fault(value: object) -> str:
    value = _decoded(value)
    if value is None:
        return "no conversation (missing or null)"
    if not isinstance(value, list) or not value:
        return "not a conversation, which is a list of {role, content}"
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            return f"message {number} is no object with role and content"
        role, content = _role_and_content(turn)
        if not _is_text(role):
            return f"message {number} has no role"
        if not isinstance(content, str):
            return f"message {number} has no text as its content"
    return "" if any(_role_and_content(turn)[1].strip() for turn in value) else "all messages are blank"
