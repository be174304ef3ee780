"""A folder in which every command of `jaxrlhf cai` can run: tiny random models, a constitution in
the words of their tokenizer, prompts, samples and pairs. Made once a session."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import micro

from jaxrlhf import config_file
from jaxrlhf.data import tokenizer
from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.recipes import saved

LETTERS = tuple("abcdefgh")
WORDS = (*LETTERS, "ask", "wrong", "again", "which", "first", "second", "hm", "so")
CONSTITUTION: dict[str, Any] = {
    "name": "letters",
    "principles": [
        {"id": f"p{x}", "critique_request": f"wrong {x}", "revision_request": f"again {x}"}
        for x in "abcd"
    ],
    "comparisons": [{"id": f"c{x}", "question": f"which {x}"} for x in "abcd"],
    "layout": {
        "respond": "ask {prompt}",
        "critique": " {request}",
        "revise": " {request}",
        "compare": "{prompt} {question} {a} {b}",
        "options": [" first", " second"],
        "think": "{prompt} {question} {a} {b} hm",
        "conclude": " so",
        "stops": ["ask", "so"],
    },
    "critique_examples": [
        {
            "prompt": "a",
            "response": "b",
            "critique_request": "wrong c",
            "critique": "d",
            "revision_request": "again e",
            "revision": f,
        }
        for f in "fg"
    ],
    "comparison_examples": [{"prompt": "a", "better": "b", "worse": "c"}],
    "thought_examples": [{"prompt": "a", "a": "b", "b": "c", "reasoning": "d", "better": "a"}],
}
PROMPTS = [f"{x} {y}" for x in LETTERS for y in "abc"]  # 24


@functools.cache
def folder() -> Path:
    """`model/`, `other/`, `constitution.yaml`, and files of rows."""
    home = micro.scratch() / "cai"
    home.mkdir()
    words = tokenizer.word_tokenizer(WORDS)
    config = transformer_config(
        "llama",
        vocab_size=len(words),
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        d_model=8,
        d_ff=16,
        max_positions=64,
        initializer_range=0.4,
    )
    lm = make_lm(config)
    for seed, name in enumerate(("model", "other")):
        saved.save_lm(home / name, lm, lm.init(jax.random.key(seed)), words)
    write_yaml(home / "constitution.yaml", CONSTITUTION)
    fewer = {**CONSTITUTION, "principles": CONSTITUTION["principles"][:2]}
    fewer["comparisons"] = CONSTITUTION["comparisons"][2:]
    write_yaml(home / "fewer.yaml", fewer)
    answers = [
        [x, y, z, w]
        for x, y, z, w in zip("abcdefgh" * 3, "bcdefgha" * 3, "e" * 24, "f" * 24, strict=True)
    ]
    prompts = [{"prompt": prompt, "category": prompt[0]} for prompt in PROMPTS]
    write(home / "prompts.jsonl", prompts)
    write(home / "some_prompts.jsonl", prompts[:9])
    samples = [
        {"prompt": prompt, "responses": four} for prompt, four in zip(PROMPTS, answers, strict=True)
    ]
    write(home / "samples.jsonl", samples)
    write(home / "some_samples.jsonl", samples[:9])
    write(home / "helpful.jsonl", [{"prompt": x, "responses": [f"{x} h", "h"]} for x in PROMPTS])
    pairs = [
        {"prompt": prompt, "chosen": f" {x}", "rejected": f" {y} g", "kind": x}
        for prompt, (x, y, *_) in zip(PROMPTS, answers, strict=True)
    ]
    write(home / "pairs.jsonl", pairs)
    write(home / "renamed.jsonl", [{"question": x.pop("prompt"), **x} for x in map(dict, pairs)])
    return home


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_yaml(path: Path, values: dict) -> None:
    path.write_text(config_file.to_text(values))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ASK = (
    "model_path=model",
    "constitution=constitution.yaml",
    "batch_size=4",
    "keep_unfinished=true",
    "sampling.response_length=5",
    "output_dir=run",
)
BASE: dict[str, tuple[str, ...]] = {
    "cai critique-revise": (*ASK, "prompts.files=[prompts.jsonl]", "rounds=2"),
    "cai label": (*ASK, "samples=samples.jsonl"),
    "cai judge": (*ASK, "pairs.files=[pairs.jsonl]"),
}


def command(home: Path, name: str, *overrides: str) -> int:
    """`jaxrlhf cai ...` with the tiny settings in `home`; the exit code."""
    return micro.command(home, *name.split(), *BASE[name], *overrides)
