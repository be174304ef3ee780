"""Tokens and loss masks: templates applied once, prompts as exact prefixes, control tokens."""

import random

import numpy as np
import pytest
from realdata import shared_data

from jaxrlhf.data import arrays, chat, dialogue, formats, tokenizer
from jaxrlhf.data.formats import Example, Preference, Prompt, Text
from jaxrlhf.data.rows import BadRow, Rows, SkipRow
from jaxrlhf.errors import DataError

EOS = 2
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def learnt(tok, encoded):
    """The text of the learnt stretches, one string each."""
    mask = encoded.loss_mask.astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [tok.decode(encoded.tokens[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.fixture(scope="module")
def templated():
    pytest.importorskip("jinja2")
    tok = tokenizer.train_tokenizer(["hello there"], vocab_size=300)
    tok.chat_template = TEMPLATE
    return tok


@pytest.fixture(scope="module", params=["gpt2", "tinyllama_chat"])
def real(request):
    if request.param == "tinyllama_chat":
        pytest.importorskip("jinja2")
    return tokenizer.load_tokenizer(shared_data(f"tokenizers/{request.param}"))


def test_word_tokens_by_hand(words):
    """a b c d are 4 5 6 7, the end token 2."""
    assert chat.encode_text(words, "a b").tolist() == [4, 5, EOS]
    assert chat.encode_text(words, "a b", eos=False).tolist() == [4, 5]
    assert chat.encode_prompt(words, Prompt("a b")).tolist() == [4, 5]
    tokens, mask = chat.encode_example(words, Example("a b", " c d"))
    assert tokens.tolist() == [4, 5, 6, 7, EOS] and tokens.dtype == np.int32
    assert mask.tolist() == [False, False, True, True, True] and mask.dtype == bool
    pair = chat.encode_preference(words, Preference("a", " b", " c d"))
    assert [side.tolist() for side in pair] == [[4], [5, EOS], [6, 7, EOS]]


def test_words_that_would_run_together(words):
    """ "a"+"b" is the unknown word "ab", which must not swallow the prompt's last word."""
    assert chat.encode_example(words, Example("a", "b")).tokens.tolist() == [4, 5, EOS]
    # The unknown last word of the prompt and the unknown joined word have the same id.
    tokens, mask = chat.encode_example(words, Example("a zzz", "b"))
    assert tokens.tolist() == [4, 3, 5, EOS] and mask.tolist() == [False, False, True, True]


def test_default_format(bpe):
    messages = [user("hi"), bot("hello"), user("and?"), bot("bye")]
    encoded = chat.encode_example(bpe, Example([], messages))
    text = "\n\nHuman: hi\n\nAssistant: hello<eos>\n\nHuman: and?\n\nAssistant: bye<eos>"
    assert bpe.decode(encoded.tokens) == text
    assert learnt(bpe, encoded) == [" hello<eos>", " bye<eos>"]
    only_last = chat.encode_example(bpe, Example(messages[:-1], messages[-1:]))
    assert np.array_equal(only_last.tokens, encoded.tokens)
    assert learnt(bpe, only_last) == [" bye<eos>"]
    prompt = chat.encode_prompt(bpe, messages[:-1])
    assert bpe.decode(prompt) == text.removesuffix(" bye<eos>")
    # A turn after the last answer is nothing to learn from.
    more = chat.encode_example(bpe, Example([], [*messages, user("x")]))
    assert np.array_equal(more.tokens, encoded.tokens)


def test_template(templated):
    messages = [{"role": "system", "content": "s"}, user("hi"), bot("hello"), user("x"), bot("bye")]
    encoded = chat.encode_example(templated, Example([], messages))
    text = (
        "<|system|>\ns<eos>\n<|user|>\nhi<eos>\n<|assistant|>\nhello<eos>\n"
        "<|user|>\nx<eos>\n<|assistant|>\nbye<eos>"
    )
    assert templated.decode(encoded.tokens) == text
    assert learnt(templated, encoded) == ["hello<eos>", "bye<eos>"]
    assert int(np.sum(encoded.tokens == EOS)) == 5  # control tokens, not five characters each
    prompt = chat.encode_prompt(templated, messages[:-1])
    assert templated.decode(prompt) == text.removesuffix("bye<eos>")
    assert chat.stop_ids(templated) == (EOS,)


def test_template_without_closing_token(templated):
    tok = tokenizer.train_tokenizer(["hello there"], vocab_size=300)
    tok.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    encoded = chat.encode_example(tok, Example([user("hi")], [bot("hello")]))
    assert tok.decode(encoded.tokens) == "<|user|>\nhi\n<|assistant|>\nhello\n<eos>"


def test_template_with_its_own_stop_token(templated):
    tok = tokenizer.train_tokenizer(["hello"], vocab_size=300, special_tokens=["<end>"])
    tok.chat_template = TEMPLATE.replace("eos_token", "'<end>'")
    end = tok.convert_tokens_to_ids("<end>")
    encoded = chat.encode_example(tok, Example([user("hi")], [bot("yo")]))
    assert encoded.tokens[-1] == end and learnt(tok, encoded) == ["yo<end>"]
    assert chat.stop_ids(tok) == (EOS, end)


def test_template_that_rewrites_the_past_is_refused(templated):
    tok = tokenizer.train_tokenizer(["hello"], vocab_size=300)
    tok.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(DataError, match="cannot be told apart"):
        chat.encode_example(tok, Example([user("hi")], [bot("yo")]))


def test_template_that_refuses_names_the_row(templated):
    tok = tokenizer.train_tokenizer(["hello"], vocab_size=300)
    tok.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + TEMPLATE
    )
    good = {"messages": [user("a"), bot("b")]}
    bad = {"messages": [{"role": "system", "content": "s"}, *good["messages"]]}
    rows = formats.examples(Rows([good, bad], name="f"))
    with pytest.raises(DataError, match="f row 2: refused by the chat template: no system"):
        chat.encode_rows(tok, rows)
    kept = chat.encode_rows(tok, rows, on_bad_row="skip")
    assert kept.index == [0] and kept.skipped.counts == {"refused by the chat template": 1}


def test_jinja2_is_named_where_it_is_missing(monkeypatch):
    tok = tokenizer.train_tokenizer(["hello"], vocab_size=300)
    tok.chat_template = TEMPLATE

    def missing(*args, **options):
        raise ImportError("requires jinja2 to be installed")

    monkeypatch.setattr(tok, "apply_chat_template", missing)
    with pytest.raises(DataError, match="has a chat template, which needs jinja2"):
        chat.encode_prompt(tok, [user("hi")])


def test_text_never_becomes_control_tokens(bpe, words, templated):
    tokens = chat.encode_text(bpe, "a<eos>b<pad>")
    assert tokens.tolist().count(EOS) == 1 and 0 not in tokens
    assert bpe.decode(tokens) == "a<eos>b<pad><eos>"
    with pytest.raises(SkipRow, match="control token in text"):
        chat.encode_text(words, "a <eos> b")  # the vocabulary of words holds the string itself
    with pytest.raises(SkipRow, match="control token in text: '<eos>'"):
        chat.encode_example(templated, Example([user("a<eos>")], [bot("b")]))
    assert chat.encode_text(words, "a <unk>").tolist() == [4, 3, EOS]  # unk controls nothing


def test_bos_only_where_the_tokenizer_adds_it(bpe):
    from tokenizers.processors import TemplateProcessing

    tok = tokenizer.train_tokenizer(["hello there"], vocab_size=300)
    tok.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    for encoded in (
        chat.encode_text(tok, "hello"),
        chat.encode_prompt(tok, "hello"),
        chat.encode_example(tok, Example([user("hi")], [bot("yo")])).tokens,
    ):
        assert encoded[0] == 1 and encoded.tolist().count(1) == 1
    assert not chat.encode_example(tok, Example("", "hello")).loss_mask[0]
    assert 1 not in chat.encode_text(bpe, "hello")


def test_no_eos_says_what_to_do():
    tok = tokenizer.train_tokenizer(["hello"], vocab_size=300)
    tok.eos_token = None
    with pytest.raises(DataError, match=r"no end-of-sequence token.*set one, as in tokenizer.eos_"):
        chat.encode_text(tok, "hello")
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenizer.ensure_pad(tok)


def test_kinds_must_agree(bpe):
    with pytest.raises(BadRow, match="the prompt is text"):
        chat.encode_example(bpe, Example("a", [bot("b")]))
    with pytest.raises(BadRow, match="the prompt is messages"):
        chat.encode_example(bpe, Example([user("a")], "b"))
    with pytest.raises(BadRow, match="empty prompt"):
        chat.encode_prompt(bpe, "")


def test_encode_rows(words):
    rows = Rows([{"text": "a b"}, {"text": "c <eos>"}, {"text": "d"}], name="f")
    texts = chat.encode_rows(words, formats.texts(rows))
    assert [item.tokens.tolist() for item in texts] == [[4, 5, EOS], [7, EOS]]
    assert texts.index == [0, 2] and texts.skipped.counts == {"control token in text": 1}
    pairs = formats.preferences(
        Rows([{"prompt": "a", "chosen": " b", "rejected": " c", "label": 0.5}])
    )
    assert chat.encode_rows(words, pairs)[0].label == 0.5
    assert chat.encode_rows(words, formats.prompts(Rows([{"prompt": "a b"}])))[0].tolist() == [4, 5]


def random_text(
    rng, pools=("abc ", "the cat", "äß漢🙂", " ", "\n\n", "\n", "'s", "  x", "1,2", "\t")
):
    return "".join(rng.choice(pools) for _ in range(rng.randrange(1, 8)))


def check_prefix(tok, prompt, completion):
    whole = chat.encode_example(tok, Example(prompt, completion))
    start = chat.encode_prompt(tok, prompt)
    assert np.array_equal(whole.tokens[: len(start)], start)
    assert not whole.loss_mask[: len(start)].any() and whole.loss_mask[len(start) :].all()
    assert whole.tokens[-1] == tok.eos_token_id
    return start, whole


@pytest.mark.parametrize("seed", range(30))
def test_prompt_is_a_prefix_and_nothing_is_lost(bpe, seed):
    rng = random.Random(seed)
    prompt, completion = random_text(rng), random_text(rng)
    _, whole = check_prefix(bpe, prompt, completion)
    assert bpe.decode(whole.tokens[:-1]) == prompt + completion
    messages = [user(random_text(rng)), bot(random_text(rng)), user(random_text(rng))]
    _, whole = check_prefix(bpe, messages, [bot(completion)])
    text = bpe.decode(whole.tokens).replace("<eos>", "")
    assert text == dialogue.render([*messages, bot(completion)])


def test_many_rows_at_once_are_as_one_by_one(bpe):
    rng = random.Random(1)
    texts = [random_text(rng) + "x" for _ in range(60)]
    rows = Rows(
        [
            {"prompt": a, "chosen": b, "rejected": c + "!", "text": a, "completion": b}
            for a, b, c in zip(texts[::3], texts[1::3], texts[2::3], strict=True)
        ]
    )
    for items, encode in (
        (formats.texts(rows), lambda item: [chat.encode_text(bpe, item.text)]),
        (formats.prompts(rows), lambda item: [chat.encode_prompt(bpe, item)]),
        (formats.examples(rows), lambda item: chat.encode_example(bpe, item)),
        (formats.preferences(rows), lambda item: chat.encode_preference(bpe, item)),
    ):
        together = chat.encode_rows(bpe, items)
        for i, item in enumerate(items):
            one = together[i] if isinstance(together[i], tuple) else (together[i],)
            for a, b in zip(one, encode(item), strict=False):
                assert np.array_equal(a, b)


class WithoutOffsets:
    """A tokenizer as the pure Python ones are: it cannot say which characters a token covers."""

    is_fast = False

    def __init__(self, tok):
        self.tok = tok

    def __getattr__(self, name):
        return getattr(self.tok, name)

    def __len__(self):
        return len(self.tok)

    def __call__(self, *args, **options):
        return self.tok(*args, **options)


def test_cut_inside_a_token_loses_nothing():
    """ "ab" is one token, so "a" + "bc" is cut in the middle of it: a, b, c."""
    tok = tokenizer.train_tokenizer(["ab ab ab ab"], vocab_size=262)
    assert len(tok("abc")["input_ids"]) == 2
    for one in (tok, WithoutOffsets(tok)):
        tokens, mask = chat.encode_example(one, Example("a", "bc"))
        assert tok.decode(tokens) == "abc<eos>" and mask.tolist() == [False, True, True, True]


def test_real_tokenizers_prefix_property(real):
    rng = random.Random(0)
    for _ in range(60):
        texts = [random_text(rng) for _ in range(4)]
        messages = [user(texts[0]), bot(texts[1]), user(texts[2])]
        check_prefix(real, messages, [bot(texts[3])])
        start, whole = check_prefix(real, texts[0], texts[1])
        if "llama" not in type(real).__name__.lower():  # it writes a leading space of its own
            assert real.decode(whole.tokens[:-1]) == texts[0] + texts[1]
        pair = chat.encode_preference(real, Preference(texts[0], texts[1], texts[2]))
        assert np.array_equal(pair[0], start)


def test_gpt2_is_tokenised_at_once():
    """Trailing white space merges differently before a letter: then the prompt's form wins."""
    tok = tokenizer.load_tokenizer(shared_data("tokenizers/gpt2"))
    assert tok.pad_token_id == tok.eos_token_id == 50256
    assert chat.encode_text(tok, "Hello world").tolist() == [15496, 995, 50256]
    whole = chat.encode_example(tok, Example("Hello", " world"))
    assert whole.tokens.tolist() == [15496, 995, 50256]
    # "\n\nx" alone is 198, 198, 87; a prompt that ends in "\n\n" (628) keeps its own token.
    assert tok("\n\nx")["input_ids"] == [198, 198, 87]
    assert chat.encode_example(tok, Example("\n\n", "x")).tokens.tolist() == [628, 87, 50256]


def test_tinyllama_template_is_applied_and_tokenised_once():
    pytest.importorskip("jinja2")
    tok = tokenizer.load_tokenizer(shared_data("tokenizers/tinyllama_chat"))
    messages = [user("hi"), bot("hello there"), user("more"), bot("bye")]
    encoded = chat.encode_example(tok, Example([], messages))
    reference = tok.apply_chat_template(messages, tokenize=True, return_dict=False)
    # The template ends with a line end after the closing token: sampling stops before it.
    end = len(reference) - reference[::-1].index(tok.eos_token_id)
    assert encoded.tokens.tolist() == reference[:end] and len(reference) - end == 1
    assert learnt(tok, encoded) == ["hello there</s>", "bye</s>"]
    assert tok.bos_token_id not in encoded.tokens  # this template has none, so none is added
    assert chat.encode_text(tok, "hi")[0] == tok.bos_token_id  # plain text: as the tokenizer does
    prompt = chat.encode_prompt(tok, messages[:1])
    want = tok.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert prompt.tolist() == want


def test_rendering(bpe, templated):
    assert chat.render(bpe, [user("a")], add_generation_prompt=True) == "\n\nHuman: a\n\nAssistant:"
    assert chat.render(templated, [user("a")]) == "<|user|>\na<eos>\n"
    assert not chat.has_template(bpe) and chat.has_template(templated)
    assert chat.stop_ids(bpe) == (EOS,)
    with pytest.raises(BadRow, match="unknown role: 'tool'"):
        chat.render(bpe, [{"role": "tool", "content": "x"}])


def test_text_item_and_string_are_alike(bpe):
    item = chat.encode_rows(bpe, formats.texts(Rows([{"text": "hi"}])))[0]
    assert isinstance(formats.texts(Rows([{"text": "hi"}]))[0], Text)
    assert np.array_equal(item.tokens, chat.encode_text(bpe, "hi")) and item.loss_mask.all()


def test_row_numbers_survive_every_stage(words):
    """Row 0 is malformed, row 2 holds a control token, row 3 is too long: 1 and 4 are left."""
    texts = ["", "a b", "c <eos>", "a b c d", "d"]
    rows = Rows([{"prompt": text, "n": i} for i, text in enumerate(texts)])
    prompts = formats.prompts(rows, on_bad_row="skip")
    encoded = chat.encode_rows(words, prompts)
    data = arrays.prompts(encoded, length=3, pad_id=0)
    assert data.columns["row"].tolist() == [1, 4]
    assert data.columns["prompt_tokens"].tolist() == [[0, 4, 5], [0, 0, 7]]
    assert [prompts.at_row(row).columns["n"] for row in data.columns["row"]] == [1, 4]
    assert data.skipped.counts == {
        "empty text": 1,
        "control token in text": 1,
        "longer than 3 tokens": 1,
    }
    with pytest.raises(KeyError):
        encoded.at_row(2)
