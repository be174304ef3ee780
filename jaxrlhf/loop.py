"""`fit`: the only training loop. It runs any `Algorithm` and owns everything around it, once.

The mesh and layout, `jit` of init and update (donated, with pinned output layouts), the keys
(all derived from the seed and the step, so none is stored), checkpoints, metrics, hooks, and the
ways to stop: done, a signal, a number that is not finite, a guard. It knows no algorithm.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import jax
import numpy as np

from jaxrlhf import monitoring, sharding
from jaxrlhf.algorithms.base import Algorithm, Batch, State
from jaxrlhf.errors import NonFiniteError


class Log(Protocol):
    """Where metrics go, one row a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Store(Protocol):
    """Where checkpoints go."""

    def save(self, step: int, state: State, data: Any) -> None: ...
    def restore(self, abstract: Any, data: Any) -> State | None: ...


Hook = Callable[[int, State, Batch | None], Mapping[str, float]]
"""`(step, state, batch) -> metrics`, after an update; step 0 (batch None) is before the first."""

Watch = Callable[[int, Mapping[str, float]], Exception | None]
"""`(step, metrics) -> what ends the run`: looks at all there is of a step, once it is written down.
It is asked before the first update too, after a resume with no metrics."""


class Arrived(Exception):
    """What a watch returns where the run has got to where it was to go: its last step, no error."""


class Stopped(SystemExit):
    """SIGTERM arrived; the state was saved at a step boundary. Exits 0."""


def fit(
    algorithm: Algorithm,
    params: Any,
    batches: Iterator[Batch],
    *,
    steps: int,
    seed: int,
    mesh: jax.sharding.Mesh | None = None,
    store: Store | None = None,
    save_steps: int = 0,
    open_log: Callable[[int], Log] | None = None,
    hooks: Sequence[Hook] = (),
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    watch: Watch | None = None,
    donate: bool = False,
    profile: monitoring.Profile | None = None,
) -> State:
    """Run `algorithm` for `steps` updates, from the newest checkpoint if there is one.

    The same call after a crash goes on where the newest checkpoint stands, and ends with the same
    parameters, bit for bit, as a run that was never interrupted.

    Args:
      algorithm: what is trained, and how.
      params: where training starts; copied, and needed only in shape when resuming.
      batches: batches of numpy arrays; with `get_state`/`set_state` when it is to be resumed.
      steps: updates in all, those before a resume included.
      seed: of every random number that training draws.
      mesh: None is one device.
      store: checkpoints; None keeps none.
      save_steps: updates between checkpoints; the last step is always saved.
      open_log: `first_step -> Log`; what a log holds of later steps is to be dropped.
      hooks: evaluations, called after every update and once before the first.
      on_step: for a progress bar.
      watch: guards; what they return is raised as soon as the state of that step is saved, but
        for `Arrived`, which ends the run there.
      donate: training takes `params` over, in place of a copy: nobody else can read them any more.
      profile: what traces some of the steps.
    Returns:
      The final state; its `step` is below `steps` where a watch said `Arrived`.
    Raises:
      NonFiniteError: a metric is NaN or infinite; the step is not saved.
      Stopped: a signal asked for the end; the state is saved.
      Exception: what `watch` returned.
    """
    mesh, phase = mesh or sharding.make_mesh(1, 1), jax.profiler.TraceAnnotation
    root = jax.random.key(seed)
    abstract = jax.eval_shape(algorithm.init, params, root)
    layout = sharding.tree_sharding(mesh, abstract)
    update = jax.jit(algorithm.update, donate_argnums=0, out_shardings=(layout, None))
    state = store.restore(_with_layout(abstract, layout), batches) if store else None
    if state is None:
        given = 0 if donate else None
        state = jax.jit(algorithm.init, out_shardings=layout, donate_argnums=given)(params, root)
    elif donate:
        jax.tree.map(lambda x: x.delete(), params)
    frozen = () if algorithm.frozen is None else (algorithm.frozen,)
    first, counter = int(state.step), monitoring.compilations()
    kept = first  # step of the newest checkpoint; 0 is none
    log = open_log(first) if open_log else None

    def next_batch() -> Batch:
        return sharding.shard_batch(mesh, next(batches))

    try:
        with _stop_signals() as stop:
            metrics = _run_hooks(hooks, 0, state, None) if first == 0 else {}
            _write(log, 0, metrics)
            alarm = watch and watch(first, metrics)
            if isinstance(alarm, Arrived):
                return state
            if alarm:
                raise alarm
            for step in range(first, steps):
                compiled, compile_s = counter.count, counter.seconds
                collect_key, update_key = jax.random.split(jax.random.fold_in(root, step))
                with profile.step(step + 1) if profile else nullcontext():
                    with phase("collect"):
                        batch, collected = algorithm.collect(state, next_batch, collect_key)
                        batch = sharding.shard_batch(mesh, batch)
                    clock = monitoring.Stopwatch()
                    with phase("update"):
                        state, updated = update(state, batch, update_key, *frozen)
                        metrics = _floats(jax.device_get(updated)) | _floats(collected)
                    metrics |= clock.lap("update")
                metrics |= {
                    "time/compilations": counter.count - compiled,
                    "time/compile_s": counter.seconds - compile_s,
                    "time/peak_memory_mib": monitoring.peak_memory_mib(),
                }
                _check_finite(step + 1, metrics, kept)
                metrics |= _run_hooks(hooks, step + 1, state, batch)
                _write(log, step + 1, metrics)
                if on_step:
                    on_step(step + 1, metrics)
                alarm = watch and watch(step + 1, metrics)
                last, stopping = step + 1 == steps, stop.is_set()
                due = save_steps and (step + 1) % save_steps == 0
                if store and (last or stopping or due or alarm):
                    store.save(step + 1, state, batches)
                    kept = step + 1
                if isinstance(alarm, Arrived):
                    break
                if alarm:
                    raise alarm
                if stopping and not last:
                    raise Stopped(0)
    finally:
        if profile:
            profile.close()
        if log:
            log.close()
    return state


def init_params(init: Callable[[jax.Array], Any], *, seed: int, mesh: jax.sharding.Mesh) -> Any:
    """Fresh parameters, made where they will live: no device ever holds the whole."""
    key = jax.random.key(seed)
    layout = sharding.tree_sharding(mesh, jax.eval_shape(init, key))
    return jax.jit(init, out_shardings=layout)(key)


def flops(algorithm: Algorithm, params: Any, batch: Batch) -> float:
    """Floating-point operations that the compiler counts in an update; a loop's body counts once.

    `params` and `batch` are needed only in shape. Nothing is compiled or run.
    """
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, params, key)
    lowered = jax.jit(algorithm.update).lower(state, batch, key)
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def _with_layout(abstract: Any, layout: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout
    )


def _run_hooks(hooks, step, state, batch) -> dict[str, float]:
    metrics = {}
    for hook in hooks:
        metrics |= _floats(hook(step, state, batch))
    return metrics


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in metrics.items()}


def _write(log: Log | None, step: int, metrics: Mapping[str, float]) -> None:
    if log and metrics:
        log.write(step, metrics)


def _check_finite(step: int, metrics: Mapping[str, float], kept: int) -> None:
    bad = {name: x for name, x in metrics.items() if not np.isfinite(x)}
    if bad:
        shown = ", ".join(f"{name} is {x}" for name, x in sorted(bad.items()))
        ending = f"; the checkpoint of step {kept} is kept" if kept else ""
        raise NonFiniteError(f"step {step}: {shown}; training stopped{ending}")


@contextmanager
def _stop_signals():
    """An event that SIGTERM sets, so that the loop can end at a step boundary."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
