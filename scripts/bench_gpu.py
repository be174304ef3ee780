"""PPO and decoding on one accelerator, beside `transformers`' `generate` on the same card.

    python scripts/bench_gpu.py --torch-python torch-venv/bin/python --out docs/results/gpu

A Llama of 1.2 B parameters with random weights in bfloat16, prompts of 512 tokens and responses of
512: PPO by phase (`jaxrlhf bench`: tokens/s, MFU, peak memory), decoding at several batch sizes
(tokens/s, and the share of the memory bandwidth that reading weights and cache needs), and the same
prompts through `transformers` with a static cache. Each part is a process of its own, so that no
part holds the memory of another; one that fails is named in the page, and the others go on.

Writes OUT.md and OUT/gpu.json. `--tiny` is the same on any machine in a minute, to try the script.
`--torch-python none` leaves `transformers` out.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REAL = {
    "hidden": 2048,
    "layers": 16,
    "heads": 32,
    "kv_heads": 8,
    "mlp": 8192,
    "vocab": 128256,
    "prompt_length": 512,
    "response_length": 512,
    "dtype": "bfloat16",
}
TINY = {**REAL, "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 128, "vocab": 512}
TINY |= {"prompt_length": 16, "response_length": 16}
PPO = {"batch_size": 32, "grad_accum": 8, "remat": True, "chunk_size": 16032, "steps": 4}
BATCHES = (1, 64, 256)
REPEATS = 3

Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default="none", help="has torch and transformers")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"))
    parser.add_argument("--tiny", action="store_true", help="a toy, to try the script")
    parser.add_argument("--side", choices=["jaxrlhf", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = TINY if args.tiny else REAL
    if args.side:
        decode = ours if args.side == "jaxrlhf" else theirs
        print(json.dumps(decode(shape, args.batch)))
        return 0
    batches = (1, 4) if args.tiny else BATCHES
    found: Found = {"shape": shape, "day": str(datetime.date.today())}
    found["ppo"] = ppo(shape | PPO | ({"batch_size": 8, "chunk_size": 128} if args.tiny else {}))
    words = ["--tiny"] if args.tiny else []
    for side, python in (("jaxrlhf", sys.executable), ("transformers", args.torch_python)):
        if python != "none":
            found[side] = {
                batch: output([python, __file__, "--side", side, "--batch", str(batch), *words])
                for batch in batches
            }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(args, found))
    return 0


def ppo(settings: Found) -> Found:
    """`jaxrlhf bench`'s summary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        words = [f"{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "jaxrlhf", "bench", *words, f"json_file={out}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        return json.loads(out.read_text())["summary"]


def output(command: list[str]) -> Found:
    """What a side prints last, or why it did not."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(shape: Found, batch: int) -> Found:
    """Seconds of `inference.generate`, and of its prompts alone: the difference is decoding."""
    import jax
    import jax.numpy as jnp

    from jaxrlhf import hardware, inference
    from jaxrlhf.models import make_lm
    from jaxrlhf.recipes import bench
    from jaxrlhf.sampling import Sampling

    config = bench.BenchConfig(batch_size=batch, **shape)
    lm = make_lm(config.model())
    params = jax.tree.map(lambda x: x.astype(config.dtype), lm.init(jax.random.key(0)))
    prompts = next(bench.prompts(config))
    tokens, mask = jnp.asarray(prompts["prompt_tokens"]), jnp.asarray(prompts["prompt_mask"])
    keys = jax.random.split(jax.random.key(1), batch)

    def seconds(new: int) -> float:
        def once():
            sampling = Sampling(max_new_tokens=new)
            jax.block_until_ready(inference.generate(lm, params, tokens, mask, keys, sampling))

        return timed(once)

    prefill, whole = seconds(1), seconds(config.response_length)
    rates = hardware.rates()
    steps = config.response_length - 1
    read = steps * bench.step_bytes(config)
    return {
        **speeds(batch, config.response_length, prefill, whole),
        "bandwidth": read / (whole - prefill) / rates.bandwidth if rates else None,
        "device": jax.local_devices()[0].device_kind,
        "version": f"jax {jax.__version__}",
    }


def theirs(shape: Found, batch: int) -> Found:
    """The same through `transformers`: sampled, a static cache, its decoding step compiled."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["mlp"],
        vocab_size=shape["vocab"],
        max_position_embeddings=shape["prompt_length"] + shape["response_length"],
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    model = model.to(device, getattr(torch, shape["dtype"])).eval()
    prompts = torch.randint(2, shape["vocab"], (batch, shape["prompt_length"]), device=device)

    def seconds(new: int) -> float:
        def once():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=True,
                top_k=0,
                cache_implementation="static",
            )
            if device == "cuda":
                torch.cuda.synchronize()

        return timed(once)

    prefill, whole = seconds(1), seconds(shape["response_length"])
    return {
        **speeds(batch, shape["response_length"], prefill, whole),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }


def timed(once) -> float:
    """Median seconds of a few calls, after two that compile."""
    seconds = []
    for call in range(2 + REPEATS):
        started = time.perf_counter()
        once()
        if call >= 2:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def speeds(batch: int, new: int, prefill: float, whole: float) -> Found:
    """Tokens a second, of everything and of decoding alone."""
    return {
        "prefill_s": prefill,
        "generate_s": whole,
        "tokens_per_s": batch * new / whole,
        "decoded_per_s": batch * (new - 1) / (whole - prefill),
    }


# The page.


def page(args: argparse.Namespace, found: Found) -> str:
    """All of it, as Markdown."""
    from jaxrlhf.recipes.tables import markdown

    first = next(iter(found["jaxrlhf"].values()))
    sizes = ", ".join(f"{name} {value}" for name, value in found["shape"].items())
    command = f"python scripts/bench_gpu.py --torch-python {args.torch_python} --out {args.out}"
    parts = [
        "# One accelerator",
        f"    {command}{' --tiny' if args.tiny else ''}",
        f"{found['day']}, {first.get('device')}, {first.get('version')}. Random weights: {sizes}.",
        "## PPO, by phase",
        ppo_table(found["ppo"], markdown),
        "## Decoding",
        "*bandwidth* is the share of the card's that reading weights and cache once a token takes.",
        decode_table(found, markdown),
    ]
    return "\n\n".join(parts) + "\n"


def ppo_table(summary: Found, markdown) -> str:
    """A row a phase; or why there is none."""
    if "error" in summary:
        return f"It failed: `{summary['error']}`"
    names = {"generate": "generated", "score": "scored", "update": "update"}
    rows = [
        [
            phase,
            f"{summary[f'{phase}_s']:.3g}",
            f"{summary[f'{name}_tokens_per_s']:.0f}",
            share(summary.get(f"{phase}_fraction")),
        ]
        for phase, name in names.items()
    ]
    made = markdown(["phase", "seconds", "tokens/s", "MFU (generate: bandwidth)"], rows)
    return f"{made}\n\nPeak memory: {summary['peak_memory_mib']:.0f} MiB."


def decode_table(found: Found, markdown) -> str:
    """A row a batch size."""
    rows = []
    for batch, mine in found["jaxrlhf"].items():
        other = found.get("transformers", {}).get(batch, {"error": "not run"})
        cells = [str(batch)]
        if "error" in mine:
            rows.append([*cells, mine["error"], "", "", ""])
            continue
        cells += [f"{mine['tokens_per_s']:.0f}", share(mine["bandwidth"])]
        if "error" in other:
            rows.append([*cells, other["error"], ""])
        else:
            ratio = mine["tokens_per_s"] / other["tokens_per_s"]
            rows.append([*cells, f"{other['tokens_per_s']:.0f}", f"{ratio:.2f} x"])
    headers = ["batch", "jaxrlhf, tokens/s", "bandwidth", "transformers, tokens/s", "ratio"]
    return markdown(headers, rows)


def share(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


if __name__ == "__main__":
    sys.exit(main())
