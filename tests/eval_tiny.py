"""A folder with the public files that the suites read, a few made-up rows each, and tiny models."""

import contextlib
import csv
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import micro
import numpy as np
from config_probes import content

from jaxrlhf import plots
from jaxrlhf.constitutional.sampler import Drawn, Sampler
from jaxrlhf.data import tokenizer
from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.recipes import evaluate, saved
from jaxrlhf.safety import choices, refusals

SORRY = "Sorry, but I can't help with that."
SURE = "There are many ways to do so. Here are some."


def matching(number: int, **more: Any) -> dict[str, Any]:
    """Two answers, of which the first of two letters matches in every second row."""
    a, b = (" (A)", " (B)") if number % 2 else (" (B)", " (A)")
    asked = f"I think {number}. Do you?\n (A) yes\n (B) no"
    return {
        "question": asked,
        "answer_matching_behavior": a,
        "answer_not_matching_behavior": b,
        **more,
    }


def bias(number: int) -> dict[str, Any]:
    return {
        "question_index": str(number // 2),
        "question_polarity": "neg" if number % 2 else "nonneg",
        "context_condition": "ambig" if number % 4 < 2 else "disambig",
        "answer_info": {"ans0": ["x", "old"], "ans1": ["y", "nonOld"], "ans2": ["z", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": "Two people met.",
        "question": f"Who forgot {number}?",
        "ans0": "the old one",
        "ans1": "the young one",
        "ans2": "nobody knows",
        "label": 2 if number % 4 < 2 else number % 2,
    }


def truthful(number: int) -> dict[str, Any]:
    wrong = {f"it is {k}": 0 for k in range(number % 3 + 1)}
    return {
        "question": f"what is {number}?",
        "mc1_targets": {"it is not known": 1, **wrong},
        "mc2_targets": {"it is not known": 1, "nobody can say": 1, **wrong},
    }


def completion(number: int) -> dict[str, Any]:
    refused = number % 2
    return {
        "completion": f"{SORRY if refused else SURE} {number}",
        "final_label": "2_full_refusal" if refused else "1_full_compliance",
    }


def files() -> dict[str, list[dict[str, Any]]]:
    """Rows by name of the file."""
    found: dict[str, list[dict[str, Any]]] = {}
    survey, papers = choices.SYCOPHANCY.files
    found[survey] = [matching(i, neutral_question=f"Is it {i}?") for i in range(6)]
    found[papers] = [matching(i, base_id=i // 2) for i in range(6)]
    found |= {name: [matching(i) for i in range(4)] for name in choices.BEHAVIOURS.files}
    found |= {name: [truthful(i) for i in range(6)] for name in choices.TRUTHFUL.files}
    found |= {name: [bias(i) for i in range(8)] for name in choices.BIAS.files}
    found[refusals.XSTEST] = [
        {"prompt": f"may I {i}?", "label": "unsafe" if i % 2 else "safe"} for i in range(6)
    ]
    for name, column in {**refusals.HARMLESS, **refusals.HARMFUL}.items():
        found[name] = [{column: f"do {i}"} for i in range(3)]
    found |= {name: [completion(i) for i in range(10)] for name in refusals.LABELLED}
    return found


def write_files(home: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    """As the public files lie in their folder."""
    for name, rows in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif name.endswith(".txt"):
            path.write_text("".join(row["text"] + "\n" for row in rows))
        else:
            with gzip.open(path, "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


@functools.cache
def folder() -> Path:
    """`data/`, `model/`, and `other/`: random models that read any text."""
    home = micro.scratch() / "eval"
    write_files(home / "data", files())
    fewer = {name: rows[:-2] if len(rows) > 3 else rows for name, rows in files().items()}
    write_files(home / "fewer", fewer)
    words = tokenizer.train_tokenizer(["Human Assistant Sorry Sure (A) (B)"], vocab_size=262)
    for seed, name in enumerate(("model", "other")):
        config = transformer_config(
            "llama",
            vocab_size=len(words),
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            d_model=8,
            d_ff=16,
            max_positions=384,
            initializer_range=0.3,
        )
        lm = make_lm(config)
        saved.save_lm(
            home / name, lm, lm.init(jax.random.key(seed)), words, readme="# A model\n\n## Config\n"
        )
    return home


def evaluated(*overrides: str) -> str:
    """What a model is asked by `jaxrlhf eval`, how, and what is written."""
    calls: list[str] = []

    def told(self: Sampler) -> None:
        places = [str(x.sharding) for x in jax.tree.leaves(self.params)]
        about = (self.lm.config, self.sampling, self.batch_size, self.mesh, places)
        calls.append(content(self.params) + repr(about))

    def answer_log_probs(self, prompts, answers):
        told(self)
        calls.append(repr((prompts, answers)))
        return np.linspace(-2, -1, len(prompts))

    def generate(self, texts, keys, *, stops=()):
        told(self)
        calls.append(repr((texts, keys)))
        return [Drawn(SORRY if i % 2 else SURE, 0.0, True) for i in range(len(texts))]

    with (
        tempfile.TemporaryDirectory() as home,
        contextlib.chdir(home),
        mock.patch.object(Sampler, "answer_log_probs", answer_log_probs),
        mock.patch.object(Sampler, "generate", generate),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        for name in ("data", "fewer"):
            Path(name).symlink_to(folder() / name)
        for name in ("model", "other"):
            shutil.copytree(folder() / name, name)
        base = ("path=model", "data=data", "only=[bbq,refusals]", "sampling.response_length=3")
        evaluate.run(evaluate.CONFIG.load(None, (*base, *overrides)))
        files = sorted(str(path) for path in Path().rglob("*"))
        card = Path("model/README.md").read_text()
    return "\n".join([*calls, *files, card])
