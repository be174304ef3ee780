"""The page's server: three files, and three questions that the page asks in JSON.

    POST /api/next      {annotator}                        -> a state
    POST /api/verdict   {annotator, pair_id, verdict, ...} -> the next state
    POST /api/undo      {annotator, verdict_id}            -> the state before it

A *state* is {annotator, pair, progress}: the pair to look at (null when all is done) with its left
and right answer, and what was said of it before it was taken back. On the page a positive verdict
means the left answer; which answer that is, `a` or `b`, only the queue knows. An error is
{error, state?}: 400 not a verdict, 409 it cannot count, 503 it could not be written.

The files are read once, at the start: no address ever names a file. Who may ask is `guard.py`'s.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from html import escape
from importlib import resources
from typing import Any

from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxrlhf.data.columns import Content
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.errors import DataError
from jaxrlhf.labelling.queue import Queue, Shown
from jaxrlhf.labelling.records import Side, Verdict
from jaxrlhf.labelling.store import AlreadyJudged, now

LARGEST_REQUEST = 100_000  # bytes; a comment has at most 10,000 characters
FILES = {
    "page.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
State = dict[str, Any]


def make_app(queue: Queue, *, title: str, guideline: str) -> Starlette:
    """The app.

    Args:
      title: of the page, plain text.
      guideline: Markdown; HTML in it is shown, not obeyed.
    """
    page = _file("index.html").replace("{{title}}", escape(title))
    page = page.replace(
        "{{guideline}}", MarkdownIt("commonmark", {"html": False}).render(guideline)
    )
    routes = [_served("/", page, "text/html")]
    routes += [_served(f"/{name}", _file(name), kind) for name, kind in FILES.items()]
    answers = {"next": _next, "verdict": _verdict, "undo": _undo}
    routes += [_asked(f"/api/{name}", answer, queue) for name, answer in answers.items()]
    return Starlette(routes=routes)


# The questions.


class Asked:
    """What a request says; every getter raises `BadRow`."""

    def __init__(self, body: Mapping[str, Any], queue: Queue):
        self.body = body
        self.annotator = queue.store.register(body.get("annotator", ""))

    def get(self, name: str, kind: type) -> Any:
        value = self.body.get(name)
        if type(value) is not kind:
            raise BadRow("wrong type", f"{name!r}: {shorten(value)}")
        return value


def _next(queue: Queue, asked: Asked) -> State:
    return state(queue, asked.annotator)


def _verdict(queue: Queue, asked: Asked) -> State:
    pair_id = asked.get("pair_id", str)
    first = queue.shown(asked.annotator, pair_id)
    if first is None:
        raise DataError("this pair was not shown to you")
    extra = {name: asked.body.get(name) for name in ("confidence", "seconds")}
    said = Verdict(
        pair_id,
        asked.annotator,
        asked.body.get("verdict", 0),
        **extra,
        flag=asked.body.get("flag", False),
        comment=asked.body.get("comment", ""),
        shown_first="a",
        time=now(),
    )
    queue.store.record(said if first == "a" else said.swapped())
    return state(queue, asked.annotator)


def _undo(queue: Queue, asked: Asked) -> State:
    said = queue.undo(asked.annotator, asked.get("verdict_id", int))
    if said is None:
        raise DataError("this verdict was taken back already")
    return state(queue, asked.annotator, said)


def state(queue: Queue, annotator: str, said: Verdict | None = None) -> State:
    """What the page shows next. `said` was taken back just now."""
    shown = queue.next(annotator)
    progress = queue.progress(annotator)._asdict()
    pair = None if shown is None else _pair(queue, shown)
    if pair and said and said.pair_id == pair["pair_id"]:
        said = said if said.shown_first == "a" else said.swapped()
        names = ("verdict", "confidence", "flag", "comment")
        pair["said"] = {name: getattr(said, name) for name in names}
    return {"annotator": annotator, "pair": pair, "progress": progress}


def _pair(queue: Queue, shown: Shown) -> State:
    pair = queue.store.pair(shown.pair_id)
    sides: dict[Side, Content] = {"a": pair.a, "b": pair.b}
    second: Side = "b" if shown.first == "a" else "a"
    sided = {"left": sides[shown.first], "right": sides[second]}
    return {"pair_id": pair.pair_id, "prompt": pair.prompt, **sided, "said": None}


# Routes.


def _served(path: str, text: str, kind: str) -> Route:
    async def serve(request: Request) -> Response:
        return Response(text, media_type=kind)

    return Route(path, serve, methods=["GET"])


def _asked(path: str, answer: Callable[[Queue, Asked], State], queue: Queue) -> Route:
    async def serve(request: Request) -> Response:
        try:
            body = await _body(request)
        except BadRow as error:
            return JSONResponse({"error": str(error)}, 400)
        return await run_in_threadpool(_answered, answer, queue, body)

    return Route(path, serve, methods=["POST"])


def _answered(answer: Callable[[Queue, Asked], State], queue: Queue, body: Any) -> Response:
    """The answer, or what is wrong; with 409 comes what to look at instead."""
    try:
        asked = Asked(body, queue)
        try:
            return JSONResponse(answer(queue, asked))
        except BadRow:
            raise
        except (AlreadyJudged, DataError) as error:
            instead = state(queue, asked.annotator)
            return JSONResponse({"error": str(error), "state": instead}, 409)
    except BadRow as error:
        return JSONResponse({"error": str(error)}, 400)
    except sqlite3.Error as error:
        return JSONResponse({"error": f"not saved: {error}"}, 503)


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object that was sent. A form of another site could not send this type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRow("wrong type", f"the request must be application/json, not {shorten(kind)}")
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > LARGEST_REQUEST:
            raise BadRow("too large", f"a request has at most {LARGEST_REQUEST} bytes")
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no Unicode
    except UnicodeEncodeError as error:
        raise BadRow("not valid Unicode", shorten(str(error))) from None
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed JSON", shorten(str(error))) from None
    if not isinstance(body, dict):
        raise BadRow("wrong type", "the request must be an object")
    return body


def _file(name: str) -> str:
    return resources.files("jaxrlhf.labelling").joinpath("page", name).read_text("utf-8")
