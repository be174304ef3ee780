"""The labelling page's server, in a thread of this process, and requests that say anything."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from jaxrlhf.labelling.app import make_app
from jaxrlhf.labelling.guard import Guard
from jaxrlhf.labelling.queue import Queue


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Server(NamedTuple):
    port: int

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """One request; header names are written with underscores. Host is what is said, or ours."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        headers = {"host": f"localhost:{self.port}"} | headers
        headers |= {} if body is None else {"content_length": str(len(body.encode()))}
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value.encode())
        connection.endheaders(None if body is None else body.encode())
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.headers.items()), answer.read().decode())
        connection.close()
        return found

    def ask(self, question: str, annotator: str = "ann", **more: Any) -> Answer:
        """What the page asks."""
        body = json.dumps({"annotator": annotator, **more})
        return self.request("POST", f"/api/{question}", body, content_type="application/json")


@contextmanager
def running(app: ASGIApp, listening: socket.socket) -> Iterator[Server]:
    """An app that answers while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Server(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(
    queue: Queue, *, token: str | None = None, title: str = "Which?", guideline: str = "Judge."
) -> Iterator[Server]:
    """The page of a queue, as `jaxrlhf label` serves it."""
    app = Guard(make_app(queue, title=title, guideline=guideline), token=token)
    with socket.create_server(("127.0.0.1", 0)) as listening, running(app, listening) as server:
        yield server
