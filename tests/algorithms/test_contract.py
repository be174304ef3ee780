"""The contract of `algorithms.base`, kept by every algorithm of one table (`tiny.CASES`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from jaxrlhf import checkpoint, loop, sharding

NAMES = list(tiny.CASES)


def leaves_equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tree_comes_out_as_went_in(name):
    _, state, _, _, new, _ = tiny.first_update(name)
    assert jax.tree.structure(state) == jax.tree.structure(new)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert int(new.step) == int(state.step) + 1


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_float32_scalars(name):
    metrics = tiny.first_update(name).metrics
    assert metrics
    for key, value in metrics.items():
        assert value.shape == () and value.dtype == jnp.float32, key
        assert np.isfinite(value), key


@pytest.mark.parametrize("name", NAMES)
def test_update_captures_no_array(name):
    """Frozen models belong in `collect`; a captured array would be baked into the program."""
    first = tiny.first_update(name)
    algorithm = first.case.algorithm
    arguments = first.state, first.batch, jax.random.key(0), algorithm.frozen
    closed = jax.make_jaxpr(algorithm.update)(*arguments)
    assert [c.shape for c in closed.consts if np.size(c) > 1] == []


@pytest.mark.parametrize("name", tables.RUNS)
def test_jit_changes_nothing(name):
    """On tables, since without jit every operation compiles on its own (SGD: sums alone differ)."""
    run = tables.RUNS[name]()
    new, metrics = run.update(run.state, run.batch, run.key)
    with jax.disable_jit():
        eager, eager_metrics = run.algorithm.update(run.state, run.batch, run.key)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert metrics.keys() == eager_metrics.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(value, eager_metrics[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_zero_changes_no_bit(name):
    first = tiny.first_update(name)
    new, _ = first.update(tiny.at_rate(first.state, 0.0), first.batch)
    assert leaves_equal(first.state.params, new.params)
    assert not leaves_equal(first.state.params, first.new.params)


# A packed rollout is a new shape nearly every time; `test_packed.py` shows that it learns alike.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ppo-packed"])
def test_a_two_armed_bandit_improves(name):
    case = tiny.case(name)
    before = case.progress(case.params)
    state = loop.fit(case.algorithm, case.params, tiny.Cycle(case.batches), steps=60, seed=0)
    after = case.progress(state.params)
    assert after > before + 0.2, (before, after)


@pytest.mark.parametrize("name", NAMES)
def test_one_device_and_a_2_by_2_mesh_agree(name):
    """Two updates. Tolerance as for jit: sums are made in another order on four devices.

    Packed rows are others on four devices, and so is their padding; nothing else is.
    With this seed rewards differ in every minibatch: whitening makes roundings of advantages that
    are all alike large.
    """
    case = tiny.case(name)
    results = []
    for data, tensor in [(1, 1), (2, 2)]:
        rows = []
        state = loop.fit(
            case.algorithm,
            case.params,
            tiny.Cycle(case.batches),
            steps=2,
            seed=1,
            mesh=sharding.make_mesh(data, tensor),
            on_step=lambda step, metrics, rows=rows: rows.append(metrics),
        )
        results.append((state, rows))
    (one, one_rows), (four, four_rows) = results
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    for a, b in zip(one_rows, four_rows, strict=True):
        for key in a:
            if not key.startswith("time/") and not key.endswith("padding"):
                np.testing.assert_allclose(a[key], b[key], rtol=5e-3, atol=1e-3, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)], ids=str)
def test_a_resumed_run_is_the_uninterrupted_run(name, mesh, tmp_path):
    case = tiny.case(name)
    mesh = sharding.make_mesh(*mesh)
    made: list[int] = []

    def run(steps, store=None):
        state = loop.fit(
            case.algorithm,
            case.params,
            tiny.Cycle(case.batches),
            steps=steps,
            seed=3,
            mesh=mesh,
            store=store,
            save_steps=2,
            on_step=lambda step, _: made.append(step),
        )
        if store is not None:
            store.close()
        return state

    whole = run(4)  # which is never saved
    run(2, checkpoint.Checkpoints(tmp_path))
    resumed = run(4, checkpoint.Checkpoints(tmp_path))
    assert made == [1, 2, 3, 4, 1, 2, 3, 4]  # whole, and in two parts
    assert leaves_equal(resumed, whole)
