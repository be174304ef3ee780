"""PPO here beside TRL's, the same shapes on one core: a page of results.

    python scripts/compare_trl.py --trl-python trl-venv/bin/python --baseline trl_ppo_baseline.py \
        --out docs/results/speed

The baseline is a script that times TRL's `PPOTrainer` with the options of `jaxrlhf bench` and
writes the same JSON; TRL 1.12.0 is the last release that has it, in an environment of its own. Both
sides run in turns, each in a fresh process bound to one core and to one thread. Compared are
processor seconds, which neighbours on the machine disturb least, and peak resident memory.

Writes OUT.md, OUT/runs.json and OUT/learning.png. `--pairs 1 --shapes A` is a quick look;
`--pages-only` writes the page again from OUT/runs.json.
"""

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxrlhf import plots
from jaxrlhf.recipes.tables import markdown

SHAPES = {
    "A": "--hidden 128 --layers 2 --vocab 512 --batch-size 16 --prompt-length 16"
    " --response-length 24 --steps 12 --warmup 4",
    "B": "--hidden 256 --layers 4 --vocab 8192 --batch-size 8 --prompt-length 64"
    " --response-length 64 --steps 6 --warmup 2",
    "C": "--hidden 512 --layers 8 --heads 8 --vocab 32000 --batch-size 4 --prompt-length 128"
    " --response-length 128 --steps 3 --warmup 1",
}
LEARNING = "--reward token --vocab 64 --lr 1e-3 --steps 60 --warmup 4"
REACHED = 9  # of the 10 that the token reward can give
# "shared" is ours with a value head on the policy's trunk; "kept" is ours again, whose programs an
# earlier process compiled and left on disk.
SIDES = ("TRL", "jaxrlhf", "shared")
STYLES: dict[str, plots.Style] = {"TRL": "dashed", "jaxrlhf": "solid", "shared": "dotted"}
KEPT = "kept"
PHASES = ("generate", "score", "update", "step")

Run = dict[str, Any]  # what a side wrote, and what its process took


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", default="trl-venv/bin/python", help="has TRL 1.12.0")
    parser.add_argument("--baseline", default="trl_ppo_baseline.py", help="times TRL")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--pairs", type=int, default=5, help="of each shape")
    parser.add_argument("--learning-seeds", type=int, default=0, help="learning curves a side")
    parser.add_argument("--core", type=int, default=0, help="both sides are bound to it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed"))
    parser.add_argument("--pages-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.json"
    runs = json.loads(kept.read_text()) if kept.is_file() else {"shapes": {}, "learning": []}
    if not args.pages_only:
        for shape in args.shapes:
            runs["shapes"][shape] = compared(args, SHAPES[shape])
            kept.write_text(json.dumps(runs, indent=1) + "\n")
        if args.learning_seeds:
            runs["learning"] = learned(args)
            kept.write_text(json.dumps(runs, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(args, runs))
    return 0


def compared(args: argparse.Namespace, options: str) -> dict[str, list[Run]]:
    """Runs of each side, in turns; the shared trunk and kept programs once."""
    found: dict[str, list[Run]] = {side: [] for side in (*SIDES, KEPT)}
    for pair in range(args.pairs):
        for side in ("TRL", "jaxrlhf"):
            found[side].append(timed(args, side, f"{options} --seed {pair}"))
    found["shared"].append(timed(args, "shared", options))
    with tempfile.TemporaryDirectory() as programs:
        timed(args, KEPT, options, programs=programs)  # fills the folder
        found[KEPT].append(timed(args, KEPT, options, programs=programs))
    return found


def learned(args: argparse.Namespace) -> list[dict[str, Run | None]]:
    """Learning curves of each side, seed by seed; None where it stopped with an error."""

    def tried(side: str, seed: int) -> Run | None:
        try:
            return timed(args, side, f"{LEARNING} --seed {seed}")
        except SystemExit as error:
            print(error, file=sys.stderr)
            return None

    return [{side: tried(side, seed) for side in SIDES} for seed in range(args.learning_seeds)]


def timed(args: argparse.Namespace, side: str, options: str, *, programs: str | None = None) -> Run:
    """One run in a process of its own, bound to one core; compiled `programs` are kept there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        words = options.split()
        if side == "TRL":
            command = [args.trl_python, args.baseline, *words, "--threads", "1", "--json", str(out)]
        else:
            bench = Path(__file__).parent / "bench_ppo.py"
            command = [sys.executable, str(bench), *words, "--json-file", str(out)]
        if side == "shared":
            command += ["--value-model", "shared"]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        env = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        if programs is not None:
            env |= {"JAX_COMPILATION_CACHE_DIR": programs}
            env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        process = subprocess.Popen(
            command,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, {args.core}),
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(
                f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}"
            )
        run = json.loads(out.read_text())
    run["process_cpu_s"] = usage.ru_utime + usage.ru_stime
    summary = run["summary"]
    # Ours as it was after the last step: rates are measured later, on large arrays.
    run["peak_mib"] = summary.get("peak_memory_mib", usage.ru_maxrss / 1024)
    print(f"{side} {options}: step {summary['step_cpu_s']:.3f}", file=sys.stderr, flush=True)
    return run


# The page.


def page(args: argparse.Namespace, runs: dict[str, Any]) -> str:
    """All of it, as Markdown."""
    parts = [HEAD.format(command=command(args), **facts(runs))]
    for shape, found in runs["shapes"].items():
        pairs = len(found["TRL"])
        parts.append(f"## {shape}: `{SHAPES[shape]}`\n\n{table_of(found)}\n\nMedians of {pairs}")
        parts[-1] += f" pair{'s'[: pairs > 1]}. {notes(found)}"
    if runs["learning"]:
        parts.append(learning(args, runs["learning"]))
    return "\n\n".join(parts) + "\n"


def command(args: argparse.Namespace) -> str:
    return (
        "python scripts/compare_trl.py --trl-python trl-venv/bin/python "
        f"--baseline trl_ppo_baseline.py --out {args.out}"
    )


def facts(runs: dict[str, Any]) -> dict[str, Any]:
    """Versions, the machine, the day."""
    measured = [(found["TRL"][0], found["jaxrlhf"][0]) for found in runs["shapes"].values()]
    measured += [(found["TRL"], found["jaxrlhf"]) for found in runs["learning"]]
    theirs, ours = (run["summary"] for run in next(pair for pair in measured if all(pair)))
    return {
        "versions": f"TRL {theirs['trl']}, torch {theirs['torch']}; jax {ours['jax']}",
        "cores": os.cpu_count(),
        "day": datetime.date.today(),
    }


HEAD = """# Speed of PPO beside TRL

    {command}

{day}, {cores} CPU cores, of which both sides use one, one thread each; float32. {versions}.
Not measured on a GPU.

Processor seconds of one PPO step: a batch of rollouts, its scores, and four optimiser steps. The
models are random Llamas; policy, reference, value network and reward model have one size, and
responses full length. Compilation is not in the seconds; it is given apart. It is in the peak of
memory, but for *programs kept*: there a process before it left its programs on disk
(`JAX_COMPILATION_CACHE_DIR`), so that none is compiled. *fraction* is the
share of this machine's float32 matrix rate (of memory traffic for generate) that goes into needed
operations, see `jaxrlhf/recipes/flops.py`. *shared* is ours with a value head on the policy's
trunk."""


def table_of(found: dict[str, list[Run]]) -> str:
    """A row a phase."""
    rows = []
    for phase in PHASES:
        theirs, ours, shared = (middle(found[side], f"{phase}_cpu_s") for side in SIDES)
        fraction = "" if phase == "step" else f"{middle(found['jaxrlhf'], f'{phase}_fraction'):.0%}"
        rows.append([phase, *map(figure, (theirs, ours)), f"{theirs / ours:.2f} x", fraction])
        rows[-1].append(figure(shared))
    theirs, ours, shared = (peak(found[side]) for side in SIDES)
    rows.append(["peak memory, MiB", *memory(theirs, ours), "", f"{shared:.0f}"])
    if kept := found.get(KEPT):
        rows.append(["the same, programs kept", *memory(theirs, peak(kept)), "", ""])
    headers = ["", "TRL", "jaxrlhf", "TRL / jaxrlhf", "fraction", "shared"]
    return markdown(headers, rows)


def peak(runs: list[Run]) -> float:
    return statistics.median(run["peak_mib"] for run in runs)


def memory(theirs: float, ours: float) -> list[str]:
    return [f"{theirs:.0f}", f"{ours:.0f}", f"{theirs / ours:.2f} x"]


def notes(found: dict[str, list[Run]]) -> str:
    """What the table leaves out."""
    ours = found["jaxrlhf"]
    ratios = [
        theirs["summary"]["step_cpu_s"] / run["summary"]["step_cpu_s"]
        for theirs, run in zip(found["TRL"], ours, strict=True)
    ]
    rate, reads = (middle(ours, name) for name in ("matrix_flops_per_s", "bytes_read_per_s"))
    return (
        f"Ratios of a step, pair by pair: {min(ratios):.2f} to {max(ratios):.2f}. Compiling took "
        f"{middle(ours, 'compile_s'):.1f} s. Measured here: {rate / 1e9:.0f} GFLOP/s, "
        f"{reads / 1e9:.1f} GB/s."
    )


def learning(args: argparse.Namespace, seeds: list[dict[str, Run | None]]) -> str:
    """The curves as a picture, and when they arrive."""
    curves, rows = [], []
    for side in SIDES:
        cells = []
        for seed, runs in enumerate(seeds):
            run = runs[side]
            if run is None:
                cells.append(["error"] * 5)
                continue
            steps = run["steps"]
            scores = [step["score"] for step in steps]
            name, style = f"{side}, seed {seed}", STYLES[side]
            curves.append(plots.Line(elapsed(steps), scores, name, style=style))
            at, seconds = arrival(steps)
            cells.append(["never" if at is None else str(at), figure(seconds)])
            cells[-1] += [figure(elapsed(steps)[-1]), figure(run["process_cpu_s"])]
            cells[-1] += [f"{scores[-1]:.2f}"]
        rows.append([side, *(", ".join(column) for column in zip(*cells, strict=True))])
    picture = plots.lines(
        curves, xlabel="processor seconds of steps", ylabel="score", title="Learning one token"
    )
    (args.out / "learning.png").write_bytes(plots.png(picture))
    headers = ["", f"steps to {REACHED}", "seconds to it", "seconds of all steps"]
    headers += ["of the process", "last score"]
    return LEARNED.format(
        options=LEARNING, seeds=len(seeds), table=markdown(headers, rows), name=args.out.name
    )


LEARNED = """## Learning per second: `{options}`

`--learning-seeds {seeds}`. The reward is 10 times the share of one token in the response. The rest
of the shape is A's; no side clips gradients; processor seconds, one figure a seed. *of the process*
has imports and compilation too; *error*: it ended with one.

{table}

![Score over processor seconds]({name}/learning.png)"""


def arrival(steps: list[dict[str, Any]]) -> tuple[int | None, float | None]:
    """The first step whose score is `REACHED`, and processor seconds up to it."""
    at = next((i for i, step in enumerate(steps) if step["score"] >= REACHED), None)
    return (None, None) if at is None else (at + 1, elapsed(steps)[at])


def elapsed(steps: list[dict[str, Any]]) -> list[float]:
    """Processor seconds up to the end of each step; one that compiles counts as the median does."""
    usual = statistics.median(step["step_cpu_s"] for step in steps)
    seconds = [usual if step.get("compile_s") else step["step_cpu_s"] for step in steps]
    return list(itertools.accumulate(seconds))


def middle(runs: list[Run], name: str) -> float:
    return statistics.median(run["summary"][name] for run in runs)


def figure(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.3g}"


if __name__ == "__main__":
    sys.exit(main())
