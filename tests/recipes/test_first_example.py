"""The first example of a run: its text, and marks that say what is learnt."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxrlhf.data import arrays, chat, formats, tokenizer
from jaxrlhf.data.rows import Rows
from jaxrlhf.recipes import first_example


@pytest.fixture
def printed(monkeypatch):
    """What is printed on a terminal without colour."""
    out = io.StringIO()
    console = Console(file=out, width=40, no_color=True)
    monkeypatch.setattr(first_example, "console", console)
    return lambda: out.getvalue()


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_tokenizer(["the cat sat"], vocab_size=300)


MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello [bold]you"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "a very long answer that no narrow terminal cuts"},
]


def test_learnt_words_stand_in_brackets(bpe, printed):
    rows = formats.examples(Rows([{"messages": MESSAGES}]))
    made = arrays.padded(chat.encode_rows(bpe, rows), length=200, pad_id=0, over_long="error")
    first_example.of_texts(bpe, made.columns)
    text = printed()
    assert "what is learnt" in text
    assert "\n\nHuman: hi\n\nAssistant:⟦ hello [bold]you<eos>⟧" in text
    assert "⟦ a very long answer that no narrow terminal cuts<eos>⟧" in text
    assert "<pad>" not in text


def test_marks_are_in_colour_too(bpe):
    tokens = np.array(bpe("the cat sat")["input_ids"])
    marked = np.arange(len(tokens)) >= 1
    shown = first_example.rendered(bpe, tokens, np.ones_like(marked), marked)
    assert shown.plain == f"{bpe.decode(tokens[:1])}⟦{bpe.decode(tokens[1:])}⟧"
    assert [(span.style, shown.plain[span.start : span.end]) for span in shown.spans] == [
        (first_example.MARKED, f"⟦{bpe.decode(tokens[1:])}⟧")
    ]


def test_of_a_pair_the_place_where_the_score_is_read(bpe, printed):
    rows = formats.preferences(Rows([{"prompt": "a", "chosen": " b", "rejected": " c d"}]))
    made = arrays.pairs(chat.encode_rows(bpe, rows), length=20, pad_id=0, over_long="error")
    first_example.of_pairs(bpe, made.columns, pooling="last")
    assert "a b⟦<eos>⟧\n" in printed() and "a c d⟦<eos>⟧\n" in printed()
    first_example.of_pairs(bpe, made.columns, pooling="mean")
    assert "⟦a b<eos>⟧\n" in printed()


def test_of_prompts_and_of_long_rows(bpe, printed, monkeypatch):
    rows = formats.prompts(Rows([{"prompt": "the cat"}]))
    made = arrays.prompts(chat.encode_rows(bpe, rows), length=20, pad_id=0)
    first_example.of_prompts(bpe, made.columns)
    assert "\nthe cat\n" in printed()
    monkeypatch.setattr(first_example, "MOST", 3)
    tokens = np.array(bpe("xyzxyz")["input_ids"])
    every = np.ones(len(tokens), bool)
    first_example.show(bpe, tokens, every, ~every, title="x")
    assert f"xyz ... and {len(tokens) - 3} tokens more" in printed()


def test_a_terminal_that_cannot_show_it_stops_nothing(bpe, monkeypatch):
    class Ascii(io.TextIOWrapper):
        pass

    console = Console(file=Ascii(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(first_example, "console", console)
    tokens = np.array(bpe("äö")["input_ids"])
    every = np.ones(len(tokens), bool)
    first_example.show(bpe, tokens, every, every, title="First example; ⟦marked⟧")
