"""`jaxrlhf label` and `convert-labels`, asked what a change of a field does to them."""

import contextlib
import functools
import json
import socket
from pathlib import Path
from unittest import mock

import labels
import pytest
from config_probes import Overrides, new_folder

from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import Verdict
from jaxrlhf.labelling.store import Store
from jaxrlhf.recipes import convert_labels, label


@functools.cache
def material() -> Path:
    """Files of pairs, a guideline, an order, and a store with verdicts."""
    folder = new_folder()
    pairs = [labels.pair(number, priority=float(number)) for number in range(6)]
    rows = [{**records.to_row(pair), "priority": pair.priority} for pair in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    turned = [{"prompt": row["prompt"], "first": row["a"], "b": row["b"]} for row in rows]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, turned)))
    (folder / "guideline.md").write_text("Be fair.")
    with Store(folder / "verdicts.sqlite") as store:
        store.add(pairs)
        for number, choice in enumerate((4, -2, "tie", "both_bad")):
            store.record(Verdict(pairs[number].pair_id, "ann", choice))
    preferences = [{"prompt": "p", "chosen": "x", "rejected": "y"}]
    (folder / "preferences.jsonl").write_text("\n".join(map(json.dumps, preferences)))
    return folder


def labelled(*overrides: str) -> str:
    """Where the page is served, what it says, and which pairs two people get."""
    page_server = pytest.importorskip("page_server", reason="needs the extra `label`")
    seen = []

    def listen(host: str, port: int) -> socket.socket:
        seen.append((host, port))
        return socket.create_server(("127.0.0.1", 0))

    def serve(app, listening) -> None:
        seen.append(app.token)
        app.token = None
        with page_server.running(app, listening) as server:
            seen.append(server.request("GET", "/").text)
            for name in ("ann", "bob"):
                state = server.ask("next", name).json
                seen.append(state)
                body = {"pair_id": state["pair"]["pair_id"], "verdict": 1}
                seen.append(server.ask("verdict", name, **body).json)

    home = new_folder()
    base = (f"store={home}/labels.sqlite", "pairs=[pairs.jsonl]")
    with contextlib.chdir(material()), mock.patch.object(label, "listen", listen):
        label.run(label.CONFIG.load(None, (*base, *overrides)), serve=serve)
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    return repr([*seen, files])


def converted(*overrides: str) -> str:
    """The file that is written."""
    home = new_folder()
    base: Overrides = ("input=[verdicts.sqlite]", f"output={home}/out.jsonl")
    with contextlib.chdir(material()):
        convert_labels.run(convert_labels.CONFIG.load(None, (*base, *overrides)))
    return repr([(path.name, path.read_text()) for path in home.iterdir()])
