"""JSON over HTTP: several requests at a time, new tries where they may help, answers on disk.

What may pass (429, 5xx, no answer in time, an answer that was cut off) is tried again after a delay
that doubles and has a random part; what will not (401, 404) stops everything with the reason. An
answer is kept under a hash of its request, so whoever asks the same again, after a crash say, is
not asked to wait or to pay. The API key comes from an environment variable; it is never written.

Only the standard library is used. What requests mean is `served.py`.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import random
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxrlhf.data.rows import shorten
from jaxrlhf.errors import ConfigError, UserError

LONGEST_DELAY = 60.0  # seconds
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)

Body = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
      url: of the API with its version, "http://localhost:8000/v1".
      cache: folder of the answers; it is made.
      key_variable: environment variable with the API key, sent as a bearer token; None: none.
      concurrency: most requests under way at a time.
      timeout: seconds of silence after which a request is tried again.
      retries: how often a request is tried again.
      backoff: seconds before the first retry.
    """

    url: str
    cache: Path
    key_variable: str | None = None
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0

    def post(
        self, route: str, bodies: Sequence[Body], readable: Callable[[Any], bool]
    ) -> list[Any]:
        """The answer to every body, in order; None where the server never gave a `readable` one.

        Raises:
          UserError: the server refuses, or does not answer at all.
          ConfigError: the environment variable of the key is not set.
        """
        headers, stopped = self._headers(), threading.Event()

        def ask(body: Body) -> Any:
            if stopped.is_set():
                return None
            try:
                return self._cached(route, body, readable, headers)
            except UserError:
                stopped.set()  # nobody waits for the others any more
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(ask, bodies))

    def answered(self, route: str, body: Body) -> bool:
        """Whether the answer is on disk."""
        return self._read(self._path(route, body)) is not None

    def _cached(
        self, route: str, body: Body, readable: Callable[[Any], bool], headers: dict[str, str]
    ) -> Any:
        path = self._path(route, body)
        answer = self._read(path)
        if answer is None:
            answer = self._ask(route, body, readable, headers)
            if answer is not None:
                _write(path, answer)
        return answer

    def _ask(
        self, route: str, body: Body, readable: Callable[[Any], bool], headers: dict[str, str]
    ) -> Any:
        """Try until there is an answer that can be read."""
        request = urllib.request.Request(
            self._address(route), json.dumps(body).encode(), headers, method="POST"
        )
        for attempt in range(self.retries + 1):
            problem, silent, least = "", True, 0.0
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    silent = False
                    text = reply.read().decode("utf-8")
                answer = json.loads(text)
                if readable(answer):
                    return answer
                problem = f"answered {shorten(text)}"
            except urllib.error.HTTPError as error:
                problem = f"answered {error.code} {error.reason}: {_said(error)}"
                if error.code not in AGAIN:
                    raise UserError(f"{self._address(route)} {problem}") from None
                least = _seconds(error.headers.get("Retry-After"))
            except (ValueError, http.client.HTTPException) as error:
                problem = f"answered what is not JSON ({error})"
            except (urllib.error.URLError, OSError) as error:
                problem = str(getattr(error, "reason", error))
            if attempt < self.retries:
                delay = min(self.backoff * 2**attempt, LONGEST_DELAY) * random.uniform(0.5, 1.5)
                time.sleep(min(max(delay, least), 5 * LONGEST_DELAY))
        if not silent:
            return None
        raise UserError(
            f"{self._address(route)}: no answer after {self.retries + 1} tries ({problem}); "
            "what was answered is kept, the same command goes on from there"
        )

    def _address(self, route: str) -> str:
        return f"{self.url.rstrip('/')}/{route}"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable)
            if not key:
                raise ConfigError(f"server.key_variable: {self.key_variable} is not set")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _path(self, route: str, body: Body) -> Path:
        text = json.dumps([self._address(route), body], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return Path(self.cache) / name[:2] / f"{name}.json"

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def _write(path: Path, answer: Any) -> None:
    """Atomically, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(temporary, path)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return shorten(error.read().decode("utf-8", errors="replace"), 200)
    except OSError:
        return ""


def _seconds(value: str | None) -> float:
    """Of a Retry-After header; 0 where it is absent or a date."""
    try:
        return max(float(value or 0), 0.0)
    except ValueError:
        return 0.0
