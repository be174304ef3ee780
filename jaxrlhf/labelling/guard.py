"""Who may talk to the page's server: a wrapper round the app that sees every request first.

Three ways in are closed. *Another machine*: without a token only loopback names are served, and
with one every request needs it, as a cookie that the link `/?token=...` sets or as a bearer.
*Another site in the same browser*: a request that changes something must come from a page of this
very origin (Origin, Sec-Fetch-Site), and a name that an attacker's DNS points at loopback is not a
loopback name (Host). *A text that is not only a text*: the headers of every answer forbid scripts,
styles, frames, forms and connections that are not the page's own, and the making of HTML from text.

Nothing here encrypts; between machines put TLS or `ssh -L` in between.
"""

import hmac
import ipaddress
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "jaxrlhf_label"
SAFE = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """`app`, for those who may. Without a `token` that is whoever sits at this machine."""

    def __init__(self, app: ASGIApp, *, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self.answer(Request(scope)) or self.app
            await answer(scope, receive, guarded(send))
        # Nothing else (a web socket) is spoken here: no answer closes it.

    def answer(self, request: Request) -> Response | None:
        """What is said instead of the app's answer, or None."""
        if self.token is None and not is_loopback(hostname(request)):
            return refusal(403, "this page is served under localhost only")
        if request.method not in SAFE and not from_here(request):
            return refusal(403, "this request comes from another site")
        if self.token is None or self.knows(cookie(request)) or self.knows(bearer(request)):
            return None
        if request.method == "GET" and self.knows(request.query_params.get("token", "")):
            return self.welcome(request)
        return refusal(401, "open the link that `jaxrlhf label` printed: it ends in ?token=...")

    def knows(self, said: str) -> bool:
        """Whether this is the token; the time it takes does not tell how much of it is."""
        return hmac.compare_digest(said.encode(), str(self.token).encode())

    def welcome(self, request: Request) -> Response:
        """Put the token into a cookie and take it out of the address."""
        answer = RedirectResponse("/", status_code=303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, str(self.token), httponly=True, samesite="lax", secure=secure)
        return answer


def is_loopback(host: str | None) -> bool:
    """Whether a name can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def from_here(request: Request) -> bool:
    """Whether a page of this server sent the request (or something that is no browser)."""
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def hostname(request: Request) -> str | None:
    """The name that the browser was given for this server, without its port."""
    try:
        return urlsplit("//" + request.headers.get("host", "")).hostname
    except ValueError:
        return None


def cookie(request: Request) -> str:
    found = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    return found.value if found else ""


def bearer(request: Request) -> str:
    kind, _, said = request.headers.get("authorization", "").partition(" ")
    return said.strip() if kind.lower() == "bearer" else ""


def refusal(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status)


def guarded(send: Send) -> Send:
    """`send`, with `HEADERS` in every answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending
