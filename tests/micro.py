"""The smallest run of the whole pipeline, made once a session; several test files look at it.

Paths in its configs are relative, so a copy of the folder is the same run: what a test does to a
copy, in this process or in a child with the copy as working directory, compares bit for bit.
Children find the programs that this process compiled (`conftest.py` keeps them on disk).
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxrlhf import cli, config_file

ROOT = Path(__file__).parent.parent
PROMPTS = {"max_length": 6}
SAMPLING = {"response_length": 6}
TRAINING: dict[str, Any] = {"batch_size": 8, "max_length": 40, "tensorboard": False}
OPTIMIZER = {"learning_rate": 1e-2}

CONFIG: dict[str, Any] = {
    "output_dir": "run",
    "task": {"sandbox": {"documents": 80, "demonstrations": 60, "prompts": 32, "test_prompts": 8}},
    "test_preferences": 8,
    "pretrain": {
        **TRAINING,
        "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_positions": 48},
        "max_steps": 8,
        "save_steps": 3,
        "optimizer": OPTIMIZER,
    },
    "sft": {
        **TRAINING,
        "format": "examples",
        "max_steps": 8,
        "save_steps": 3,
        "optimizer": OPTIMIZER,
    },
    "sample": {"batch_size": 8, "prompts": PROMPTS, "sampling": SAMPLING},
    "reward": {
        **TRAINING,
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 2,
        "normalize": "reference",
        "prompts": PROMPTS,
        "sampling": SAMPLING,
        "optimizer": OPTIMIZER,
    },
    "ppo": {
        "batch_size": 8,
        "tensorboard": False,
        "max_steps": 8,
        "eval_steps": 3,
        "save_steps": 2,
        "prompts": PROMPTS,
        "eval_prompts": PROMPTS,
        "sampling": SAMPLING,
        "optimizer": {"learning_rate": 1e-2},
        "ppo": {
            "num_ppo_epochs": 2,
            "kl_target": 0.5,
            "kl_horizon": 50,
            "normalize_scores": True,
        },
    },
}
STAGES = ("pretrain", "sft", "sample", "label", "reward", "ppo", "report")


@functools.cache
def scratch() -> Path:
    """A folder of this test run, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="jaxrlhf-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """A copy, of this process alone, of the folder that `make` fills: once for all processes."""
    home = Path(os.environ["JAXRLHF_TESTS"])
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / f"{name}.made").exists():
            shutil.rmtree(home / name, ignore_errors=True)
            (home / name).mkdir()
            make(home / name)
            (home / f"{name}.made").touch()
    return Path(shutil.copytree(home / name, scratch() / name))


@functools.cache
def pipeline() -> Path:
    """The folder with `micro.yaml` and `run/`: every stage of `CONFIG`."""
    return shared("pipeline", _pipeline)


def _pipeline(folder: Path) -> None:
    (folder / "micro.yaml").write_text(config_file.to_text(CONFIG))
    assert command(folder, "rlhf", "--config", "micro.yaml") == 0


def copy(folder: Path, *without: str) -> Path:
    """A copy of the pipeline in `folder`, without some stages' folders."""
    shutil.copytree(pipeline(), folder, dirs_exist_ok=True)
    for stage in without:
        shutil.rmtree(folder / "run" / stage)
    return folder


def command(folder: Path, *argv: str) -> int:
    """`jaxrlhf argv` in this process with `folder` as working directory; the exit code."""
    with contextlib.chdir(folder):
        return cli.main(argv)


def child(folder: Path, *argv: str) -> subprocess.Popen:
    """`jaxrlhf argv` as a process of its own."""
    command = [sys.executable, "-m", "jaxrlhf", *argv]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=_environment(), **out)


def harmed(folder: Path, point: str, *argv: str) -> tuple[int, str]:
    """What `finish` gives of a `child` that comes to harm at a point of `victim.py`."""
    victims = _victims()
    victims.stdin.write(json.dumps({"folder": str(folder), "point": point, "argv": argv}) + "\n")
    victims.stdin.flush()
    code, said = json.loads(victims.stdout.readline())
    return code, said


@functools.cache
def _victims() -> subprocess.Popen:
    script = str(ROOT / "tests" / "victim.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, script], env=_environment(), **pipes)
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def _environment() -> dict[str, str]:
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


def finish(process: subprocess.Popen, *, timeout: float = 300) -> tuple[int, str]:
    """Exit code (negative: the signal that ended it) and everything it printed."""
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()  # nothing that hangs outlives its test
    return process.returncode, out
