"""PPO where responses differ in length, and pairs of a reward model: padded rows and packed ones.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python scripts/bench_packing.py \\
        --files hh_rlhf/harmless_single_turn_train.jsonl.gz hh_rlhf/helpful_base_train.jsonl.gz \\
        --out docs/results/packing.md

The flag leaves one thread to a CPU. A random Llama draws responses whose lengths follow a geometric
distribution cut at the maximum: some of the vocabulary stops, so that the mean is about a quarter
of it. Both read the same rollouts, which is checked. Times are processor seconds (on a GPU seconds
of the clock) of the `score` and the `update` phase of a step, alternating, compiled before. Of the
pairs in `--files` the padding is counted that an epoch of a reward model reads, in tokens of a BPE
of 3,072 words that is trained on them.
"""

import argparse
import datetime
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxrlhf import monitoring, packing, rewards
from jaxrlhf.algorithms import ppo
from jaxrlhf.data import arrays, formats, pipeline
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.models import make_lm, make_scalar_model, transformer_config
from jaxrlhf.recipes import blocks, rows, stages
from jaxrlhf.sampling import Sampling

HOW: tuple[packing.Packing, ...] = ("none", "packed")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=64, help="rows a batch")
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--response-length", type=int, default=128, help="the longest")
    parser.add_argument("--minibatches", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each")
    parser.add_argument("--files", nargs="*", default=(), help="preference pairs")
    parser.add_argument(
        "--max-length", type=int, default=512, help="of a text of a pair, in tokens"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="pairs a batch")
    parser.add_argument("--out", type=Path, help="Markdown file")
    args = parser.parse_args()
    page = steps_page(args, measure(args))
    if args.files:
        page += pairs_page(args, read_pairs(args))
    print(page, end="")
    if args.out:
        stages.write_text(args.out, page)
    return 0


# ------------------------------------------------------------------ steps of PPO


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Figures of each run of both."""
    given = model(args)
    shape = args.prompts, args.prompt_length
    tokens = np.random.default_rng(0).integers(0, args.vocab, shape)
    prompts = {
        "prompt_tokens": tokens,
        "prompt_mask": np.ones(shape, bool),
        "row": np.arange(args.prompts),
    }
    algorithms = {how: make(args, given, how) for how in HOW}
    updates = {how: jax.jit(algorithm.update) for how, algorithm in algorithms.items()}
    of = "cpu_s" if jax.default_backend() == "cpu" else "s"
    found: dict[str, list[dict[str, float]]] = {how: [] for how in HOW}
    scored = {}
    for run in range(1 + args.pairs):
        for how, algorithm in algorithms.items():
            state = algorithm.init(given["params"], jax.random.key(0))
            batch, times = algorithm.collect(state, lambda: prompts, jax.random.key(1))
            clock = monitoring.Stopwatch()
            _, metrics = jax.block_until_ready(updates[how](state, batch, jax.random.key(2)))
            times |= clock.lap("update")
            scored[how] = np.sort(batch["log_probs"].sum(axis=1))
            if run:  # the first compiles
                seconds = {name: times[f"time/{name}_{of}"] for name in ("score", "update")}
                figures = {
                    name: float(metrics[f"rollout/{name}"]) for name in ("padding", "length")
                }
                found[how].append(seconds | figures)
    np.testing.assert_allclose(scored["none"], scored["packed"], rtol=1e-4, atol=1e-3)
    return found


def model(args: argparse.Namespace) -> dict[str, Any]:
    """A language model, and parameters of policy and value network."""
    config = transformer_config(
        "llama",
        vocab_size=args.vocab,
        num_layers=args.layers,
        num_heads=args.heads,
        d_model=args.hidden,
        d_ff=4 * args.hidden,
        max_positions=args.prompt_length + args.response_length,
    )
    lm, scalar = make_lm(config), make_scalar_model(config)
    policy, value = lm.init(jax.random.key(0)), scalar.init(jax.random.key(3), zero=True)
    return {"lm": lm, "scalar": scalar, "params": {"policy": policy, "value": value}}


def make(args: argparse.Namespace, given: dict[str, Any], how: packing.Packing):
    """PPO with a reward model, one way or the other."""
    stops = round(4 * args.vocab / args.response_length)  # of these many words one stops
    scalar = given["scalar"]
    return ppo.ppo(
        given["lm"],
        given["params"]["policy"],
        rewards.from_model(scalar, scalar.init(jax.random.key(4)), packing=how),
        optax.adam(1e-5),
        Sampling(max_new_tokens=args.response_length, stop_ids=tuple(range(1, 1 + stops))),
        ppo.Settings(num_ppo_epochs=args.epochs, num_mini_batches=args.minibatches),
        packing=how,
    )


def steps_page(args: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> str:
    medians = {
        how: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for how, runs in found.items()
    }
    flags = [f"{name}={os.environ[name]}" for name in ("XLA_FLAGS",) if name in os.environ]
    table = "\n".join(
        f"| {how} | {row['padding']:.1%} | {spread(found[how], 'score')} | "
        f"{spread(found[how], 'update')} |"
        for how, row in medians.items()
    )
    none, packed = (medians[how] for how in HOW)
    return f"""# Packing

    {" ".join([*flags, "python", *sys.argv])}

{datetime.date.today()}, {stages.device_line()}. A Llama of width {args.hidden},
{args.layers} layers, {args.vocab} words, policy, reference, value network and reward model each;
{args.prompts} prompts of {args.prompt_length} tokens, responses of {none["length"]:.1f} tokens on
average, {args.response_length} at most; {args.epochs} epochs of {args.minibatches} minibatches.
Medians of {args.pairs} alternating pairs, and from the least to the most.

| packing | padding | seconds of score | seconds of update |
| --- | ---: | ---: | ---: |
{table}

Packed rows are {none["score"] / packed["score"]:.2f} times as fast in score,
{none["update"] / packed["update"]:.2f} times in update.
"""


def spread(runs: list[dict[str, float]], name: str) -> str:
    values = [run[name] for run in runs]
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# ------------------------------------------------------------------ padding of pairs


def read_pairs(args: argparse.Namespace) -> arrays.Arrays:
    data = blocks.DataConfig(train=tuple(args.files))
    texts = rows.read(data, data.train, formats.texts, field="files")
    words = tokenizers.train_tokenizer((text.text for text in texts), vocab_size=3072, kind="bpe")
    fit: dict[str, Any] = {"max_length": args.max_length, "over_long": "truncate_left"}
    return rows.pairs(words, data, data.train, field="files", **fit)


def pairs_page(args: argparse.Namespace, found: arrays.Arrays) -> str:
    """Padding of an epoch of batches: as they come, of like length, and packed."""
    rows_read: dict[str, list[np.ndarray]] = {"as they come": [], "group_by_length": []}
    for name, batches in rows_read.items():
        grouped = name == "group_by_length"
        options: dict[str, Any] = {"batch_size": args.batch_size, "seed": 0, "epochs": 1}
        for batch in pipeline.batches(found, group_by_length=grouped, **options):
            batches.append(np.stack([batch["chosen_mask"], batch["rejected_mask"]], axis=1))
    rows_read["packing: packed"] = [
        packing.pack(mask, mask, mask).segment_ids > 0 for mask in rows_read["as they come"]
    ]
    table = "\n".join(
        f"| {name} | {1 - sum(x.sum() for x in read) / sum(x.size for x in read):.1%} | "
        f"{len({x.shape for x in read})} |"
        for name, read in rows_read.items()
    )
    return f"""
## Pairs of a reward model

{len(found):,} pairs of {", ".join(Path(file).name for file in args.files)}, {args.batch_size} a
batch, texts of at most {args.max_length} tokens; one epoch.

| batches | padding | shapes |
| --- | ---: | ---: |
{table}
"""


if __name__ == "__main__":
    sys.exit(main())
