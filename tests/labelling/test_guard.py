"""Who may talk to the page, and what a text on it may do: nothing."""

import re
from importlib import resources

import pytest
from labels import pairs

from jaxrlhf.labelling.queue import Queue
from jaxrlhf.labelling.store import Store

pytest.importorskip("starlette", reason="the page needs: pip install 'jaxrlhf[label]'")
pytest.importorskip("uvicorn", reason="the page needs: pip install 'jaxrlhf[label]'")
from page_server import serving

from jaxrlhf.labelling import guard

TOKEN = "a-token-of-enough-letters"
PATHS = ("/", "/page.js", "/style.css", "/icon.svg", "/nothing", "/api/next")
JSON = "application/json"
NEXT = '{"annotator": "ann"}'


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("guard") / "labels.sqlite") as store:
        store.add(pairs(3))
        yield Queue(store)


@pytest.fixture(scope="module")
def server(queue):
    with serving(queue) as server:
        yield server


@pytest.fixture(scope="module")
def closed(queue):
    """A server that wants the token."""
    with serving(queue, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    "host", ["localhost:{}", "localhost", "127.0.0.1:{}", "[::1]:{}", "127.3.2.1"]
)
def test_this_machine_is_served(server, host):
    assert server.request("GET", "/", host=host.format(server.port)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""),
        *("[::1", "2130706433", "localhost@evil.example", "evil.example:80", "192.168.0.7"),
    ],
)
def test_a_name_that_is_made_to_point_here_is_not(server, host):
    """DNS rebinding: the browser says the attacker's name, whatever address that has."""
    for path in PATHS:
        assert server.request("GET", path, host=host).status in (400, 403)
    answer = server.request("POST", "/api/next", NEXT, host=host, content_type=JSON)
    assert answer.status in (400, 403) and "pair" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser: curl, say
        ({"origin": "http://localhost:{}", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://evil.example/localhost:{}"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "none"}, 403),
        ({"content_type": "text/plain"}, 400),
        ({"content_type": "application/x-www-form-urlencoded"}, 400),
        ({"content_type": ""}, 400),
    ],
)
def test_another_site_in_the_same_browser_changes_nothing(server, headers, status):
    headers = {name: value.format(server.port) for name, value in headers.items()}
    answer = server.request("POST", "/api/next", NEXT, **{"content_type": JSON} | headers)
    assert answer.status == status, answer.text


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_told(closed, path):
    for said in ({}, {"cookie": f"{guard.COOKIE}=wrong"}, {"authorization": "Bearer wrong"}):
        for method, body in (("GET", None), ("POST", NEXT), ("DELETE", None)):
            answer = closed.request(method, path, body, content_type=JSON, **said)
            assert answer.status == 401 and "pair" not in answer.text


@pytest.mark.parametrize(
    "wrong", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), f" {TOKEN[1:]}", "%C3%A9" * 20, "None"]
)
def test_only_the_whole_token_opens(closed, wrong):
    assert closed.request("GET", f"/?token={wrong.replace(' ', '+')}").status == 401
    assert closed.request("GET", "/", cookie=f"{guard.COOKIE}={wrong}").status == 401
    assert closed.request("GET", "/", authorization=f"Bearer {wrong}").status == 401
    assert closed.request("GET", "/", authorization=f"Basic {TOKEN}").status == 401


def test_the_link_sets_a_cookie_that_opens_and_leaves_the_address(closed):
    answer = closed.request("GET", f"/?token={TOKEN}", host="somewhere.example")
    assert (answer.status, answer.headers["location"], answer.text) == (303, "/", "")
    cookie, *rules = answer.headers["set-cookie"].split("; ")
    assert cookie == f"{guard.COOKIE}={TOKEN}"
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(rules)
    for said in ({"cookie": f"other=1; {cookie}"}, {"authorization": f"bearer {TOKEN}"}):
        assert closed.request("GET", "/", host="somewhere.example", **said).status == 200
        assert closed.request("POST", "/api/next", NEXT, content_type=JSON, **said).status == 200
        # Even with the cookie, which a browser may send along, another site changes nothing.
        crossed = {"content_type": JSON, "origin": "http://evil.example", **said}
        assert closed.request("POST", "/api/next", NEXT, **crossed).status == 403
    # In the address it counts for looking only: addresses are logged, and sent by forms.
    assert closed.request("POST", f"/?token={TOKEN}", NEXT, content_type=JSON).status == 401


def test_tokens_are_compared_in_constant_time(queue, monkeypatch):
    seen = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    watched = guard.Guard(None, token=TOKEN)  # type: ignore[arg-type]
    assert watched.knows(TOKEN) and not watched.knows("x")
    assert seen == [(TOKEN.encode(), TOKEN.encode()), (b"x", TOKEN.encode())]


@pytest.mark.parametrize(
    "path",
    [
        *("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/page.js/../../app.py", "/app.py"),
        *("//etc/passwd", "/page/index.html", "/index.html", "/page.js%00", "/\\..\\app.py"),
        *("/../../../../../../etc/passwd", "/%2fetc%2fpasswd", "/api", "/api/", "/guideline.md"),
    ],
)
def test_no_address_names_a_file(server, path):
    answer = server.request("GET", path)
    assert answer.status in (400, 404), answer.text
    assert "root:" not in answer.text and "import" not in answer.text


def test_every_answer_has_the_headers_that_forbid(server, closed):
    for answer in (
        *(server.request("GET", path) for path in PATHS),
        server.request("GET", "/", host="evil.example"),
        server.ask("verdict", pair_id=3),
        closed.request("GET", "/"),
        closed.request("GET", f"/?token={TOKEN}"),
    ):
        policy = dict(
            rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and policy["style-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_title_and_guideline_are_text(queue):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    links = "[a](javascript:alert(3)) [b](data:text/html,x) ![c](https://evil.example/x.png)"
    with serving(
        queue, title=f"<b>{evil}", guideline=f"# Hello\n\n*so* {evil}\n\n{links}"
    ) as server:
        page = server.request("GET", "/").text
    assert "<h1>Hello</h1>" in page and "<em>so</em>" in page
    assert evil not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1 and "<b>" not in page
    assert not re.search(r'href="(javascript|data):', page)


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_html_of_text():
    folder = resources.files("jaxrlhf.labelling") / "page"
    files = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    assert set(files) == {"index.html", "page.js", "style.css", "icon.svg", "guideline.md"}
    for name, text in files.items():
        found = set(re.findall(r"(?:https?:)?//[\w.]+[\w/.]*", text.replace("// ", "")))
        assert found <= {"http://www.w3.org/2000/svg"}, name
    script, page = files["page.js"], files["index.html"]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
    # What the policy would refuse anyway: code and styles inside the page.
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! src)", page)
