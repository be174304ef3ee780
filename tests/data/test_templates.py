"""Templates of the common families: what is rendered, what is learnt, and what is refused."""

import chat_templates
import numpy as np
import pytest
from chat_templates import CHATML, FAMILIES, TURNS, marked

from jaxrlhf.data import chat, formats, tokenizer
from jaxrlhf.data.formats import Example, Preference, Prompt
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import DataError

pytest.importorskip("jinja2")

TEXTS = ["What is up? The sky. And down? The sea. Be brief."] * 3


def words_for(family):
    """A tokenizer with the family's template and control tokens, that adds bos where it has one."""
    tok = tokenizer.train_tokenizer(TEXTS, vocab_size=320, special_tokens=family.special)
    tok.chat_template = family.template
    if family.bos:
        tok.bos_token = family.bos
        from tokenizers.processors import TemplateProcessing

        special = [(family.bos, tok.bos_token_id)]
        tok.backend_tokenizer.post_processor = TemplateProcessing(f"{family.bos} $A", None, special)
    if family.eos:
        tok.eos_token = family.eos
    return tok


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


def learnt(tok, encoded):
    mask = encoded.loss_mask.astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return tuple(tok.decode(encoded.tokens[a:b]) for a, b in edges.reshape(-1, 2))


def test_the_golden_conversation(family):
    tok = words_for(family)
    encoded = chat.encode_example(tok, Example([], family.messages))
    text = tok.decode(encoded.tokens)
    assert text == family.rendered.removesuffix("\n")  # what closes the last answer is the end
    assert learnt(tok, encoded) == family.learnt
    prompt = chat.encode_prompt(tok, family.messages[:-1])
    assert tok.decode(prompt) == family.prompt
    only_last = chat.encode_example(tok, Example(family.messages[:-1], family.messages[-1:]))
    assert np.array_equal(only_last.tokens, encoded.tokens)
    assert learnt(tok, only_last) == family.learnt[-1:]
    assert np.array_equal(only_last.tokens[: len(prompt)], prompt)
    assert only_last.loss_mask[len(prompt) :].all()
    other = [{"role": "assistant", "content": "The sky."}]
    pair = chat.encode_preference(
        tok, Preference(family.messages[:-1], family.messages[-1:], other)
    )
    assert np.array_equal(pair[0], prompt)
    assert tok.decode(pair[1]) == family.learnt[-1] and tok.decode(pair[2]) == family.learnt[0]


def test_the_template_is_applied_and_tokenised_once(family):
    """The same ids as the library's own, but for what comes after the last answer."""
    tok = words_for(family)
    whole = tok.apply_chat_template(family.messages, return_dict=False)
    tokens = chat.encode_example(tok, Example([], family.messages)).tokens.tolist()
    assert tokens == whole[: len(tokens)]
    assert tok.decode(whole[len(tokens) :]) == ("\n" if family.rendered.endswith("\n") else "")


def test_bos_never_stands_twice(family):
    """The template writes it, and this tokenizer adds it too: one is left."""
    tok = words_for(family)
    for tokens in (
        chat.encode_example(tok, Example([], family.messages)).tokens,
        chat.encode_prompt(tok, family.messages[:-1]),
        chat.encode_preference(tok, Preference(TURNS[:1], TURNS[1:2], TURNS[3:]))[0],
    ):
        assert tokens.tolist().count(tok.bos_token_id) == (1 if family.bos else 0)
    assert chat.adds_bos(tok) == bool(family.bos)
    assert chat.encode_prompt(tok, "What").tolist().count(tok.bos_token_id) == bool(family.bos)


def test_an_answer_ends_with_what_closes_a_turn(family):
    tok = words_for(family)
    closer = family.learnt[0].removeprefix(" ").removeprefix("The sky.")
    assert chat.stop_ids(tok)[-1] == tok.convert_tokens_to_ids(closer)
    assert tok.eos_token_id in chat.stop_ids(tok)


def test_where_nothing_can_be_asked_the_end_token_ends_an_answer():
    tok = words_for(CHATML._replace(template="{{ raise_exception('never') }}"))
    assert chat.stop_ids(tok) == (tok.eos_token_id,)


def test_how_answers_are_found_can_be_asked():
    kinds = {name: chat.template_kind(words_for(family)) for name, family in FAMILIES.items()}
    assert {name for name, kind in kinds.items() if kind == "yes, with marked answers"} == {
        "chatml, marked",
        "chatml, content marked",
    }
    assert chat.template_kind(tokenizer.train_tokenizer(TEXTS, vocab_size=300)).startswith("none")


# Templates that rewrite what came before.

REWRITING = CHATML._replace(  # reasoning is dropped from all turns but the last
    template=(
        "{% for message in messages %}"
        "{% set text = message.content if loop.last else message.content.split('</think>')[-1] %}"
        "{{ '<|im_start|>' + message.role + '\n' + text + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
)
THOUGHT = [
    TURNS[0],
    {"role": "assistant", "content": "<think>Hm</think>The sky."},
    TURNS[2],
    {"role": "assistant", "content": "<think>Oh</think>The sea."},
]


def test_where_turns_are_rewritten_the_last_answer_can_be_learnt():
    tok = words_for(REWRITING)
    encoded = chat.encode_example(tok, Example(THOUGHT[:-1], THOUGHT[-1:]))
    assert learnt(tok, encoded) == ("<think>Oh</think>The sea.<|im_end|>",)
    assert "Hm" not in tok.decode(encoded.tokens)
    prompt = chat.encode_prompt(tok, Prompt(THOUGHT[:-1]))
    assert np.array_equal(encoded.tokens[: len(prompt)], prompt)
    pair = chat.encode_preference(tok, Preference(THOUGHT[:-1], THOUGHT[-1:], TURNS[-1:]))
    assert np.array_equal(pair[0], prompt)


def test_where_turns_are_rewritten_learning_them_all_is_refused_by_row():
    tok = words_for(REWRITING)
    rows = formats.examples(Rows([{"messages": TURNS}, {"messages": THOUGHT}], name="f"))
    with pytest.raises(DataError, match=r"f row 2: turns rewritten by .*'.*<think>Hm.* became"):
        chat.encode_rows(tok, rows)
    kept = chat.encode_rows(tok, rows, on_bad_row="skip")
    assert kept.index == [0]
    assert kept.skipped.counts == {"turns rewritten by the chat template": 1}


def test_marks_let_rewritten_turns_be_learnt_where_the_prompt_stands():
    """With marks nothing has to be told apart by prefixes but the prompt itself."""
    counted = marked("{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}")
    family = CHATML._replace(template="{{ messages | length }}" + counted)
    tok = words_for(family)
    encoded = chat.encode_example(tok, Example([], family.messages))
    assert learnt(tok, encoded) == family.learnt
    with pytest.raises(DataError, match="rewritten by the chat template"):
        chat.encode_example(tok, Example(family.messages[:-1], family.messages[-1:]))


def test_the_fixture_is_not_a_test_of_itself():
    assert CHATML.rendered.count("<|im_end|>") == len(CHATML.messages)
    assert chat_templates.LLAMA3.prompt + "The sea.<|eot_id|>" == chat_templates.LLAMA3.rendered
