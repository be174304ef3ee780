"""The record of a run: exact numbers, exact resumption, readable by TensorBoard."""

import builtins
import json
import math
import os
import signal
import subprocess
import sys
import types
from typing import Any, cast

import numpy as np
import pytest

from jaxrlhf.metrics import MetricsWriter, read_completions, read_metrics, series


def _numbers(step: int) -> dict[str, float]:
    return {"value/loss": 1 / 3 / step, "objective/score": math.sqrt(step), "time/update_s": 0.5}


def _samples(step: int) -> list[dict]:
    row = {"prompt": "the old", "completion": f"man {step}", "score": 0.1 * step}
    return [row | {"reason": "random"}, row | {"reason": "lowest", "gold": -1.0}]


def _run(folder, steps, resume_step=0, tensorboard=False):
    with MetricsWriter(folder, resume_step=resume_step, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, _numbers(step))
            writer.write_completions(step, _samples(step))


def _files(folder) -> tuple[bytes, bytes]:
    metrics, completions = folder / "metrics.jsonl", folder / "completions.jsonl"
    return metrics.read_bytes(), completions.read_bytes()


@pytest.fixture
def whole(tmp_path):
    """The files of a run of 12 steps that nobody killed."""
    _run(tmp_path / "whole", range(1, 13))
    return _files(tmp_path / "whole")


# ------------------------------------------------------------------------------------------ format


def test_a_line_is_step_first_then_the_names_sorted(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(3, {"b": 2, "a/x": 0.5})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 3, "a/x": 0.5, "b": 2.0}\n'


def test_floats_read_back_exactly(tmp_path):
    # Doubles that need 17 digits, the smallest and largest ones, and a float32: 0.1f widens to
    # 0.10000000149011612, which must come back as that double, not as 0.1.
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float(np.float32(0.1))]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step, value in enumerate(values):
            writer.write(step, {"x": np.float32(0.1) if step == 5 else value})
    steps, read = series(read_metrics(tmp_path), "x")
    assert steps == list(range(6))
    assert [x.hex() for x in read] == [x.hex() for x in values]


def test_non_finite_values_are_valid_json_and_come_back(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
        writer.write_completions(1, [_samples(1)[0] | {"score": math.nan}])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["b"] == "Infinity"
    row = read_metrics(tmp_path)[0]
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf
    assert read_completions(tmp_path)[0]["score"] == "NaN"


def test_a_line_is_on_disk_before_write_returns(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"a": 1.0})
    writer.write_completions(1, _samples(1))
    assert len(read_metrics(tmp_path)) == 1 and len(read_completions(tmp_path)) == 2
    writer.close()


def test_array_scalars_are_taken_and_anything_else_is_named(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(np.int64(1), {"f32": np.float32(0.5), "array": np.array(2), "flag": True})
        assert read_metrics(tmp_path)[0] == {"step": 1, "array": 2.0, "f32": 0.5, "flag": 1.0}
        with pytest.raises(TypeError, match=r"'policy/ratio'.*shape \(1,\)"):
            writer.write(2, {"policy/ratio": np.ones(1)})
        with pytest.raises(TypeError, match=r"'name'.*'abc'"):
            writer.write(2, cast(Any, {"name": "abc"}))
        with pytest.raises(TypeError, match="'nothing'"):
            writer.write(2, cast(Any, {"nothing": None}))
        with pytest.raises(ValueError, match="step"):
            writer.write(2, {"step": 2.0})
        with pytest.raises(TypeError, match="integer"):
            writer.write(cast(Any, 1.5), {"a": 1.0})
        with pytest.raises(ValueError, match="0 or more"):
            writer.write(-1, {"a": 1.0})
    assert len(read_metrics(tmp_path)) == 1, "a refused line leaves nothing behind"


def test_completions_keep_any_text_and_are_checked(tmp_path):
    odd = "tab\t newline\n \x00 é 漢 \U0001f600 \ud800 \u2028 </script>"
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write_completions(4, [_samples(4)[0] | {"completion": odd, "prompt": "NaN"}])
        with pytest.raises(ValueError, match="score"):
            writer.write_completions(5, [{"prompt": "", "completion": "", "reason": "random"}])
        with pytest.raises(ValueError, match="'best'"):
            writer.write_completions(5, [_samples(5)[0] | {"reason": "best"}])
    (row,) = read_completions(tmp_path)
    assert row["completion"] == odd and row["prompt"] == "NaN" and row["step"] == 4


def test_series_leaves_out_rows_without_the_metric(tmp_path):
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "b": 5.0}, {"step": 3, "a": 2.0}]
    assert series(rows, "a") == ([1, 3], [1.0, 2.0])
    assert series(rows, "missing") == ([], [])
    assert read_metrics(tmp_path / "no such run") == []


# ------------------------------------------------------------------------------------------ resume


def test_resume_equals_the_run_that_was_never_killed(tmp_path, whole):
    _run(tmp_path, range(1, 10))  # killed after step 9 ...
    _run(tmp_path, range(7, 13), resume_step=6)  # ... and resumed from the checkpoint of step 6
    assert _files(tmp_path) == whole


def test_starting_over_writes_step_0_once(tmp_path):
    _run(tmp_path, [1, 2])
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"a": 1.0})
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"a": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "a": 1.0}]
    assert read_completions(tmp_path) == []


@pytest.mark.parametrize("lost", [1, 2, 20])
def test_a_torn_last_line_is_repaired(tmp_path, whole, lost):
    # 1 byte lost is the newline alone: that line is whole and stays, if the checkpoint has it.
    _run(tmp_path, range(1, 10))
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (tmp_path / name).open("rb+") as file:
            file.truncate(os.path.getsize(tmp_path / name) - lost)
    assert len(read_metrics(tmp_path)) == (9 if lost == 1 else 8)
    resume = 9 if lost == 1 else 8
    _run(tmp_path, range(resume + 1, 13), resume_step=resume)
    assert _files(tmp_path) == whole


def test_a_kill_during_the_rewrite_loses_nothing(tmp_path, whole, monkeypatch):
    _run(tmp_path, range(1, 10))
    before = _files(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, resume_step=6, tensorboard=False)
    assert _files(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl.tmp").write_bytes(b'{"step": 1, "half a li')
    _run(tmp_path, range(7, 13), resume_step=6)
    assert _files(tmp_path) == whole
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"} == set()


def test_kill_9_of_a_real_process(tmp_path, whole):
    program = """
import math, sys, time
from jaxrlhf.metrics import MetricsWriter
writer = MetricsWriter(sys.argv[1], tensorboard=False)
for step in range(1, 10):
    writer.write(step, {"value/loss": 1 / 3 / step, "objective/score": math.sqrt(step),
                        "time/update_s": 0.5})
    row = {"prompt": "the old", "completion": f"man {step}", "score": 0.1 * step}
    writer.write_completions(step, [row | {"reason": "random"},
                                    row | {"reason": "lowest", "gold": -1.0}])
assert not {"jax", "numpy", "tensorboard", "matplotlib"} & set(sys.modules), "import got heavy"
print("ready", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    _run(tmp_path, range(7, 13), resume_step=6)
    assert _files(tmp_path) == whole


def test_a_bad_line_in_the_middle_names_file_and_line(tmp_path):
    _run(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    for bad in (b"not json", b"[1]", b'{"a": 1.0}'):
        path.write_bytes(b"\n".join([lines[0], bad, lines[2]]) + b"\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
            MetricsWriter(tmp_path, resume_step=3, tensorboard=False)
        with pytest.raises(ValueError, match="line 2"):
            read_metrics(tmp_path)


# ----------------------------------------------------------------------------- TensorBoard and W&B


def _tensorboard(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_the_curves_and_a_resume_does_not_double_them(tmp_path):
    _run(tmp_path, range(1, 10), tensorboard=True)
    _run(tmp_path, range(7, 13), resume_step=6, tensorboard=True)  # within the same second
    curves = _tensorboard(tmp_path)
    assert set(curves) == {"value/loss", "objective/score", "time/update_s"}
    # Event files hold float32.
    assert curves["objective/score"] == [(s, float(np.float32(s**0.5))) for s in range(1, 13)]
    _run(tmp_path, [1], tensorboard=True)  # started over
    assert _tensorboard(tmp_path)["objective/score"] == [(1, 1.0)]


def test_event_files_sort_in_the_order_they_were_opened(tmp_path):
    # TensorBoard reads in the order of names; the host's clock may have been set back meanwhile.
    (tmp_path / "tensorboard").mkdir()
    later = tmp_path / "tensorboard" / "events.out.tfevents.9000000000.host.99999.0"
    later.touch()
    _run(tmp_path, [1], tensorboard=True)
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert len(names) == 2 and names[0] == later.name


def test_missing_packages_are_named_before_anything_is_touched(tmp_path, monkeypatch):
    _run(tmp_path, [1, 2])
    before = _files(tmp_path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("wandb", "tensorboard"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'jaxrlhf\[wandb\]'"):
        MetricsWriter(tmp_path, tensorboard=False, wandb_project="demo")
    with pytest.raises(ImportError, match="pip install tensorboard"):
        MetricsWriter(tmp_path)
    assert _files(tmp_path) == before


def test_wandb_gets_the_same_numbers_once_and_a_resume_continues_its_page(tmp_path, monkeypatch):
    pages: dict[str, list] = {}

    class Page:
        def __init__(self, page):
            self._rows = pages.setdefault(page, [])

        @property
        def step(self):
            return self._rows[-1][0] + 1 if self._rows else 0

        def log(self, values, step):
            assert step >= self.step, "W&B drops a step it has"
            self._rows.append((step, values["objective/score"]))

        def finish(self):
            pass

    def init(project, dir, id, resume, config):
        assert (project, dir, resume, config) == ("demo", str(tmp_path), "allow", {"seed": 1})
        return Page(id)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for start, stop in ((1, 10), (7, 13)):
        with MetricsWriter(
            tmp_path,
            resume_step=start - 1,
            tensorboard=False,
            wandb_project="demo",
            config={"seed": 1},
        ) as writer:
            for step in range(start, stop):
                writer.write(step, _numbers(step))
    (rows,) = pages.values()
    assert rows == [(step, math.sqrt(step)) for step in range(1, 13)]
