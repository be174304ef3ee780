"""Small files of battles and verdicts, and the commands that rate, for tests of both.

A probe runs a command in a folder of its own and returns the text of what it wrote there, or what
it refused.
"""

import contextlib
import functools
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jaxrlhf import plots
from jaxrlhf.errors import UserError
from jaxrlhf.recipes import RECIPES

STRENGTH = {"base": -0.5, "sft": 0.2, "ppo": 0.9}


def verdicts(*, prompts: int = 12, each: int = 9, seed: int = 0) -> list[dict[str, Any]]:
    """Verdicts of three annotators, one of whom says the opposite, on answers of three models.

    Every pair is judged by all; the stronger model wins mostly, ties are one in ten.
    """
    rng, rows = np.random.default_rng(seed), []
    for prompt in range(prompts):
        for n in range(each // 3):
            a, b = rng.choice(list(STRENGTH), 2, replace=False)
            better = rng.random() < 1 / (1 + np.exp(2 * (STRENGTH[b] - STRENGTH[a])))
            for annotator in ("ann", "bob", "eve"):
                right = rng.random() < 0.9
                sign = 1 if (better == right) != (annotator == "eve") else -1
                tie = rng.random() < 0.1
                rows.append(
                    {
                        "pair_id": f"{prompt}-{n}",
                        "prompt": f"question {prompt}",
                        "a": f"the {a} answer " + "- and so on " * int(rng.integers(4)),
                        "b": f"the {b} answer " + "- and so on " * int(rng.integers(4)),
                        "model_a": a,
                        "model_b": b,
                        "annotator": annotator,
                        "verdict": "tie" if tie else int(sign * rng.integers(1, 5)),
                        "shown_first": "ab"[int(rng.integers(2))],
                        "cost_a": 1.0 + prompt % 3,
                        "cost_b": 2.0,
                    }
                )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def renamed(row: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


@functools.cache
def texts() -> dict[str, str]:
    """Name -> content of the files that probes use."""
    rows = verdicts()
    wide = [
        {"prompt": "q", "a": f"one {i}", "b": f"two {i}", "one": x, "two": y, "three": z}
        for i, (x, y, z) in enumerate([(1, 1, 2), (2, 2, 2), (1, 2, 0), (1, 1, 1)] * 4)
    ]
    files = {
        "verdicts": rows,
        "fewer": rows[:60],
        "swapped": [renamed(row, model_a="player", a="text_a", b="text_b") for row in rows],
        "words": [
            row | {"verdict": row["verdict"] if row["verdict"] == "tie" else "better"}
            for row in rows
        ],
        "bad": [*rows, {**rows[0], "pair_id": "9-9", "verdict": "perhaps"}],
        "wide": wide,
    }
    return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}


def run(recipe: str, *overrides: str) -> str:
    """What a command writes and returns, or why it refuses."""
    module = importlib.import_module(RECIPES[recipe].module)
    with (
        tempfile.TemporaryDirectory() as home,
        contextlib.chdir(home),
        mock.patch.object(plots, "png", lambda figure: b""),
    ):
        for name, text in texts().items():
            Path(f"{name}.jsonl").write_text(text)
        given = set(Path().rglob("*"))
        try:
            summary = module.run(module.CONFIG.load(None, overrides))
        except UserError as problem:
            return str(problem)
        made = sorted(path for path in set(Path().rglob("*")) - given if path.is_file())
        contents = [x.read_text() for x in made if x.suffix != ".png"]
        return repr((summary, [str(path) for path in made], contents))


ONLINE = ("online.orders=2",)
BOOTSTRAP = ("interval=bootstrap", "resamples=100")


def rated(*overrides: str) -> str:
    """`jaxrlhf elo`."""
    few = ("battles=verdicts.jsonl", "interval=fisher", "online.orders=0")
    return run("elo", *few, *overrides)


def judged(*overrides: str) -> str:
    """`jaxrlhf annotators`."""
    return run("annotators", "labels=verdicts.jsonl", *overrides)


def pooled(*overrides: str) -> str:
    """`jaxrlhf rate-answers`."""
    return run("rate-answers", "comparisons=verdicts.jsonl", *overrides)
