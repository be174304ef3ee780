"""A real Chromium, driven over its debugging pipe: open a page, press keys, look, close the window.

Only what the tests of the labelling page need. There is no browser library behind it: Chromium
speaks JSON, ended by a zero byte, on two file descriptors.
"""

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
# Chromium listens on descriptor 3 and speaks on 4: put ours there, past each other, and become it.
START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for wanted, end in zip((3, 4), high):
    os.dup2(end, wanted)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
# key -> (key, code, virtual key code, text)
NAMED = {
    "Enter": ("Enter", "Enter", 13, "\r"),
    "Escape": ("Escape", "Escape", 27, ""),
    "Tab": ("Tab", "Tab", 9, ""),
}
PATIENCE = 180.0  # for a machine that has much else to do


def find() -> str | None:
    """The program, or None where there is no Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process with a profile of its own."""

    def __init__(self, program: str, profile: Path):
        there, ours = os.pipe(), os.pipe()
        pipe = there[0], ours[1]
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, pipe), *command],
            pass_fds=pipe,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(profile), "XDG_CONFIG_HOME": str(profile)},
        )
        for end in pipe:
            os.close(end)
        self._out = os.fdopen(there[1], "wb")
        self._in = os.fdopen(ours[0], "rb")
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for it to be done."""
        number = next(self._numbers)
        self._answers[number] = queue.Queue()
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        answer = self._answers[number].get(timeout=PATIENCE)
        del self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, url: str) -> "Page":
        """A new window of a new, separate profile: another person's browser."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        made = self.send("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.send("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        page = Page(self, made["targetId"], session["sessionId"])
        page.go(url)
        return page

    def kill(self) -> None:
        """As if the machine had been switched off."""
        self.process.kill()
        self.process.wait()
        self._out.close()

    def _listen(self) -> None:
        buffer = b""
        while part := self._in.read1(1 << 16):
            buffer += part
            *messages, buffer = buffer.split(b"\0")
            for message in map(json.loads, messages):
                if waiting := self._answers.get(message.get("id")):
                    waiting.put(message)
        self._in.close()


class Page:
    """A window."""

    def __init__(self, browser: Browser, target: str, session: str):
        self.browser, self.target, self.session = browser, target, session
        self.send("Page.enable")
        self.size(1280, 900)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)

    def js(self, expression: str) -> Any:
        """What an expression is, on the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, element: str) -> str:
        """The visible text of the element with this id."""
        return self.js(f"document.getElementById({element!r}).innerText")

    def until(self, expression: str) -> None:
        """Wait for something to be true."""
        end = time.monotonic() + PATIENCE
        while not self.js(expression):
            assert time.monotonic() < end, f"{expression} did not come true: {self.text('message')}"
            time.sleep(0.01)

    def press(self, *keys: str) -> None:
        """Press keys one after another, as a person does."""
        for key in keys:
            name, code, number, text = NAMED.get(key) or _plain(key)
            event = {"key": name, "code": code, "windowsVirtualKeyCode": number}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Put text in where the cursor is."""
        self.send("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)


def _plain(key: str) -> tuple[str, str, int, str]:
    code = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
    return key, code, ord(key.upper()), key
