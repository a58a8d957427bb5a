"""Which turns of a conversation are learned, under templates of several kinds."""

import data_tokenizer
import pytest
from data_tokenizer import CHATML, TALK, WITH_BOS, built, prepared, rows_of

from llm_finetuner.data import text
from llm_finetuner.errors import DataError

# A template that writes earlier turns otherwise than the last one, as reasoning models do.
FORGETS = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{{ 'hm.' if loop.last and m['role'] == 'assistant' else '' }}{{ m['content'] + '<eos>' }}{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt else '' }}"
)
MARKED = (
    "{{ 'turns ' + (messages | length | string) }}{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<eos>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def test_chatml_counts_every_assistant_turn():
    tokenizer = data_tokenizer.build(eos="<|im_end|>", template=CHATML)
    end, line = tokenizer.eos_token_id, "\n"
    head = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    then = "\n<|im_start|>user\nhow many?<|im_end|>\n<|im_start|>assistant\n"
    expected = built(
        tokenizer,
        (head, False),
        ("the fox", True),
        (end, True),
        (then, False),
        ("seven", True),
        (end, True),
        (line, False),
    )
    assert prepared(tokenizer, {"messages": TALK}) == [expected]
    everything = prepared(tokenizer, {"messages": TALK}, loss_on="all")
    assert everything == [(expected[0], expected[0])]
    other = data_tokenizer.build(
        eos="<eos>", template=CHATML
    )  # the template never writes this EOS: it is added
    (tokens, labels), *_ = prepared(other, {"messages": TALK})
    assert tokens[-1] == labels[-1] == other.eos_token_id
    assert tokens.count(other.eos_token_id) == 1


def test_a_template_that_writes_bos_itself():
    tokenizer = data_tokenizer.build(bos="<bos>", adds_bos=True, template=WITH_BOS)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = [("[Q]hello there[A]", False), (" the fox", True), (eos, True)]
    pieces += [("[Q]how many?[A]", False), (" seven", True), (eos, True)]
    sharegpt = [{"from": "human" if t["role"] == "user" else "gpt", "value": t["content"]} for t in TALK]
    for row in ({"messages": TALK}, {"conversations": sharegpt}):
        assert prepared(tokenizer, row) == [built(tokenizer, (bos, False), *pieces)]
    with pytest.raises(DataError, match="row 2: .*only user and assistant"):
        prepared(tokenizer, {"messages": TALK}, {"messages": [{"role": "system", "content": "x"}, *TALK]})
    bad = {"messages": [{"role": "system", "content": "x"}, *TALK]}
    assert text.prepare(rows_of(bad, {"messages": TALK}), tokenizer, on_bad_row="skip").stats["skipped"] == 1


def test_a_tokenizer_without_template_gets_the_plain_one():
    tokenizer = data_tokenizer.build()
    opening = [{"role": "assistant", "content": "hello"}, *TALK[:2]]
    eos = tokenizer.eos_token
    shown = text.preview(rows_of({"messages": opening}), tokenizer)
    assert shown == [
        [
            ("### Assistant:\n", False),
            ("hello" + eos, True),
            ("\n\n### User:\nhello there\n\n### Assistant:\n", False),
            ("the fox" + eos, True),
        ]
    ]
    asked = "### User:\nhello there\n\n### Assistant:\n"
    assert text.prompts(rows_of({"messages": TALK[:2]}), tokenizer) == [(asked, "the fox")]


def test_templates_whose_prefixes_do_not_fit():
    tokenizer = data_tokenizer.build(template=FORGETS)
    shown = text.preview(rows_of({"messages": TALK}), tokenizer)
    first = [("[user]hello there<eos>[assistant]", False), ("hm.the fox<eos>", True)]
    second = ("[user]hello there<eos>[assistant]the fox<eos>[user]how many?<eos>[assistant]", False)
    assert shown == [first, [second, ("hm.seven<eos>", True)]]
    tokenizer.chat_template = MARKED
    shown = text.preview(rows_of({"messages": TALK}), tokenizer)[0]
    assert [piece for piece, counted in shown if counted] == ["the fox<eos>", "seven<eos>"]
    tokenizer.chat_template = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(DataError, match="row 1: .*does not show where") as caught:
        prepared(tokenizer, {"messages": TALK})
    assert "loss_on='all'" in caught.value.hint
    assert len(prepared(tokenizer, {"messages": TALK}, loss_on="all")) == 1
    tokenizer.chat_template = "{{ messages[0].nothing.at_all }}"
    with pytest.raises(DataError, match="row 1: .*chat template does not take"):
        prepared(tokenizer, {"messages": TALK})
