"""Small tokenizers shared by the tests of this folder, and a writer of text files."""

import gzip

import pytest

from jaxrlhf.data import tokenizer

TEXTS = ["the cat sat on the mat", "a dog and a cat", "\n\nHuman: hi there\n\nAssistant: hello"] * 5


@pytest.fixture(scope="session")
def bpe():
    """Byte-level BPE, 300 tokens; `<pad>`, `<bos>`, `<eos>` are 0, 1, 2. No chat template."""
    return tokenizer.train_tokenizer(TEXTS, vocab_size=300)


@pytest.fixture(scope="session")
def words():
    """The words a, b, c, d are 4, 5, 6, 7; `<unk>` is 3."""
    return tokenizer.word_tokenizer(["a", "b", "c", "d"])


@pytest.fixture
def write(tmp_path):
    """write(name, text or bytes) -> path; gzipped where the name ends in .gz."""

    def write(name, content):
        raw = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write
