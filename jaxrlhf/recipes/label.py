"""`jaxrlhf label STORE pairs=[FILE]`: a local web page on which people compare answers.

    jaxrlhf label labels.sqlite pairs=[runs/sample/samples.jsonl] guideline=guideline.md
    jaxrlhf convert-labels input=[labels.sqlite] output=preferences.jsonl

Several people may work at once, each under a name. A verdict is on the disk, in the SQLite file
STORE, before the page moves on; stop and start the command as you like. Pairs come from files of
`jaxrlhf sample`, from rows with `prompt`, `a` and `b`, and from TRL's, Label Studio's or Argilla's
files; those the store knows already are not added twice, and verdicts in the files are not taken.

The page is served to this machine alone. With another `host` a token is needed, which the printed
link carries; traffic is not encrypted, so across a network that is not yours use `ssh -L` or TLS.
"""

import contextlib
import importlib.util
import secrets
import socket
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.labelling import formats, queue
from jaxrlhf.labelling.store import Store
from jaxrlhf.progress import console
from jaxrlhf.recipes import blocks

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NEEDS = ("starlette", "uvicorn", "markdown_it")  # the extra `label`
Serve = Callable[["ASGIApp", socket.socket], None]


class LabelConfig(Config):
    """What is shown, to whom, and where."""

    store: str | None = Field(default=None, description="SQLite file of verdicts; made if missing")
    pairs: tuple[str, ...] = Field(
        default=(), description="files of pairs to add; none: what the store has"
    )
    columns: dict[str, str] = Field(
        default={}, description="our column name -> the files', where they differ"
    )
    guideline: str | None = Field(
        default=None, description="Markdown file to judge by; null: a short general one"
    )
    title: str = Field(default="Which answer is better?", description="of the page")
    next: str = Field(
        default="file",
        description="order of the pairs: file, random, priority (that column of the pairs), a file "
        "of pair_id and priority, or a function as module:name",
    )
    overlap: int = Field(default=1, ge=1, description="people who judge each pair")
    patience: float = Field(
        default=30.0, gt=0, description="minutes until an unanswered pair goes to somebody else"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="draws which answer is left, and a random order"
    )
    host: str = Field(default="127.0.0.1", description="address that is listened on")
    port: int = Field(default=8642, ge=0, le=65535, description="port; 0: any that is free")
    token: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.~-]{16,}$",
        description="secret that the link carries, 16 letters or more; null: none on this machine "
        "alone, else a new one each time",
    )


CONFIG = LabelConfig
EXAMPLE = "jaxrlhf label labels.sqlite pairs=[runs/sample/samples.jsonl] overlap=2"


def run(config: LabelConfig, *, serve: Serve | None = None) -> dict[str, Any]:
    """Serve the page until Ctrl-C; how many pairs and verdicts there are then.

    `serve(app, listening)` runs the app and returns when it is done; by default that is uvicorn.
    """
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"jaxrlhf label needs the Python package {package!r}: pip install 'jaxrlhf[label]'"
            )
    from jaxrlhf.labelling import app, guard

    path = blocks.required("store", config.store)
    guideline = read_guideline(config.guideline)
    found = formats.read(config.pairs, columns=config.columns).pairs if config.pairs else []
    if not found and not Path(path).exists():
        raise ConfigError(f"pairs: name at least one file; there is no {path} yet")
    with Store(path) as store:
        added = store.add(found)
        if not store.pairs():
            raise ConfigError(f"pairs: name at least one file; {path} has no pairs")
        queue.arrange(store, config.next, seed=config.seed)
        waiting = queue.Queue(
            store, overlap=config.overlap, patience=60 * config.patience, seed=config.seed
        )
        page = app.make_app(waiting, title=config.title, guideline=guideline)
        token = config.token
        if token is None and not guard.is_loopback(config.host):
            token = secrets.token_urlsafe(24)
        with listen(config.host, config.port) as listening:
            console.print(
                f"{path}: {len(store.pairs())} pairs, {added} of them new", soft_wrap=True
            )
            with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
                console.print(
                    f"open {link(config.host, listening, token)}   (Ctrl-C ends)", soft_wrap=True
                )
                (serve or uvicorn)(guard.Guard(page, token=token), listening)
        summary = {"pairs": len(store.pairs()), "verdicts": len(store.verdicts())}
    console.print(f"{path}: {summary['verdicts']} verdicts on {summary['pairs']} pairs")
    return summary


def read_guideline(path: str | None) -> str:
    """The Markdown of the guideline."""
    if path is None:
        return (
            resources.files("jaxrlhf.labelling").joinpath("page", "guideline.md").read_text("utf-8")
        )
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"guideline = {path}: {error}") from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
      ConfigError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"host = {host}, port = {port}: {error.strerror or error}") from None


def link(host: str, listening: socket.socket, token: str | None) -> str:
    """The address to open."""
    if host in ("0.0.0.0", "::"):  # all of this machine's addresses: it is none itself
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")


def uvicorn(app: "ASGIApp", listening: socket.socket) -> None:
    """Serve until a signal says stop."""
    import uvicorn as server

    config = server.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    server.Server(config).run(sockets=[listening])
