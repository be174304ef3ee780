"""A model behind an OpenAI-compatible endpoint, asked as a model in this process is.

`api="completions"` posts the text itself (for base models), `api="chat"` posts it as one user turn.
The probability of an option is read off the `top_logprobs` at the token that names it: " (A)" is
known by "A", first of all or within its brackets. Tokens that differ in white space or brackets
alone are added up. An option that is not among the most probable tokens is given the least of what
is (it has no more): the label is then less sure than the model, never surer. Where no token names
an option the text is unreadable, and counted.

`Rehearsal` asks nothing: it notes what would be asked, for an estimate of time and cost.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrlhf.constitutional.endpoint import Body, Endpoint
from jaxrlhf.constitutional.sampler import Drawn, first_stop
from jaxrlhf.errors import ConfigError

Api = Literal["completions", "chat"]
ROUTES = {"completions": "completions", "chat": "chat/completions"}
NAMING = 8  # tokens within which a choice has to be named
SHOWN = 20  # most probable tokens asked for
STOPS = 4  # stop strings that such an API takes; the others are cut here
CHARACTERS = 4  # a token has about so many: for the estimate alone
AROUND = " \t\n()[]*\"'.:"  # what may stand around the name of an option
NO_ANSWER = "the server gave no answer that can be read"


@dataclasses.dataclass(frozen=True)
class Served:
    """`sampler.Model` over HTTP.

    Args:
      model: the name that the server knows it by.
      max_new_tokens, temperature: how texts are drawn (options are judged at temperature 1).
      batch_size: texts handed over at a time; the endpoint's concurrency is what limits it.
    """

    endpoint: Endpoint
    model: str
    max_new_tokens: int
    api: Api = "completions"
    temperature: float = 1.0
    batch_size: int = 16
    seed: int = 0

    def generate(
        self, texts: Sequence[str], keys: Sequence[Sequence[int]], *, stops: Sequence[str] = ()
    ) -> list[Drawn]:
        """See `Model.generate`. That equal keys draw equal texts is up to the server's `seed`."""
        bodies = [self.text_body(text, key, stops) for text, key in zip(texts, keys, strict=True)]
        return [_drawn(answer, stops) for answer in self._post(bodies)]

    def option_log_probs(self, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        """See `Model.option_log_probs`."""
        named = names(options)
        answers = self._post([self.option_body(text) for text in texts])
        return np.array([log_probs_of(answer, named) for answer in answers]).reshape(-1, 2)

    def text_body(self, text: str, key: Sequence[int], stops: Sequence[str]) -> Body:
        """What asks for a text."""
        seed = int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0]) >> 1
        body = self._body(text, max_tokens=self.max_new_tokens, temperature=self.temperature)
        return {**body, "seed": seed, "stop": list(stops[:STOPS])}

    def option_body(self, text: str) -> Body:
        """What asks for a choice."""
        body = self._body(text, max_tokens=NAMING, temperature=0.0)
        if self.api == "chat":
            return {**body, "logprobs": True, "top_logprobs": SHOWN}
        return {**body, "logprobs": SHOWN}

    def _body(self, text: str, *, max_tokens: int, temperature: float) -> Body:
        body: Body = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        if self.api == "chat":
            return {**body, "messages": [{"role": "user", "content": text.strip()}]}
        return {**body, "prompt": text}

    def _post(self, bodies: Sequence[Body]) -> list[Any]:
        return self.endpoint.post(ROUTES[self.api], bodies, is_answer)


class Estimate(NamedTuple):
    """What asking would take."""

    requests: int
    answered: int  # of them, on disk already; the rest counts below
    tokens_read: int  # about
    tokens_written: int  # at most
    cost: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.answered} answered before: about {self.tokens_read} "
            f"tokens to read, at most {self.tokens_written} to write; cost {self.cost:.2f}, "
            f"{self.seconds:.0f} s"
        )


class Rehearsal:
    """A `sampler.Model` that notes what `served` would be asked."""

    def __init__(self, served: Served):
        self.served, self.bodies = served, []

    @property
    def batch_size(self) -> int:
        return self.served.batch_size

    def generate(
        self, texts: Sequence[str], keys: Sequence[Sequence[int]], *, stops: Sequence[str] = ()
    ) -> list[Drawn]:
        for text, key in zip(texts, keys, strict=True):
            self.bodies.append(self.served.text_body(text, key, stops))
        longest = "x" * CHARACTERS * self.served.max_new_tokens
        return [Drawn(longest, None, True)] * len(texts)

    def option_log_probs(self, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        self.bodies += [self.served.option_body(text) for text in texts]
        return np.zeros((len(texts), len(options)))

    def estimate(
        self, *, price_read: float, price_written: float, seconds_per_request: float
    ) -> Estimate:
        """Prices are of a million tokens."""
        route, endpoint = ROUTES[self.served.api], self.served.endpoint
        new = [body for body in self.bodies if not endpoint.answered(route, body)]
        shown = [body.get("prompt") or body["messages"][0]["content"] for body in new]
        read = sum(map(len, shown)) // CHARACTERS
        written = sum(body["max_tokens"] for body in new)
        return Estimate(
            requests=len(self.bodies),
            answered=len(self.bodies) - len(new),
            tokens_read=read,
            tokens_written=written,
            cost=(read * price_read + written * price_written) / 1e6,
            seconds=math.ceil(len(new) / endpoint.concurrency) * seconds_per_request,
        )


# What a server says.


def is_answer(answer: Any) -> bool:
    """Whether this is an answer of the API at all."""
    try:
        _text(answer)
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(_text(answer), str)


def names(options: Sequence[str]) -> dict[str, str]:
    """By what each option is known, and that with what stands before it: {"A": "(A", "B": "(B"}.

    Raises:
      ConfigError: options that are known by the same, or by nothing.
    """
    found = {_bare(option): option.strip().rstrip(AROUND) for option in options}
    if "" in found or len(found) < len(options):
        raise ConfigError(f"layout.options: {list(options)} collide: no name tells them apart")
    return found


def log_probs_of(answer: Any, named: Mapping[str, str]) -> list[float]:
    """Log-prob of each option, NaN where the answer names none."""
    said = ""
    for token, top in _tokens(answer):
        if top and _names(token, said, named):
            return [_total(name, top) for name in named]
        said += token
    return [math.nan] * len(named)


def _names(token: str, said: str, named: Mapping[str, str]) -> bool:
    """Whether a token is a choice: the first word, or a name in the brackets of its option."""
    bare = _bare(token)
    if bare not in named:
        return False
    first, in_brackets = not re.search(r"\w", said), named[bare] != bare
    return first or (in_brackets and (said + token).rstrip(AROUND).endswith(named[bare]))


def _total(name: str, top: Mapping[str, float]) -> float:
    same = [x for token, x in top.items() if _bare(token) == name]
    return float(np.logaddexp.reduce(same)) if same else min(top.values())


def _bare(token: str) -> str:
    return token.strip(AROUND)


def _tokens(answer: Any) -> list[tuple[str, dict[str, float]]]:
    """The tokens written, and the most probable ones at each; none where the server says none."""
    found = answer["choices"][0].get("logprobs") if answer else None
    try:
        if not found:
            return []
        if "content" in found:
            pairs = [
                (one["token"], {top["token"]: top["logprob"] for top in one["top_logprobs"]})
                for one in found["content"]
            ]
        else:
            pairs = zip(found["tokens"], found["top_logprobs"], strict=True)
        return [(str(token), {str(t): float(x) for t, x in top.items()}) for token, top in pairs]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _drawn(answer: Any, stops: Sequence[str]) -> Drawn:
    if answer is None:
        return Drawn("", None, False, NO_ANSWER)
    text = _text(answer)
    cut = first_stop(text, stops)
    finished = cut is not None or answer["choices"][0].get("finish_reason") == "stop"
    return Drawn(text[:cut].strip(), None, finished)


def _text(answer: Any) -> Any:
    choice = answer["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]
