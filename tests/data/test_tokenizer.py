"""Tokenizers: exact round trips, ordinary folders, and what a bad folder says."""

import logging
import random
import subprocess
import sys

import pytest
from realdata import shared_data

from jaxrlhf.data import tokenizer
from jaxrlhf.data.tokenizer import (
    load_tokenizer,
    padded_vocab_size,
    train_tokenizer,
    word_tokenizer,
)
from jaxrlhf.errors import DataError

SPECIALS = {"<pad>": 0, "<bos>": 1, "<eos>": 2}


@pytest.mark.parametrize("seed", range(20))
def test_bpe_round_trips_any_text(bpe, seed):
    """Any code point but surrogates, which are not text."""
    rng = random.Random(seed)
    points = [
        rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])
        for _ in range(50)
    ]
    text = "".join(map(chr, points))
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text and bpe.encode(bpe.decode(ids)) == ids


def test_bpe_vocabulary(bpe):
    vocabulary = bpe.get_vocab()
    assert {name: vocabulary[name] for name in SPECIALS} == SPECIALS and 259 < len(bpe) <= 300
    assert (bpe.pad_token_id, bpe.bos_token_id, bpe.eos_token_id) == (0, 1, 2)
    again = train_tokenizer(["the cat sat", "the dog sat"] * 3, vocab_size=280)
    once = train_tokenizer(["the cat sat", "the dog sat"] * 3, vocab_size=280)
    assert again.get_vocab() == once.get_vocab()


def test_words():
    tok = train_tokenizer(["b a b", "a b c"], vocab_size=100, kind="word")
    assert tok.get_vocab() == {**SPECIALS, "<unk>": 3, "b": 4, "a": 5, "c": 6}  # by frequency
    assert tok.decode(tok.encode("a b c")) == "a b c"
    assert tok.encode("a zzz  c") == [5, 3, 6]
    for ids in ([4, 5, 6], [1, 4, 2, 0, 0], [3, 3, 4]):
        assert tok.encode(tok.decode(ids)) == ids
    assert tok.decode([1, 4, 6, 2], skip_special_tokens=True) == "b c"


def test_words_keep_the_most_frequent():
    tok = train_tokenizer(["a a a b b c"], vocab_size=6, kind="word")
    assert tok.encode("a b c") == [4, 5, 3] and len(tok) == 6


def test_word_list():
    tok = word_tokenizer(["sun", ".", "don't"])
    assert tok.encode("don't sun .") == [6, 4, 5] and tok.decode([6, 4, 5]) == "don't sun ."
    for words, message in [
        (["a", "a"], "'a' stands twice"),
        (["a b"], "'a b' is not one word"),
        ([""], "'' is not one word"),
        (["<eos>"], "'<eos>' stands twice or is special"),
    ]:
        with pytest.raises(DataError, match=message):
            word_tokenizer(words)


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_saved_folder_is_an_ordinary_one(tmp_path, kind):
    from transformers import AutoTokenizer

    tok = train_tokenizer(
        ["a cat ü 🙂", "<a> dog"], vocab_size=290, kind=kind, special_tokens=["<x>"]
    )
    tok.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == tok.get_vocab()
        assert loaded.special_tokens_map == tok.special_tokens_map
        assert loaded.decode(loaded.encode("a cat <x> ü")) == "a cat <x> ü"
        assert loaded.encode("a cat ü 🙂<eos>") == tok.encode("a cat ü 🙂<eos>")


def test_our_own_folder_is_read_without_pytorch(tmp_path):
    """And as the library would read it, a model's config beside it or not."""
    word_tokenizer(["sun"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code = (
        "import sys; from jaxrlhf.data.tokenizer import load_tokenizer as load; "
        f"tokenizer = load({str(tmp_path)!r}); assert 'torch' not in sys.modules; "
        "import transformers; "
        f"library = transformers.AutoTokenizer.from_pretrained({str(tmp_path)!r}); "
        "assert type(tokenizer) is type(library); "
        "assert tokenizer.get_vocab() == library.get_vocab(); "
        "assert tokenizer.special_tokens_map == library.special_tokens_map"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arguments():
    with pytest.raises(DataError, match="vocab_size = 100: a 'bpe' tokenizer needs at least 259"):
        train_tokenizer(["a"], vocab_size=100)
    with pytest.raises(DataError, match="kind 'char': must be 'bpe' or 'word'"):
        train_tokenizer(["a"], vocab_size=300, kind="char")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(iter(["", " "]), vocab_size=300)


def test_bad_folders(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"no such tokenizer folder; did you mean .*/model\?"):
        load_tokenizer(tmp_path / "modle")
    with pytest.raises(DataError, match=r"holds none of tokenizer.json"):
        load_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{broken")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "model")


def test_pad_is_eos_where_there_is_none(caplog):
    tok = train_tokenizer(["a"], vocab_size=300)
    tok.pad_token = None
    with caplog.at_level(logging.INFO, logger=tokenizer.__name__):
        tokenizer.ensure_pad(tokenizer.ensure_pad(tok))
    assert tok.pad_token_id == tok.eos_token_id == 2 and len(caplog.records) == 1


def test_real_folders():
    gpt2 = load_tokenizer(shared_data("tokenizers/gpt2"))
    assert gpt2.encode("Hello world") == [15496, 995] and len(gpt2) == 50257
    llama = load_tokenizer(shared_data("tokenizers/tinyllama_chat"))
    assert (llama.bos_token_id, llama.eos_token_id, llama.pad_token_id) == (1, 2, 2)


def test_padded_vocab_size():
    assert [padded_vocab_size(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
