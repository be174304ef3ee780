"""Tokens a second where responses differ in length: the plain loop beside continuous batching.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python scripts/bench_continuous.py \\
        --out docs/results/continuous.md

The flag leaves one thread to a CPU. A random Llama draws responses whose lengths follow a geometric
distribution cut at the maximum: some of the vocabulary stops, so that the mean is about a quarter
of it. "plain" answers the prompts in batches of `--slots` rows, each until its longest response has
ended; "continuous" draws the same number of rows at a time from one queue. Both draw the same
tokens, which is checked. Times are processor seconds (on a GPU seconds of the clock), alternating,
compiled before.
"""

import argparse
import dataclasses
import datetime
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from jaxrlhf.inference import generate
from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.recipes import stages
from jaxrlhf.sampling import Sampling


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--response-length", type=int, default=128, help="the longest")
    parser.add_argument("--slots", type=int, default=32, help="rows at a time, on both sides")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each")
    parser.add_argument("--out", type=Path, help="Markdown file")
    args = parser.parse_args()
    page = f"{table(args, measure(args))}\n"
    print(page, end="")
    if args.out:
        stages.write_text(args.out, page)
    return 0


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run of both, and the lengths of the responses."""
    lm = make_lm(
        transformer_config(
            "llama",
            vocab_size=args.vocab,
            num_layers=args.layers,
            num_heads=args.heads,
            d_model=args.hidden,
            d_ff=4 * args.hidden,
            max_positions=args.prompt_length + args.response_length,
        )
    )
    params = lm.init(jax.random.key(0))
    stops = round(4 * args.vocab / args.response_length)  # of these many words one stops
    together = Sampling(max_new_tokens=args.response_length, stop_ids=tuple(range(1, 1 + stops)))
    queued = dataclasses.replace(together, slots=args.slots)
    shape = args.prompts, args.prompt_length
    tokens = np.random.default_rng(0).integers(0, args.vocab, shape)
    mask, keys = np.ones(shape, bool), jax.random.split(jax.random.key(1), args.prompts)
    batches = np.array_split(np.arange(args.prompts), -(-args.prompts // args.slots))

    def plain():
        made = [generate(lm, params, tokens[b], mask[b], keys[b], together) for b in batches]
        return [jax.block_until_ready(one) for one in made]

    def continuous():
        return [jax.block_until_ready(generate(lm, params, tokens, mask, keys, queued))]

    drawn = {}
    seconds: dict[str, list[float]] = {"plain": [], "continuous": []}
    for run in range(1 + args.pairs):
        for name, draw in (("plain", plain), ("continuous", continuous)):
            start = now()
            made = draw()
            if run:  # the first compiles
                seconds[name].append(now() - start)
            drawn[name] = np.concatenate([one.response_tokens for one in made])
            lengths = np.concatenate([one.response_mask for one in made]).sum(axis=1)
    if not np.array_equal(drawn["plain"], drawn["continuous"]):
        raise SystemExit("the two drew different tokens")
    return seconds | {"lengths": lengths.tolist()}


def now() -> float:
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def table(args: argparse.Namespace, found: dict[str, list[float]]) -> str:
    lengths = found.pop("lengths")
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = medians["plain"] / medians["continuous"]
    flags = [f"{name}={os.environ[name]}" for name in ("XLA_FLAGS",) if name in os.environ]
    rows = "\n".join(
        f"| {name} | {median:.3f} | {min(found[name]):.3f} to {max(found[name]):.3f} | "
        f"{sum(lengths) / median:,.0f} |"
        for name, median in medians.items()
    )
    return f"""# Continuous batching

    {" ".join([*flags, "python", *sys.argv])}

{datetime.date.today()}, {stages.device_line()}. A Llama of width {args.hidden},
{args.layers} layers, {args.vocab} words; {args.prompts} prompts of {args.prompt_length} tokens,
{args.slots} rows at a time; responses of {statistics.mean(lengths):.1f} tokens on average,
{args.response_length} at most. Medians of {args.pairs} alternating pairs.

| | seconds | from, to | tokens a second |
| --- | ---: | ---: | ---: |
{rows}

Continuous batching draws the same tokens {ratio:.1f} times as fast."""


if __name__ == "__main__":
    sys.exit(main())
