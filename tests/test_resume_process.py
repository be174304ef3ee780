"""Real processes that are killed, told to stop, or run out of disk: the same command goes on.

In the end everything that lasts is, bit for bit, what the run that nobody disturbed left behind:
parameters, optimiser, KL coefficient, data position, metrics (but for times) and completions. The
undisturbed runs are made in this process (`micro.py`), and so is the end of the others.
"""

import json
import random
import signal
import time
from pathlib import Path

import jax
import micro
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy

from jaxrlhf.metrics import read_completions, read_metrics

WEIGHTS = "model.safetensors"


def steps(stage: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    folder = stage / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder.absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def lasting(stage: Path) -> dict:
    """All that a finished training stage leaves behind, times apart."""
    last = stage / "checkpoints" / str(steps(stage)[-1])
    rows = [
        {name: x for name, x in row.items() if not name.startswith("time/")}
        for row in read_metrics(stage)
    ]
    summary = json.loads((stage / "done.json").read_text())
    del summary["seconds"]
    return {
        "state": arrays(last / "state"),
        "data": json.loads((last / "data" / "metadata").read_text()),
        "model": safetensors.numpy.load_file(stage / "model" / WEIGHTS),
        "model_files": {
            path.name: path.read_text()
            for path in (stage / "model").iterdir()
            if path.name not in (WEIGHTS, "README.md")  # the card has the seconds
        },
        "metrics": rows,
        "completions": read_completions(stage),
        "summary": summary,
    }


def assert_same(stage: Path, whole: Path) -> None:
    found, wanted = lasting(stage), lasting(whole)
    for name in ("state", "model"):
        a, b = found.pop(name), wanted.pop(name)
        assert a.keys() == b.keys()
        for path in a:
            np.testing.assert_array_equal(a[path], b[path], err_msg=f"{name} {path}")
    assert found == wanted


def ppo_only(*more: str) -> tuple[str, ...]:
    return ("rlhf", "--config", "micro.yaml", "stages=[ppo]", *more)


def test_ppo_killed_in_a_save_and_again_at_random(tmp_path):
    folder = micro.copy(tmp_path, "ppo", "report")
    stage, command = folder / "run" / "ppo", ppo_only()
    number = random.randint(2, 18)  # of 21 in orbax 0.12
    code, out = micro.harmed(folder, f"save:4:{number}", *command)
    assert code == -signal.SIGKILL, (number, out)
    assert steps(stage) == [2] and not (stage / "done.json").exists()
    assert any("orbax-checkpoint-tmp" in path.name for path in (stage / "checkpoints").iterdir())
    assert read_metrics(stage)[-1]["step"] == 4
    # A line that was being written, too.
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (stage / name).open("a") as file:
            file.write('{"step": 5, "obje')

    process = micro.child(folder, *command)
    log = stage / "metrics.jsonl"
    size = log.stat().st_size
    while process.poll() is None and log.stat().st_size >= size:  # until it is cut to step 2
        time.sleep(0.01)
    delay = random.uniform(0, 1.5)
    time.sleep(delay)
    process.kill()
    code, out = micro.finish(process)
    assert code in (-signal.SIGKILL, 0), out

    assert micro.command(folder, *command) == 0, delay
    assert_same(stage, micro.pipeline() / "run" / "ppo")
    extra = lasting(stage)["state"]
    assert extra["['extra']['kl_coef']"] != np.float32(0.05)  # so that there was one to keep
    assert extra["['extra']['score_count']"] == 8 * 8


def test_ppo_killed_in_a_save_on_four_devices(tmp_path):
    mesh = ("mesh.data=2", "mesh.tensor=2")
    whole = micro.copy(tmp_path / "whole", "ppo", "report")
    folder = micro.copy(tmp_path / "killed", "ppo", "report")
    for path in (whole, folder):  # the stages before ran on one device
        (path / "run" / "config.yaml").unlink()
    assert micro.command(whole, *ppo_only(*mesh)) == 0
    stage = folder / "run" / "ppo"
    number = random.randint(2, 18)  # of 21 in orbax 0.12
    code, out = micro.harmed(folder, f"save:4:{number}", *ppo_only(*mesh))
    assert code == -signal.SIGKILL, (number, out)
    assert steps(stage) == [2]
    assert micro.command(folder, *ppo_only(*mesh)) == 0
    assert_same(stage, whole / "run" / "ppo")


def test_sft_told_to_stop_then_out_of_disk_then_killed_twice_at_the_end(tmp_path):
    folder = micro.copy(tmp_path, *micro.STAGES[:1])
    stage = folder / "run" / "pretrain"
    command = ("rlhf", "--config", "micro.yaml", "stages=[pretrain]")

    code, out = micro.harmed(folder, "term:4", *command)
    assert code == 0, out
    assert steps(stage) == [3, 4] and not (stage / "done.json").exists()
    assert read_metrics(stage)[-1]["step"] == 4

    code, out = micro.harmed(folder, "full:6:4000", *command)
    assert code == 2, out
    assert "checkpoint 6 could not be written" in out and "the last good one is step 4" in out
    assert "error:" in out and steps(stage) == [3, 4]

    number = random.randint(2, 18)  # of 19; the 18th moves the weights in
    code, out = micro.harmed(folder, f"model:{number}", *command)
    assert code == -signal.SIGKILL, (number, out)
    assert steps(stage)[-1] == 8 and not (stage / "model" / WEIGHTS).exists()

    code, out = micro.harmed(folder, "done", *command)
    assert code == -signal.SIGKILL, out
    assert (stage / "model" / WEIGHTS).exists()
    assert not (stage / "done.json").exists()

    assert micro.command(folder, *command) == 0
    assert_same(stage, micro.pipeline() / "run" / "pretrain")


def damage(stage: Path, step: int) -> None:
    for path in (stage / "checkpoints" / str(step) / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(tmp_path, capfd):
    folder = micro.copy(tmp_path, "report")
    stage = folder / "run" / "ppo"
    (stage / "done.json").unlink()
    damage(stage, 8)
    capfd.readouterr()
    assert micro.command(folder, *ppo_only()) == 0
    err = " ".join(capfd.readouterr().err.split())
    assert "checkpoint 8 cannot be read" in err and "trying the one before it" in err
    assert_same(stage, micro.pipeline() / "run" / "ppo")


def test_where_no_checkpoint_can_be_read_the_run_stops(tmp_path, capfd):
    folder = micro.copy(tmp_path, "report")
    stage = folder / "run" / "ppo"
    (stage / "done.json").unlink()
    for step in steps(stage):
        damage(stage, step)
    capfd.readouterr()
    assert micro.command(folder, *ppo_only()) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "no readable checkpoint" in err and "checkpoint 6: " in err and "checkpoint 8: " in err
    assert not (stage / "done.json").exists()
