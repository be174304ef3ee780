"""Masked reductions against numpy, the whitening oracle, and the mean across devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrlhf.losses import masked

# invariants D: population variance, mean kept. Mean 1.6, variance .2/3, so 1.2 -> 1.6 - .4/.2582.
ORACLE_IN = np.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], np.float32)
ORACLE_OUT = np.array(
    [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]], np.float32
)


@pytest.fixture
def ragged() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 3.0, (4, 7)).astype(np.float32), rng.random((4, 7)) < 0.6


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_reductions_equal_numpy(ragged: tuple[np.ndarray, np.ndarray], axis: masked.Axis) -> None:
    x, mask = ragged
    for ours, numpys in ((masked.sum, np.sum), (masked.mean, np.mean), (masked.var, np.var)):
        out = ours(x, mask, axis)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, numpys(x, axis=axis, where=mask), rtol=1e-5)


def test_an_empty_mask_gives_zero_and_no_gradient() -> None:
    x, nothing = jnp.array([1.0, jnp.nan]), jnp.zeros(2, bool)
    for fn in (masked.sum, masked.mean, masked.var):
        value, gradient = jax.jit(jax.value_and_grad(fn))(x, nothing)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, [0.0, 0.0])
    np.testing.assert_array_equal(masked.whiten(x, nothing, shift_mean=True), [0.0, 0.0])


def test_what_is_masked_changes_neither_value_nor_gradient(
    ragged: tuple[np.ndarray, np.ndarray],
) -> None:
    x, mask = ragged
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def whitened(x: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(weights * masked.whiten(x, mask, shift_mean=False))

    for fn in (masked.sum, masked.mean, masked.var, whitened):
        grad = jax.jit(jax.value_and_grad(fn))
        clean = grad(x, mask)
        assert np.all(np.isfinite(clean[1])) and not np.any(np.asarray(clean[1])[~mask])
        for poison in (np.nan, np.inf, -np.inf, 1e30):
            dirty = grad(np.where(mask, x, np.float32(poison)), mask)
            assert float(clean[0]) == float(dirty[0])
            np.testing.assert_array_equal(clean[1], dirty[1])


def test_whitening_oracle() -> None:
    everything = np.ones((3, 3), bool)
    kept = masked.whiten(ORACLE_IN, everything, shift_mean=False)
    np.testing.assert_allclose(kept, ORACLE_OUT, atol=1e-4)
    assert abs(float(kept[0, 0]) - 0.1394) > 0.05  # what the unbiased variance would give
    shifted = masked.whiten(ORACLE_IN, everything, shift_mean=True)
    np.testing.assert_allclose(shifted, ORACLE_OUT - 1.6, atol=1e-4)


def test_whitening_sees_only_the_mask() -> None:
    """The same numbers with padding around them: the same result, and zeros in the padding."""
    padded = np.pad(ORACLE_IN, ((1, 0), (2, 3)), constant_values=77.0)
    mask = np.pad(np.ones((3, 3), bool), ((1, 0), (2, 3)))
    out = np.asarray(masked.whiten(padded, mask, shift_mean=False))
    np.testing.assert_allclose(out[1:, 2:5], ORACLE_OUT, atol=1e-4)
    assert not out[~mask].any()


def test_across_devices_the_mean_is_of_the_whole_batch() -> None:
    rng = np.random.default_rng(2)
    x, mask = rng.normal(size=(8, 5)).astype(np.float32), rng.random((8, 5)) < 0.7
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def whiten(axis_name: str | None) -> jax.Array:
        def local(x: jax.Array, mask: jax.Array) -> jax.Array:
            return masked.whiten(x, mask, shift_mean=True, axis_name=axis_name)

        sharded = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        return jax.jit(sharded)(x, mask)

    whole = masked.whiten(x, mask, shift_mean=True)
    np.testing.assert_allclose(whiten("data"), whole, atol=1e-5)
    assert not np.allclose(whiten(None), whole, atol=0.1)  # a device's own share: what must not be

    def loss(x: jax.Array) -> jax.Array:
        def local(x: jax.Array, mask: jax.Array) -> jax.Array:
            return masked.mean(jnp.square(x), mask, axis_name="data")

        return jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())(
            x, jnp.asarray(mask)
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    expected = jax.value_and_grad(lambda x: masked.mean(jnp.square(x), mask))(jnp.array(x))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)


def test_any_number_becomes_float32_before_it_is_added() -> None:
    # 1000 · bf16(0.1) = 100.0977; added up in bfloat16 it would stop growing at 32.
    tenths = jnp.full(1000, 0.1, jnp.bfloat16)
    total = masked.sum(tenths, jnp.ones(1000, bool))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, 100.0977, rtol=1e-5)
    yes = np.ones(3, bool)
    assert float(masked.mean(np.array([1, 2, 4]), yes)) == pytest.approx(7 / 3)
    assert float(masked.mean(np.array([True, False, False]), yes)) == pytest.approx(1 / 3)


def test_a_mask_of_ints_or_of_another_shape_is_refused() -> None:
    x = jnp.ones((2, 3))
    with pytest.raises(AssertionError, match=r"mask.*int32.*bool"):
        masked.mean(x, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(AssertionError, match=r"mask \(2,\)"):
        masked.mean(x, jnp.ones(2, bool))
