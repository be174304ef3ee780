"""Probes of `jaxrlhf bench`."""

from pathlib import Path
from unittest import mock

import micro
from config_probes import content
from probing import Probe, p

from jaxrlhf.recipes import bench

TINY = ("hidden=8", "heads=2", "layers=1", "vocab=16", "batch_size=2", "prompt_length=3")


def config(*overrides: str) -> bench.BenchConfig:
    return bench.BenchConfig.load(None, (*TINY, *overrides))


def model(*overrides: str) -> str:
    return str(config(*overrides).model())


def given(*overrides: str) -> str:
    """What PPO and its optimiser are told."""
    with (
        mock.patch.object(bench.ppo, "ppo") as algorithm,
        mock.patch.object(bench, "make_optimizer") as optimizer,
    ):
        bench.make(config(*overrides))
    *_, sampling, settings = algorithm.call_args.args
    return repr((sampling, settings, algorithm.call_args.kwargs, optimizer.call_args.kwargs))


def prompts(*overrides: str) -> str:
    return content(next(bench.prompts(config(*overrides))))


def needed(*overrides: str) -> str:
    return repr(bench.needed(config(*overrides)))


def written(*overrides: str) -> str:
    """Summary of made-up steps, and whether there is a file of them."""
    made = config(*overrides)
    row = dict.fromkeys((f"{phase}_{of}" for phase, of in bench.MEASURED), 1.0)
    row |= {"compile_s": 1.0, "peak_memory_mib": 1.0, "score": 0.0}
    steps = [{name: x + number for name, x in row.items()} for number in range(made.steps)]
    file = Path(FILE)
    file.unlink(missing_ok=True)
    with (
        mock.patch.object(bench, "timed", lambda *_: (steps, None)),
        mock.patch.object(bench, "make", lambda _: (None, None)),
        mock.patch.object(bench.hardware, "rates", lambda: None),
        mock.patch.object(bench.loop, "flops", lambda *_: 0.0),
    ):
        found = bench.run(made)
    return repr(([found["compile_s"], found["step_s"]], file.is_file()))


FILE = f"{micro.scratch()}/bench.json"
CHANGES = {
    model: "hidden=16 layers=2 heads=4 kv_heads=1 mlp=16 vocab=24 dtype=bfloat16 remat=true",
    given: "response_length=5 ppo_epochs=2 minibatches=2 grad_accum=2 value_model=shared lr=1e-3 "
    "kl_coef=0.5 temperature=0.5 chunk_size=8 max_grad_norm=1.0",
    prompts: "batch_size=4 prompt_length=4 target_token=9 seed=1",
    needed: "reward=token",
    written: f"steps=9 warmup=5 json_file={FILE}",
}

FIELDS: dict[tuple[str, str], Probe] = {
    ("bench", change.partition("=")[0]): p(observe, change)
    for observe, changes in CHANGES.items()
    for change in changes.split()
}
