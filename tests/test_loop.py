"""`loop.fit` with an algorithm of one number: steps, keys, logs, hooks, saving, stopping.

The algorithms themselves go through the loop in `algorithms/test_contract.py`, on meshes too;
real processes are killed in `test_resume_process.py`.
"""

import gc
import gzip
import json
import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrlhf import loop, monitoring, sharding
from jaxrlhf.algorithms.base import Algorithm, State
from jaxrlhf.errors import NonFiniteError, UserError
from jaxrlhf.loop import Stopped

PARAMS = {"w": jnp.float32(1.0)}


class Toy:
    """Adds each batch and a random number to `w`; remembers what it was called with."""

    def __init__(self, *, bad_step: int | None = None, bad_metric: float = float("nan")):
        self.keys: list[Any] = []
        self.traces = 0
        self.bad_step, self.bad_metric = bad_step, bad_metric

    def algorithm(self) -> Algorithm:
        return Algorithm(self.init, self.collect, self.update)

    def init(self, params, key):
        zero = jnp.zeros((), jnp.int32)
        return State(zero, jax.tree.map(jnp.copy, params), {}, {"noise": jax.random.uniform(key)})

    def collect(self, state, next_batch, key):
        self.keys.append(key)
        return next_batch(), {"collected": 7}

    def update(self, state, batch, key):
        self.traces += 1
        step, noise = state.step + 1, jax.random.uniform(key)
        params = {"w": state.params["w"] + jnp.sum(batch["x"]) + noise}
        bad = self.bad_metric if self.bad_step is not None else 0.0
        metrics = {
            "loss": jnp.where(step == (self.bad_step or 0), bad, params["w"]),
            "noise": noise,
        }
        return State(step, params, {}, state.extra), metrics


class MemoryStore:
    """Keeps every checkpoint; restores the newest."""

    def __init__(self):
        self.saved: dict[int, tuple[State, Any]] = {}

    def save(self, step, state, data):
        self.saved[step] = jax.device_get(state), data.get_state()

    def restore(self, abstract, data):
        if not self.saved:
            return None
        state, position = self.saved[max(self.saved)]
        data.set_state(position)
        return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, abstract)


class MemoryLog:
    def __init__(self):
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        self.closed = True


def batches() -> tiny.Cycle:
    return tiny.Cycle([{"x": np.full((2,), i, np.float32)} for i in range(5)])


def fit(toy: Toy, *, steps: int = 4, seed: int = 0, **options) -> State:
    options.setdefault("batches", batches())
    return loop.fit(
        toy.algorithm(), PARAMS, options.pop("batches"), steps=steps, seed=seed, **options
    )


def w(state: State) -> float:
    return float(state.params["w"])


def test_it_makes_as_many_updates_as_asked_for_and_compiles_once():
    toy = Toy()
    state = fit(toy, steps=4)
    assert int(state.step) == 4 and len(toy.keys) == 4 and toy.traces == 1
    # Batches are twice 0, 1, 2, 3: 12 in all, and four random numbers in [0, 1).
    assert 13 < w(state) < 17


def test_the_seed_decides_and_every_step_draws_anew():
    first, again, other = Toy(), Toy(), Toy()
    assert w(fit(first)) == w(fit(again)) != w(fit(other, seed=1))
    drawn = [tuple(np.asarray(jax.random.key_data(key))) for key in first.keys]
    assert len(set(drawn)) == 4
    log = MemoryLog()
    fit(Toy(), open_log=lambda step: log)
    noise = [row["noise"] for _, row in log.rows]
    assert len(set(noise)) == 4
    # collect and update of one step must not share a key either
    assert not {float(jax.random.uniform(key)) for key in first.keys} & set(noise)


def test_the_callers_parameters_live_and_are_not_changed():
    for _ in range(2):
        fit(Toy())
        assert float(PARAMS["w"]) == 1.0


def test_metrics_hooks_and_progress_come_once_a_step():
    log, seen, shown = MemoryLog(), [], []

    def hook(step, state, batch):
        seen.append((step, int(state.step), None if batch is None else float(batch["x"][0])))
        return {"hooked": step * 10}

    fit(
        Toy(),
        steps=3,
        open_log=lambda step: log,
        hooks=[hook, lambda *_: {}],
        on_step=lambda step, metrics: shown.append((step, metrics["hooked"])),
    )
    # Step 0 is before the first update: no batch yet, and only hooks have something to say.
    assert seen == [(0, 0, None), (1, 1, 0.0), (2, 2, 1.0), (3, 3, 2.0)]
    assert [step for step, _ in log.rows] == [0, 1, 2, 3] and log.closed
    assert log.rows[0][1] == {"hooked": 0.0}
    assert shown == [(1, 10.0), (2, 20.0), (3, 30.0)]
    for step, row in log.rows[1:]:
        assert row["collected"] == 7.0 and row["hooked"] == step * 10
        assert row["time/update_s"] > 0
        assert all(isinstance(x, int | float) for x in row.values())


def test_without_hooks_nothing_is_logged_at_step_0():
    log = MemoryLog()
    fit(Toy(), steps=1, open_log=lambda step: log)
    assert [step for step, _ in log.rows] == [1]


def test_compilations_are_logged_where_they_happen():
    log = MemoryLog()
    fit(Toy(), steps=3, open_log=lambda step: log)
    counts = [row["time/compilations"] for _, row in log.rows]
    assert counts[0] >= 1 and counts[2] == 0
    assert log.rows[0][1]["time/compile_s"] > 0 == log.rows[2][1]["time/compile_s"]
    assert log.rows[0][1]["time/peak_memory_mib"] > 1


@pytest.mark.parametrize(
    ("save_steps", "saved"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])]
)
def test_checkpoints_come_every_save_steps_and_at_the_end(save_steps, saved):
    store = MemoryStore()
    fit(Toy(), steps=5, store=store, save_steps=save_steps)
    assert list(store.saved) == saved


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_repeats_nothing_and_ends_alike(stop):
    def run(store, steps):
        log, hooked, firsts = MemoryLog(), [], []

        def hook(step, *_):
            hooked.append(step)
            return {"evaluated": 1.0}

        def open_log(first):
            firsts.append(first)
            return log

        toy = Toy()
        state = fit(toy, steps=steps, store=store, save_steps=1, open_log=open_log, hooks=[hook])
        return state, log, hooked, firsts, toy

    whole, log, *_ = run(MemoryStore(), 4)
    store = MemoryStore()
    _, before, *_ = run(store, stop)
    state, after, hooked, firsts, toy = run(store, 4)
    assert w(state) == w(whole) and float(state.extra["noise"]) == float(whole.extra["noise"])
    assert firsts == [stop] and hooked == list(range(stop + 1, 5)) and len(toy.keys) == 4 - stop

    def lasting(rows):
        return [
            (step, {name: x for name, x in row.items() if not name.startswith("time/")})
            for step, row in rows
        ]

    assert lasting(before.rows + after.rows) == lasting(log.rows)


def test_a_finished_run_makes_no_update():
    store = MemoryStore()
    state = fit(Toy(), store=store)
    toy, log = Toy(), MemoryLog()
    again = fit(toy, store=store, open_log=lambda step: log)
    assert w(again) == w(state) and toy.keys == [] and log.rows == [] and log.closed
    assert list(store.saved) == [4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_stops_the_run_and_is_not_saved(value):
    store, log = MemoryStore(), MemoryLog()
    with pytest.raises(NonFiniteError) as caught:
        fit(
            Toy(bad_step=4, bad_metric=value),
            steps=6,
            store=store,
            save_steps=3,
            open_log=lambda step: log,
        )
    assert str(caught.value) == (
        f"step 4: loss is {value}; training stopped; the checkpoint of step 3 is kept"
    )
    assert caught.value.exit_code == 3
    assert list(store.saved) == [3] and log.closed and [s for s, _ in log.rows] == [1, 2, 3]


def test_the_message_names_the_checkpoint_that_there_is():
    """Not the one that `save_steps` alone would suggest: a run can stop and go on anywhere."""
    with pytest.raises(NonFiniteError, match=r"training stopped$"):
        fit(Toy(bad_step=2), store=MemoryStore(), save_steps=2)
    store = MemoryStore()
    fit(Toy(), steps=3, store=store)
    with pytest.raises(NonFiniteError, match="the checkpoint of step 3 is kept"):
        fit(Toy(bad_step=4), steps=9, store=store, save_steps=2)


def test_what_collect_reports_must_be_finite_too():
    toy = Toy()
    collect = toy.collect
    toy.collect = lambda *args: (collect(*args)[0], {"rollout/length": np.inf})  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="step 1: rollout/length is inf"):
        fit(toy)


def terminate(step_to_stop: int):
    def on_step(step, metrics):
        if step == step_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def test_sigterm_saves_at_the_step_boundary_and_exits_0():
    store, log = MemoryStore(), MemoryLog()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        fit(Toy(), steps=9, store=store, open_log=lambda _: log, on_step=terminate(2))
    assert caught.value.code == 0 and list(store.saved) == [2] and log.closed
    assert signal.getsignal(signal.SIGTERM) is before
    state = fit(Toy(), steps=9, store=store)
    assert w(state) == w(fit(Toy(), steps=9))


def test_sigterm_in_the_last_step_is_a_finished_run():
    store = MemoryStore()
    assert int(fit(Toy(), steps=3, store=store, on_step=terminate(3)).step) == 3
    assert list(store.saved) == [3]


@pytest.mark.parametrize("asked", range(1, 7))
def test_whenever_the_signal_comes_what_was_done_is_saved(monkeypatch, asked):
    """The event turns true at the n-th look: between any two looks there could be a signal."""

    class Event(threading.Event):
        looks = 0

        def is_set(self):
            self.looks += 1
            return self.looks >= asked

    monkeypatch.setattr(loop.threading, "Event", Event)
    store, done = MemoryStore(), []
    with pytest.raises(Stopped):
        fit(Toy(), steps=9, store=store, on_step=lambda step, _: done.append(step))
    assert list(store.saved) == [done[-1]]


def test_it_runs_in_a_thread_that_can_have_no_signal_handler():
    found = []
    thread = threading.Thread(target=lambda: found.append(w(fit(Toy()))))
    thread.start()
    thread.join()
    assert found == [w(fit(Toy()))]


def test_data_without_a_position_will_do_where_nothing_is_saved():
    rows = ({"x": np.full((2,), i, np.float32)} for i in range(9))
    assert w(fit(Toy(), batches=rows)) == w(fit(Toy()))


def test_the_log_is_closed_whatever_happens():
    log = MemoryLog()
    with pytest.raises(StopIteration):
        fit(Toy(), batches=iter([]), open_log=lambda step: log)
    assert log.closed


def test_batches_are_spread_over_the_data_axis_or_refused():
    mesh, seen = sharding.make_mesh(2, 2), []

    def hook(step, state, batch):
        if batch is not None:
            seen.append((batch["x"].sharding, state.params["w"].sharding))
        return {}

    fit(Toy(), steps=1, mesh=mesh, hooks=[hook])
    batch, params = seen[0]
    assert batch.spec == jax.sharding.PartitionSpec("data") and batch.mesh == mesh
    assert params == sharding.replicated(mesh)
    with pytest.raises(UserError, match=r"batch of 2 rows \(x\) does not divide over 4 devices"):
        fit(Toy(), mesh=sharding.make_mesh(4, 2))


def test_parameters_are_made_where_they_will_live():
    def init(key):
        return {"embed": {"embedding": jax.random.normal(key, (8, 4))}}

    mesh = sharding.make_mesh(1, 2)
    params = loop.init_params(init, seed=3, mesh=mesh)
    table = params["embed"]["embedding"]
    assert table.sharding == sharding.tree_sharding(mesh, params)["embed"]["embedding"]
    assert table.sharding.spec == jax.sharding.PartitionSpec("tensor", None)
    np.testing.assert_array_equal(table, jax.random.normal(jax.random.key(3), (8, 4)))


class Alarm(Exception):
    pass


def test_what_watches_ends_the_run_after_the_step_is_written_down_and_saved():
    store, log, seen = MemoryStore(), MemoryLog(), []

    def watch(step, metrics):
        seen.append((step, sorted(metrics)))
        return Alarm(f"at {step}") if step == 3 else None

    with pytest.raises(Alarm, match="at 3"):
        fit(Toy(), steps=9, store=store, open_log=lambda step: log, watch=watch, hooks=[told])
    assert list(store.saved) == [3] and log.rows[-1][0] == 3 and log.closed
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == ["told"] and {"told", "loss"} <= set(seen[1][1])


def test_what_watches_is_asked_before_the_first_update_of_a_resumed_run():
    store, seen = MemoryStore(), []
    fit(Toy(), steps=2, store=store)
    with pytest.raises(Alarm):
        fit(Toy(), steps=4, store=store, watch=lambda *given: seen.append(given) or Alarm())
    assert seen == [(2, {})] and list(store.saved) == [2]


def test_a_run_that_has_arrived_ends_there_without_an_error():
    store, log = MemoryStore(), MemoryLog()

    def arrived(step, metrics):
        return loop.Arrived() if step == 3 else None

    state = fit(Toy(), steps=9, store=store, open_log=lambda step: log, watch=arrived)
    assert int(state.step) == 3 and list(store.saved) == [3] and log.rows[-1][0] == 3
    assert w(state) == w(fit(Toy(), steps=3)) and log.closed
    # Called again, say because what came after was killed: nothing is trained.
    again = Toy()
    state = fit(again, steps=9, store=store, watch=arrived)
    assert int(state.step) == 3 and not again.keys and list(store.saved) == [3]


def test_watching_changes_nothing_that_is_trained():
    assert w(fit(Toy(), watch=lambda *_: None)) == w(fit(Toy()))


def told(step, state, batch):
    return {"told": 1.0}


# ------------------------------------------------------------------ params taken over


@pytest.mark.parametrize("steps", [2, 3], ids=["a fresh run", "a resumed run"])
def test_params_that_are_donated_are_gone(steps):
    store, params = MemoryStore(), {"w": jnp.float32(1.0)}
    if steps == 3:
        loop.fit(Toy().algorithm(), PARAMS, batches(), steps=2, seed=0, store=store)
    loop.fit(Toy().algorithm(), params, batches(), steps=steps, seed=0, store=store, donate=True)
    assert params["w"].is_deleted()


# ------------------------------------------------------------------ a profile


@pytest.mark.parametrize(("steps", "traced"), [(6, [2, 3, 4]), (3, [2, 3])])
def test_a_profile_has_three_steps_and_their_phases(tmp_path, steps, traced):
    jax.clear_caches()  # a profile holds every program there is: 12 s at the end of a session
    gc.collect()
    profile = monitoring.Profile(tmp_path, 2)
    loop.fit(Toy().algorithm(), PARAMS, batches(), steps=steps, seed=0, profile=profile)
    (path,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = [event["args"]["step_num"] for event in events if event.get("name") == "step"]
    assert [int(number) for number in found] == traced
    for phase in ("collect", "update"):
        assert sum(event.get("name") == phase for event in events) == len(traced)
    assert list(tmp_path.rglob("*.xplane.pb"))  # for TensorBoard
