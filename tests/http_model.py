"""A local server with an OpenAI-compatible API, whose answers a test decides."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status, and an object (JSON), or a string that is sent as it is
MODELS = "/v1/"


class Server:
    """Calls `reply(path, body, number)` for request `number` (from 0) and sends what it returns."""

    def __init__(self, reply: Callable[[str, dict, int], Reply]):
        self.reply, self.bodies, self.headers = reply, [], []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            status, answer = self.reply(request.path, body, number)
        finally:
            with self.lock:
                self.under_way -= 1
        text = answer if isinstance(answer, str) else json.dumps(answer)
        with contextlib.suppress(OSError):  # whoever asked may have gone
            request.send_response(status)
            if status == 429:
                request.send_header("Retry-After", "0.01")
            request.send_header("Content-Length", str(len(text.encode())))
            request.end_headers()
            request.wfile.write(text.encode())


@contextlib.contextmanager
def serving(reply: Callable[[str, dict, int], Reply]) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def completion(*tops: dict[str, float], text: str | None = None, end: str = "stop") -> dict:
    """An answer of `/completions`; the most probable token of each dictionary was written."""
    tokens = [max(top, key=lambda token: top[token]) for top in tops]
    logprobs = {"tokens": tokens, "top_logprobs": list(tops)}
    said = "".join(tokens) if text is None else text
    return {"choices": [{"text": said, "finish_reason": end, "logprobs": logprobs}]}


def chat(*tops: dict[str, float], text: str | None = None) -> dict:
    """An answer of `/chat/completions`."""
    tokens = [max(top, key=lambda token: top[token]) for top in tops]
    content = [
        {"token": t, "top_logprobs": [{"token": k, "logprob": x} for k, x in top.items()]}
        for t, top in zip(tokens, tops, strict=True)
    ]
    message = {"content": "".join(tokens) if text is None else text}
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"choices": [choice]}


def stall(seconds: float, answer: Any) -> Reply:
    """An answer that comes late."""
    time.sleep(seconds)
    return 200, answer
