"""A model that answers texts: the seam between the programs of this package and what runs them.

`Model` is what they ask for; `Sampler` is a model in this process, `served.py` one behind HTTP. A
text that cannot be answered (longer than the model reads, say) comes back with the reason, so that
it is counted; it never stops the others.

Which tokens end a text: those of `Sampling.stop_ids`, and the stop strings that the layout brings.
A stop string that is one token of the tokenizer ends a text as that token, and sampling with it;
any other is looked for in what was written, and the text is cut before it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxrlhf import inference, sharding
from jaxrlhf.data import arrays, chat
from jaxrlhf.data.columns import Content
from jaxrlhf.data.formats import Example, Prompt
from jaxrlhf.data.rows import Loaded, Rows, Skipped
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.models import LM
from jaxrlhf.sampling import Sampling

TOO_LONG = "longer than the model reads"
UNREADABLE = "cannot be tokenised"


class Drawn(NamedTuple):
    """A text that a model wrote; white space around it is gone."""

    text: str
    log_prob: float | None  # nats, of all tokens up to the stop; None where a server does not say
    finished: bool  # it came to a stop; False: cut by length
    problem: str | None = None  # why there is no text, in words that are counted


class Model(Protocol):
    """What critique, revision and judging ask of a model."""

    @property
    def batch_size(self) -> int:
        """How many texts are best asked at a time."""
        ...

    def generate(
        self, texts: Sequence[str], keys: Sequence[Sequence[int]], *, stops: Sequence[str] = ()
    ) -> list[Drawn]:
        """Continue every text. What is drawn depends on its text and its key alone.

        Args:
          keys: for each text non-negative numbers, the same count for all, say (row, round).
          stops: strings that end a text, beside the model's own end.
        """
        ...

    def option_log_probs(self, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """Log-probs `[N, K]` in nats of each option after each text; NaN rows where unreadable."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A language model in this process.

    Args:
      sampling: how texts are drawn (options are always judged at temperature 1, unfiltered).
      batch_size: texts a forward pass; must divide over the devices of the mesh.
      seed: root of all keys.
      mesh: devices; None: wherever the parameters lie.
    """

    lm: LM
    params: Any
    tokenizer: Any
    sampling: Sampling
    batch_size: int
    seed: int = 0
    mesh: jax.sharding.Mesh | None = None

    def generate(
        self, texts: Sequence[Content], keys: Sequence[Sequence[int]], *, stops: Sequence[str] = ()
    ) -> list[Drawn]:
        """See `Model.generate`; conversations are answered too."""
        room = self.lm.config.max_positions - self.sampling.max_new_tokens
        rows, problems = self._encoded(texts, room)
        drawn = [Drawn("", None, False, problem) for problem in problems]
        ends = stop_tokens(self.tokenizer, stops)
        searched = [stop for stop in stops if stop not in ends]
        stop_ids = tuple(dict.fromkeys((*self.sampling.stop_ids, *ends.values())))
        sampling = dataclasses.replace(self.sampling, stop_ids=stop_ids)
        readable = [i for i, problem in enumerate(problems) if problem is None]
        for some in _blocks(readable, self.batch_size):
            batch = self._batch([rows[i] for i in some], [keys[i] for i in some])
            made = self._generate(batch, sampling)
            for i, tokens, log_probs, done in zip(some, *made, strict=False):
                drawn[i] = self._drawn(tokens, log_probs, bool(done), stop_ids, searched)
        return drawn

    def option_log_probs(self, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """See `Model.option_log_probs`.

        Raises:
          ConfigError: two options that the tokenizer cannot tell apart.
        """
        found = np.full((len(texts), len(options)), np.nan)
        ids = option_tokens(self.tokenizer, options)
        longest = max(map(len, ids))
        rows, problems = self._encoded(texts, self.lm.config.max_positions - longest)
        asked = [
            (i, k)
            for i, problem in enumerate(problems)
            if problem is None
            for k in range(len(options))
        ]
        for some in _blocks(asked, self.batch_size):
            whole = [np.concatenate([rows[i], ids[k]]) for i, k in some]
            batch = self._batch(whole, [(0,)] * len(some))
            stats = inference.score(
                self.lm, self.params, batch["tokens"], batch["mask"], response_length=longest
            )
            log_probs = np.asarray(stats.log_probs, np.float64)
            for (i, k), row in zip(some, log_probs, strict=False):
                found[i, k] = row[-len(ids[k]) :].sum()
        return found

    def answer_log_probs(
        self, prompts: Sequence[Content], answers: Sequence[Content]
    ) -> np.ndarray:
        """Log-probs `[N]` in nats of each answer, without its end token, after its prompt.

        NaN where the two cannot be tokenised or are longer than the model reads.
        """
        found = np.full(len(prompts), np.nan)
        examples = [Example(*both) for both in zip(prompts, answers, strict=True)]
        encoded = {
            i: chat.EncodedExample(made.tokens[:-1], made.loss_mask[:-1])
            for i, made in self._tokenised(examples).items()
            if len(made.tokens) - 1 <= self.lm.config.max_positions
        }
        by_length = sorted(encoded, key=lambda i: (len(encoded[i].tokens), i))
        for some in _blocks(by_length, self.batch_size):
            batch = self._batch([encoded[i].tokens for i in some], [(0,)] * len(some))
            lengths = [int(encoded[i].loss_mask.sum()) for i in some]
            stats = inference.score(
                self.lm,
                self.params,
                batch["tokens"],
                batch["mask"],
                response_length=inference.bucket(max(lengths), batch["tokens"].shape[1] - 1),
            )
            log_probs = np.asarray(stats.log_probs, np.float64)
            for i, row, length in zip(some, log_probs, lengths, strict=False):
                found[i] = row[-length:].sum()
        return found

    def _encoded(
        self, texts: Sequence[Content], room: int
    ) -> tuple[list[np.ndarray], list[str | None]]:
        """Tokens of every text, and why it cannot be read, or None."""
        rows = [np.zeros(0, np.int32)] * len(texts)
        problems: list[str | None] = [UNREADABLE] * len(texts)
        for i, tokens in self._tokenised([Prompt(text) for text in texts]).items():
            highest, limit = int(tokens.max()), self.lm.config.vocab_size
            if highest >= limit:
                name = self.tokenizer.convert_ids_to_tokens(highest)
                raise ConfigError(f"token {name!r} is number {highest}, the model has {limit} rows")
            rows[i], problems[i] = tokens, TOO_LONG if len(tokens) > room else None
        return rows, problems

    def _tokenised(self, items: Sequence[Prompt | Example]) -> dict[int, Any]:
        """What those of the items become that can be tokenised, by their places."""
        if not items:
            return {}
        nothing = Rows([{}] * len(items), name="texts for the model")
        source = Loaded(list(items), list(range(len(items))), nothing, Skipped())
        try:
            encoded = chat.encode_rows(self.tokenizer, source, on_bad_row="skip")
        except DataError:  # not one of them
            return {}
        return dict(zip(encoded.index, encoded, strict=True))

    def _batch(self, rows: Sequence[np.ndarray], keys: Sequence[Sequence[int]]) -> dict[str, Any]:
        """`batch_size` left-padded rows on the mesh; copies of the last one fill it up."""
        more = self.batch_size - len(rows)
        rows, keys = [*rows, *[rows[-1]] * more], [*keys, *[keys[-1]] * more]
        length = inference.bucket(max(map(len, rows)), self.lm.config.max_positions)
        tokens, mask = arrays.pad(rows, length=length, pad_id=self.sampling.pad_id, side="left")
        batch = {"tokens": tokens, "mask": mask, "keys": np.array(keys, np.uint32)}
        return batch if self.mesh is None else sharding.shard_batch(self.mesh, batch)

    def _generate(self, batch: dict[str, Any], sampling: Sampling) -> tuple[np.ndarray, ...]:
        keys = inference.row_keys(jax.random.key(self.seed), np.asarray(batch["keys"]))
        try:
            made = inference.generate(
                self.lm, self.params, batch["tokens"], batch["mask"], keys, sampling
            )
        except ValueError as error:
            raise ConfigError(f"sampling: {error}") from error
        mask = np.asarray(made.response_mask)
        tokens = [
            row[real].tolist()
            for row, real in zip(np.asarray(made.response_tokens), mask, strict=True)
        ]
        return tokens, np.asarray(made.log_probs, np.float64), np.asarray(made.finished)  # type: ignore[return-value]

    def _drawn(
        self,
        tokens: list[int],
        log_probs: np.ndarray,
        finished: bool,
        stop_ids: Sequence[int],
        stops: Sequence[str],
    ) -> Drawn:
        """A text from its tokens: without the stop token, and cut where a stop string begins."""
        kept = tokens[:-1] if finished and tokens[-1] in stop_ids else tokens
        text, used = self._decode(kept), len(tokens)
        cut = first_stop(text, stops)
        if cut is not None:
            used = self._tokens_until_stop(kept, stops)
            text, finished = text[:cut], True
        return Drawn(text.strip(), float(log_probs[:used].sum()), finished)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _tokens_until_stop(self, tokens: list[int], stops: Sequence[str]) -> int:
        """The fewest tokens whose text holds a stop string."""
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if first_stop(self._decode(tokens[:middle]), stops) is None:
                low = middle + 1
            else:
                high = middle
        return low


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins in `text`, or None.

    >>> first_stop("yes.  Human: no", ["Critique:", "Human:"])
    6
    """
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=None)


def stop_tokens(tokenizer: Any, stops: Sequence[str]) -> dict[str, int]:
    """The stop strings that are one token of the tokenizer, and that token."""
    found = {}
    for stop in stops:
        ids = _plain_ids(tokenizer, stop)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found[stop] = ids[0]
    return found


def option_tokens(tokenizer: Any, options: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each option, as they follow a text.

    Raises:
      ConfigError: an option that is no known word, or one whose tokens begin another's: their
        probabilities could not be compared.
    """
    ids = [chat.encode_example(tokenizer, Example(".", option)) for option in options]
    made = [one.tokens[one.loss_mask][:-1] for one in ids]  # without the end token
    for i, a in enumerate(made):
        if tokenizer.unk_token_id in a and tokenizer.unk_token_id != tokenizer.eos_token_id:
            raise ConfigError(
                f"layout.options: {options[i]!r} is not in the tokenizer's vocabulary"
            )
        for k, b in enumerate(made):
            if i != k and np.array_equal(a, b[: len(a)]):
                raise ConfigError(
                    f"layout.options: {options[i]!r} and {options[k]!r} collide: the tokens of the "
                    f"one, {a.tolist()}, begin those of the other, {b.tolist()}"
                )
    return made


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _blocks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
