"""People in a real Chromium, and `jaxrlhf label` in a process of its own.

Debian's package `chromium` is enough; without a Chromium these tests say so and do nothing.
"""

import json
import re
from collections import Counter
from pathlib import Path

import micro
import pytest
from browser import Browser, find

from jaxrlhf.labelling.store import Store

pytest.importorskip("starlette", reason="the page needs: pip install 'jaxrlhf[label]'")
pytest.importorskip("uvicorn", reason="the page needs: pip install 'jaxrlhf[label]'")
PROGRAM = find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")

WORKING, DONE = (f"document.body.dataset.screen === '{name}'" for name in ("work", "done"))
# The verdict that a key gives, positive where the left answer is better.
KEYS = {"1": 4, "2": 3, "3": 2, "4": 1, "5": -1, "6": -2, "7": -3, "8": -4, "t": "tie"}
KEYS |= {"b": "both_bad"}


class LabelServer:
    """`jaxrlhf label` in a process; `kill` is kill -9."""

    def __init__(self, folder: Path, *argv: str, port: int = 0):
        argv = ("label", "labels.sqlite", f"port={port}", *argv)
        self.process = micro.child(folder, *argv)
        said = ""
        while not (found := re.search(r"open (http://127.0.0.1:(\d+)/\S*)", said)):
            line = self.process.stdout.readline()
            assert line, f"it ended: {said}"
            said += line
        self.url, self.port = found.group(1), int(found.group(2))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def started(tmp_path):
    """What was started, to be ended."""
    things = []

    def start(thing):
        things.append(thing)
        return thing

    start.browser = lambda name: start(Browser(PROGRAM, tmp_path / name))
    yield start
    for thing in things:
        if thing.process.poll() is None:
            thing.kill()


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


class Person:
    """Somebody at a page; remembers what they meant, as the row should have it."""

    def __init__(self, page, name: str):
        self.page, self.name, self.meant = page, name, {}
        page.until("document.activeElement.id === 'name'")
        page.js("document.getElementById('name').value = ''")
        page.write(name)
        page.press("Enter")
        page.until(f"{WORKING} || {DONE}")

    @property
    def count(self) -> int:
        return self.page.js("state.progress.mine")

    def judge(self, key: str, *, confirm: bool = True) -> None:
        """Press a key, and Enter; wait until the page has moved on."""
        before, prompt = self.count, self.page.text("prompt")
        left = self.page.text("left")
        self.page.press(key)
        if confirm:
            self.page.press("Enter")
            self.page.until(f"state.progress.mine === {before + 1}")
        self.meant[prompt] = (left, KEYS[key])


def test_two_people_label_twenty_pairs_and_nothing_is_lost_or_doubled(tmp_path, started):
    """Ann's browser dies half-way, with a verdict chosen and not saved; then the server dies."""
    rows = [{"prompt": f"p{i}", "a": f"{i} first", "b": f"{i} second"} for i in range(20)]
    write(tmp_path / "pairs.jsonl", rows)
    server = started(LabelServer(tmp_path, "pairs=[pairs.jsonl]"))
    of_ann, of_bob = started.browser("ann"), started.browser("bob")
    ann, bob = Person(of_ann.open(server.url), "Ann"), Person(of_bob.open(server.url), "Bob")
    for key_of_ann, key_of_bob in zip("1t358", "62b47", strict=True):
        ann.judge(key_of_ann)
        bob.judge(key_of_bob)
    unsaved = ann.page.text("prompt")
    ann.judge("2", confirm=False)
    of_ann.kill()
    assert unsaved in ann.meant and ann.meant.pop(unsaved)

    server.kill()
    prompt, left = bob.page.text("prompt"), bob.page.text("left")
    bob.page.press("3", "Enter")
    bob.page.until("!document.getElementById('message').hidden")
    assert "not saved" in bob.page.text("message") and bob.page.text("prompt") == prompt
    # 0.06 seconds of patience: what Ann left open is now Bob's when he comes to it.
    server = started(LabelServer(tmp_path, "patience=0.001", port=server.port))
    bob.page.press("Enter")  # the choice is still there
    bob.page.until("state.progress.mine === 6")
    bob.meant[prompt] = (left, KEYS["3"])
    while bob.page.js(WORKING):
        bob.judge("7" if bob.count % 2 else "1")
    assert bob.count == 15 and unsaved in bob.meant

    ann_again = Person(started.browser("again").open(server.url), "ann")
    assert ann_again.page.js(DONE) and "Ann: 5 verdicts" in ann_again.page.text("thanks")
    server.kill()

    with Store(tmp_path / "labels.sqlite") as store:
        pairs = {pair.pair_id: pair for pair in store.pairs()}
        history = store.history()
    assert len(pairs) == len(history) == 20
    assert Counter(one.verdict.annotator for one in history) == {"Ann": 5, "Bob": 15}
    assert {one.verdict.pair_id for one in history} == set(pairs)
    meant = ann.meant | bob.meant
    firsts = Counter()
    for one in history:
        pair, verdict = pairs[one.verdict.pair_id], one.verdict
        left, key = meant[pair.prompt]
        assert left == getattr(pair, verdict.shown_first)
        assert (verdict if verdict.shown_first == "a" else verdict.swapped()).verdict == key
        assert 0 <= verdict.seconds < 60
        firsts[verdict.shown_first] += 1
    assert min(firsts.values()) >= 3  # 20 fair draws: all but 1 in 2,500 times


EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&lt;b&gt;"
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": f"Hello {EVIL}"},
]


def test_texts_are_shown_to_the_letter_and_run_nothing(tmp_path, started):
    answers = [[{"role": "assistant", "content": f"{x}\n  two\t{EVIL}"}] for x in "xy"]
    write(tmp_path / "pairs.jsonl", [{"prompt": CHAT, "a": answers[0], "b": answers[1]}])
    (tmp_path / "guide.md").write_text(f"## Be fair\n\n{EVIL}\n")
    server = started(
        LabelServer(tmp_path, "pairs=[pairs.jsonl]", "guideline=guide.md", f"title={EVIL}")
    )
    page = started.browser("ann").open(server.url)
    Person(page, "Ann")
    shown = page.js(
        "['prompt', 'left', 'right'].map(id => document.getElementById(id).textContent)"
    )
    assert shown[0] == f"systemBe kind.userHello {EVIL}"
    assert sorted(shown[1:]) == [f"{x}\n  two\t{EVIL}" for x in "xy"]
    assert f"\n  two\t{EVIL}" in page.text("left")  # as it looks: line ends and spaces too
    assert page.js("document.querySelectorAll('img, script:not([src]), b').length") == 0
    assert page.js("document.title") == EVIL and EVIL[:60] in page.text("guideline")
    assert page.js("window.hacked") is None
    # The page cannot even be made to make HTML of text, and asked nobody else for anything.
    tried = (
        "(() => { try { document.body.innerHTML = '<b>'; return 'made' } catch { return 'no' } })()"
    )
    assert page.js(tried) == "no"
    loaded = page.js("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {url.removeprefix(server.url) for url in loaded} >= {"page.js", "style.css", "api/next"}
    assert all(url.startswith(server.url) for url in loaded)


def test_everything_can_be_done_with_keys(tmp_path, started):
    write(tmp_path / "pairs.jsonl", [{"prompt": f"p{i}", "a": "x", "b": "y"} for i in range(2)])
    token = "a-token-of-enough-letters"
    server = started(LabelServer(tmp_path, "pairs=[pairs.jsonl]", f"token={token}"))
    assert server.url.endswith(f"?token={token}")
    page = started.browser("ann").open(server.url)
    assert token not in page.js("location.href + document.cookie")
    Person(page, "Ann")

    page.press("Enter")
    assert "Choose first" in page.text("message")
    page.press("g")
    assert page.js("document.getElementById('guideline').hidden") is True
    page.press("g", "3", "w", "f", "c")
    page.write("8 b t z Enter")  # what is written is no command
    page.press("8", "Enter", "Escape", "6")
    assert page.js("document.getElementById('right').className") == "card text better"
    page.press("Enter")
    page.until("state.progress.mine === 1")
    assert page.js("chosen('verdict')") is None and page.js("chosen('confidence')") is None
    assert page.js("document.getElementById('flag').checked || $('comment').value !== ''") is False

    page.press("z")
    page.until("state.progress.mine === 0")
    assert page.js("[chosen('verdict'), chosen('confidence'), $('flag').checked]") == [
        "-2",
        "2",
        True,
    ]
    assert page.js("$('comment').value").startswith("8 b t z Enter8")
    page.press("1", "w", "f", "Enter")  # better so; a second W and F take back
    page.until("state.progress.mine === 1")
    page.press("b", "Enter")
    page.until(DONE)
    server.kill()
    with Store(tmp_path / "labels.sqlite") as store:
        first, second = store.verdicts()
        assert len(store.history()) == 3
    assert first.verdict == (4 if first.shown_first == "a" else -4)
    assert (first.confidence, first.flag) == (None, False)
    assert second.verdict == "both_bad"
