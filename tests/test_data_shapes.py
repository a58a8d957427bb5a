"""What columns mean, and the text that rows become."""

import pytest

from llm_finetuner.data import shapes
from llm_finetuner.data.shapes import Shape
from llm_finetuner.errors import DataError

# columns of one row, the kind and columns recognised
SHAPES = [
    ({"Prompt": "p", "response": "r", "text": "t"}, "prompt_completion", ("Prompt", "response")),
    ({"instruction": "i", "input": "", "output": "o"}, "instruction", ("instruction", "output")),
    ({"output": "o", "input": "x", "instruction": "i"}, "instruction", ("instruction", "input", "output")),
    ({"id": "1", "QUESTION": "q", "Answer": "a"}, "question_answer", ("QUESTION", "Answer")),
    (
        {"context": "c", "question": "q", "answers": {"text": ["a"]}},
        "question_answer",
        ("context", "question", "answers"),
    ),
    ({"messages": [{"role": "user", "content": "x"}], "text": "t"}, "chat", ("messages",)),
    ({"conversations": [{"from": "human", "value": "x"}]}, "chat", ("conversations",)),
    ({"messages": '[{"role": "user", "content": "x"}]'}, "chat", ("messages",)),
    ({"messages": 3, "sentence": "s", "title": "t"}, "text", ("sentence",)),
    ({"review": "r", "stars": 3}, "text", ("review",)),
]


@pytest.mark.parametrize(("row", "kind", "columns"), SHAPES, ids=[f"{s[1]}-{s[2][0]}" for s in SHAPES])
def test_recognise(row, kind, columns):
    shape = shapes.recognise(row, [row])
    assert shape == Shape(kind, columns)
    assert shapes.problem(row, shape) == ""
    assert all(column in shapes.describe(shape) for column in columns)
    assert shapes.recognise(row, [row], list(columns)) == shape  # what was returned may be handed in again


def test_recognise_named_and_not_recognised():
    row = {"title": "t", "body": "b", "chat": [{"role": "user", "content": "x"}]}
    assert shapes.recognise(row, [row], ["body"]) == Shape("text", ("body",))
    assert shapes.recognise(row, [row], ["chat"]) == Shape("chat", ("chat",))
    pair = shapes.recognise(row, [row], "Title,body")
    assert pair == Shape("columns", ("title", "body"))
    assert shapes.to_parts(row, pair) == [("t\n", False), ("b", True)]
    with pytest.raises(DataError, match="did you mean 'body'"):
        shapes.recognise(row, [row], ["bodi"])
    with pytest.raises(DataError) as caught:
        shapes.recognise(row, [row])
    assert "title, body, chat" in caught.value.what
    assert "text_columns=[...] / --text-columns a,b" in caught.value.hint


def test_rows_become_text_in_one_place():
    parts, references = shapes.to_parts, shapes.references
    assert parts({"text": " a "}, Shape("text", ("text",))) == [(" a ", True)]
    row = {"prompt": "2+2=", "completion": "4"}
    assert parts(row, Shape("prompt_completion", ("prompt", "completion"))) == [("2+2=", False), ("4", True)]
    row = {"instruction": "Sum.", "input": "2 2", "output": "4"}
    full = "### Instruction:\nSum.\n\n### Input:\n2 2\n\n### Response:\n"
    assert parts(row, Shape("instruction", ("instruction", "input", "output"))) == [
        (full, False),
        ("4", True),
    ]
    short = "### Instruction:\nSum.\n\n### Response:\n"
    for empty in ("", None):
        row["input"] = empty
        assert parts(row, Shape("instruction", ("instruction", "input", "output")))[0] == (short, False)
    row = {"question": "2+2?", "answer": "4"}
    asked = Shape("question_answer", ("question", "answer"))
    assert parts(row, asked) == [("Question: 2+2?\nAnswer:", False), (" 4", True)]
    assert references(row, asked) == ("Question: 2+2?\nAnswer:", "4")
    assert references({"text": "a"}, Shape("text", ("text",))) == ("a", None)
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "ho"},
        {"from": "human", "value": "more"},
    ]
    chat = Shape("chat", ("conversations",))
    assert references({"conversations": turns}, chat) == ("### User:\nhi\n\n### Assistant:\n", "ho")


def test_problems_name_the_column():
    asked = Shape("question_answer", ("question", "answers"))
    assert shapes.problem({"question": "q", "answers": []}, asked) == "column 'answers' is null"
    assert shapes.problem({"question": 3, "answers": "a"}, asked) == "column 'question' holds int, not text"
    chat = Shape("chat", ("messages",))
    faults = [
        (None, "no conversation"),
        ([], "not a conversation"),
        ("[broken", "not a conversation"),
        (["hi"], "message 1 is no object"),
        ([{"role": "user", "content": "x"}, {"content": "y"}], "message 2 has no role"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has no text"),
        ([{"role": "user", "content": " "}], "all messages are blank"),
    ]
    for value, why in faults:
        assert why in shapes.problem({"messages": value}, chat)
