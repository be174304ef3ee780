"""How much memory loading takes: peak resident memory against the checkpoint's size.

    python scripts/measure_load_memory.py [--param-dtype bfloat16] [--mesh 2,4] [--folder DIR]

Writes a random Llama of 1.1 billion parameters in bfloat16, in 5 shards (2.2 GB in a temporary
folder, or DIR, where it is kept), loads it in a fresh process, and prints the peak. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "vocab_size": 32_000,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "d_model": 2048,
    "d_ff": 8192,
    "max_positions": 4096,
}
SHARDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, or use this one")
    parser.add_argument("--param-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--mesh", default="", help="DATA,TENSOR over fake CPU devices")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return load(args.folder, args.param_dtype, args.mesh)
    with tempfile.TemporaryDirectory(prefix="jaxrlhf-load-") as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "config.json").is_file():
            write(folder)
        command = [sys.executable, __file__, "--child", "--folder", str(folder)]
        command += ["--param-dtype", args.param_dtype, "--mesh", args.mesh]
        environment = dict(os.environ)
        if args.mesh:
            data, ways = (int(part) for part in args.mesh.split(","))
            flag = f"--xla_force_host_platform_device_count={data * ways}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}"
        return subprocess.run(command, env=environment, check=False).returncode


def write(folder: Path) -> None:
    """A random checkpoint, one tensor in memory at a time."""
    import ml_dtypes
    import numpy as np

    from jaxrlhf.hf import safetensors_file, staging
    from jaxrlhf.hf.families import FAMILIES
    from jaxrlhf.models import transformer_config

    folder.mkdir(parents=True, exist_ok=True)
    config, family = transformer_config("llama", **SIZES), FAMILIES["llama"]
    random = np.random.default_rng(0)

    def plan(entry):
        def draw():
            values = random.standard_normal(entry.shape, np.float32) * np.float32(0.02)
            return values.astype(ml_dtypes.bfloat16)

        return safetensors_file.Planned(entry.name, "BF16", entry.shape, draw)

    plans = [plan(entry) for entry in family.entries(config)]
    total = sum(safetensors_file.nbytes(one.dtype, one.shape) for one in plans)
    groups, size = [[] for _ in range(SHARDS)], 0
    for one in plans:
        groups[size * SHARDS // total].append(one)
        size += safetensors_file.nbytes(one.dtype, one.shape)
    index = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        safetensors_file.write(folder / name, group, {"format": "pt"})
        index |= {one.name: name for one in group}
    values = {"metadata": {"total_size": total}, "weight_map": index}
    staging.write_json(folder / "model.safetensors.index.json", values)
    values = {"architectures": [family.causal], "model_type": family.name}
    staging.write_json(folder / "config.json", {**values, **family.write_config(config)})


def load(folder: Path, param_dtype: str, mesh: str) -> int:
    """In a process of its own: load, and print the peak."""
    import jax

    from jaxrlhf import sharding
    from jaxrlhf.hf.folder import load_lm

    ways = [int(part) for part in mesh.split(",")] if mesh else None
    jax.block_until_ready(jax.numpy.zeros(()) + 1)  # the backend is part of the interpreter's own
    before = peak()
    start = time.perf_counter()
    loaded = load_lm(
        folder,
        mesh=sharding.make_mesh(*ways) if ways else None,
        dtype="bfloat16",
        param_dtype=param_dtype,  # type: ignore[arg-type]
    )
    jax.block_until_ready(loaded.params)
    seconds = time.perf_counter() - start
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    used = peak() - before
    print(f"{count / 1e9:.3f} billion parameters, {on_disk / 1e9:.3f} GB in {SHARDS} shards")
    print(f"loaded as {param_dtype} in {seconds:.1f} s on {jax.device_count()} device(s)")
    print(f"peak resident memory {peak() / 1e9:.3f} GB, of which {before / 1e9:.3f} GB were taken")
    print(f"before: the load took {used / 1e9:.3f} GB, {used / on_disk:.3f} of the checkpoint")
    return 0


def peak() -> int:
    """The most this process has had resident, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
