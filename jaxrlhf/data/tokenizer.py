"""Tokenizers: train one, make one from a list of words, load one, and what padding needs.

Every tokenizer here is an ordinary Hugging Face folder: `tokenizer.save_pretrained(path)` writes
it and `load_tokenizer(path)` (or anybody's `AutoTokenizer`) reads it. Ours have distinct `<pad>`,
`<bos>` and `<eos>` (ids 0, 1, 2) and add none of them by themselves, so that decoding and encoding
are inverse. No model code from a folder or hub is ever executed.
"""

import difflib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxrlhf.errors import DataError

logger = logging.getLogger(__name__)

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
BYTES = 256


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: Literal["bpe", "word"] = "bpe",
    special_tokens: Sequence[str] = (),
) -> Any:
    """A tokenizer fitted to texts.

    "bpe" is byte-level (any text round-trips exactly; Sennrich et al. 2016, GPT-2's alphabet);
    "word" splits at white space, joins with one space, and knows the most frequent words, all
    others being `<unk>`.

    Args:
      texts: the training texts.
      vocab_size: at most so many tokens, special ones included.
      special_tokens: further control tokens, after `<pad>`, `<bos>`, `<eos>` (and `<unk>`).
    Returns:
      A `transformers.PreTrainedTokenizerFast`.
    Raises:
      DataError: a vocabulary too small for the bytes or specials, no text, or an unknown kind.
    """
    if kind not in ("bpe", "word"):
        raise DataError(f"tokenizer kind {kind!r}: must be 'bpe' or 'word'")
    specials = [PAD, BOS, EOS, *([UNK] if kind == "word" else []), *special_tokens]
    least = len(specials) + (BYTES if kind == "bpe" else 1)
    if vocab_size < least:
        raise DataError(f"vocab_size = {vocab_size}: a {kind!r} tokenizer needs at least {least}")
    counter = _Counter(texts)
    backend = (_train_bpe if kind == "bpe" else _train_word)(counter, vocab_size, specials)
    if not counter.seen:
        raise DataError("no text to train a tokenizer on")
    return _wrap(backend, specials, unk=kind == "word")


def word_tokenizer(words: Sequence[str]) -> Any:
    """A word tokenizer with exactly these words, in this order, after the four special tokens.

    Raises:
      DataError: a word that stands twice, is empty, holds white space, or is a special token.
    """
    from tokenizers import Tokenizer, models

    specials = [PAD, BOS, EOS, UNK]
    vocabulary: dict[str, int] = {}
    for word in [*specials, *words]:
        if word in vocabulary or word.split() != [word]:
            what = "stands twice or is special" if word in vocabulary else "is not one word"
            raise DataError(f"word_tokenizer: {word!r} {what}")
        vocabulary[word] = len(vocabulary)
    backend = _split_words(Tokenizer(models.WordLevel(vocabulary, unk_token=UNK)))
    backend.add_special_tokens(specials)
    return _wrap(backend, specials, unk=True)


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder (never looked up elsewhere) or of a hub name, ready for padding.

    Raises:
      DataError: no such folder (with the nearest name), or nothing in it that can be read.
    """
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not local and (str(path).startswith(("/", ".", "~")) or folder.exists()):
        raise DataError(f"{folder}: no such tokenizer folder{_did_you_mean(folder)}")
    if local and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise DataError(f"{folder}: holds none of {', '.join(TOKENIZER_FILES)}")
    try:
        tokenizer = _class_for(folder).from_pretrained(
            str(folder if local else path), local_files_only=local, trust_remote_code=False
        )
    except Exception as problem:  # the library raises many kinds for unreadable folders
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(f"tokenizer {str(path)!r} cannot be loaded: {reason}") from None
    return ensure_pad(tokenizer)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def ensure_pad(tokenizer: Any) -> Any:
    """The same tokenizer, with its end token as padding where it has none.

    That is harmless here: masks say what is padding, token ids never do (`arrays.mask_from_ids`
    refuses to guess).

    Raises:
      DataError: it has no end token either.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so a model could never learn to stop: set"
            ' one, as in tokenizer.eos_token = "</s>", and save it'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("the tokenizer has no pad token: %s is used for both", tokenizer.eos_token)
    return tokenizer


def padded_vocab_size(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple, for even shards and fast matrix products.

    >>> padded_vocab_size(50257, 128)
    50304
    """
    return -(-size // multiple) * multiple


class _Counter:
    """Passes texts on and remembers whether there were any."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.seen = texts, False

    def __iter__(self):
        for text in self.texts:
            self.seen = self.seen or bool(text.strip())
            yield text


def _train_bpe(texts, vocab_size: int, specials: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_word(texts, vocab_size: int, specials: list[str]):
    from tokenizers import Tokenizer, models, trainers

    backend = _split_words(Tokenizer(models.WordLevel(unk_token=UNK)))
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _split_words(backend):
    """Split at white space; with no decoder, tokens are joined with one space."""
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def _transformers():
    """The library, imported on use, without its advice to install PyTorch: none is needed here."""
    log = logging.getLogger("transformers")

    def not_of_pytorch(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    log.addFilter(not_of_pytorch)
    try:
        import transformers
    finally:
        log.removeFilter(not_of_pytorch)
    return transformers


def _class_for(folder: Path):
    """The class that reads a folder: the one it names where that is the plain one, which is what
    is saved here.

    Otherwise the library finds out which, for which it reads the model's config and imports PyTorch
    where there is one: seconds of every command.
    """
    library, config = _transformers(), folder / "tokenizer_config.json"
    plain = library.PreTrainedTokenizerFast
    if config.is_file() and json.loads(config.read_text()).get("tokenizer_class") == plain.__name__:
        return plain
    return library.AutoTokenizer


def _wrap(backend, specials: list[str], *, unk: bool):
    more = [token for token in specials if token not in (PAD, BOS, EOS, UNK)]
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK if unk else None,
        extra_special_tokens=more,
        clean_up_tokenization_spaces=False,
    )


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [p.name for p in path.parent.iterdir() if p.is_dir()]
    found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / found[0]}?" if found else ""
